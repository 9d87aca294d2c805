"""Beam search: follow the few best continuations of each prompt at once, and keep the best that ended."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minilm import checks
from minilm.cache import DynamicCache, StaticCache
from minilm.heads import CausalLM

UNREACHABLE = -1e9  # a score that no real continuation has, and that still orders: -inf would tie


@dataclass
class Hypotheses:
    """The best texts of one prompt that have ended, at most `size` of them."""

    size: int
    found: list[tuple[float, Tensor]] = field(default_factory=list)  # (score, new tokens), best first
    closed: bool = False  # no running beam can still beat the worst of these

    def add(self, score: float, tokens: Tensor) -> None:
        """Take in a text if it is among the best."""
        self.found.append((score, tokens))
        self.found.sort(key=lambda pair: pair[0], reverse=True)
        del self.found[self.size :]

    def close_if_hopeless(self, best_running: float, early_stopping: bool) -> None:
        """Stop once `size` texts have ended and what still runs is no better than the worst of them."""
        if len(self.found) == self.size and (early_stopping or best_running <= self.found[-1][0]):
            self.closed = True


def beam_step(
    scores: Float[Tensor, "batch beams"], log_probs: Float[Tensor, "batch beams vocab"], candidates: int
) -> tuple[
    Float[Tensor, "batch candidates"], Int[Tensor, "batch candidates"], Int[Tensor, "batch candidates"]
]:
    """The best ways to go on by one token, over all beams of a prompt together.

    Returns: their scores (log-probabilities of the whole text), the beam each one continues, the token it
             adds.
    """
    totals = scores[:, :, None] + log_probs
    best, index = totals.flatten(1).topk(candidates)
    vocab_size = log_probs.shape[-1]
    return best, index // vocab_size, index % vocab_size


@torch.no_grad()
def beam_search(
    model: CausalLM,
    input_ids: Int[Tensor, "batch length"],
    attention_mask: Int[Tensor, "batch length"] | None,
    cache: DynamicCache,
    step: Callable[[Tensor, Tensor | None], Tensor],
    *,
    max_new_tokens: int,
    num_beams: int,
    length_penalty: float,
    early_stopping: bool,
    adjust: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    stop_ids: Int[Tensor, " stops"],
    pad_id: int,
) -> Int[Tensor, "batch total"]:
    """Continue each prompt by the text of the highest score that was found.

    The score of a text is its summed log-probability over its number of new tokens to the power of
    length_penalty. A prompt is read once; its cache rows are then repeated for the beams, and reordered with
    them at every step, for a beam that descends from another must also remember what that one read. `step`
    reads one token per beam and scores the next; `adjust` may change these scores given the tokens of each
    beam and which of them are real, as a repetition penalty does.
    Source: the search of transformers 5.23, whose rules for when a text counts as ended it follows.
    """
    batch, prompt_length = input_ids.shape
    device = input_ids.device
    first_row = num_beams * torch.arange(batch, device=device)[:, None]
    hypotheses = [Hypotheses(num_beams) for _ in range(batch)]
    running = input_ids.repeat_interleave(num_beams, dim=0)
    scores = torch.full((batch, num_beams), UNREACHABLE, device=device)
    scores[:, 0] = 0.0  # the beams of a prompt start equal; only the first counts, or all would stay equal
    # More candidates than beams, so that enough remain when the best ones end.
    vocab_size = model.config.vocab_size
    candidates = num_beams * min(max(2, 1 + len(stop_ids)), vocab_size)

    if attention_mask is not None:
        attention_mask = attention_mask.repeat_interleave(num_beams, dim=0)
    if isinstance(cache, StaticCache):  # its rows cannot be repeated, so every beam reads the prompt itself
        if cache.memory is not None:
            cache.memory = cache.memory.select(
                torch.arange(batch, device=device).repeat_interleave(num_beams)
            )
        out = model(running, attention_mask=attention_mask, cache=cache, logits_to_keep=1)
        logits = out.logits[:, -1]
    else:
        prompt_mask = None if attention_mask is None else attention_mask[::num_beams]
        out = model(input_ids, attention_mask=prompt_mask, cache=cache, logits_to_keep=1)
        logits = out.logits[:, -1].repeat_interleave(num_beams, dim=0)
        cache.repeat(num_beams)

    checks.scores(logits, model)
    for count in range(1, max_new_tokens + 1):
        log_probs = adjust(logits.float().log_softmax(dim=-1), running, attention_mask)
        totals, parents, tokens = beam_step(scores, log_probs.view(batch, num_beams, -1), candidates)
        ended = torch.isin(tokens, stop_ids) | (count == max_new_tokens)

        for row, found in enumerate(hypotheses):
            for rank in range(num_beams):  # what ranks lower is a reserve, not a result
                if ended[row, rank] and not found.closed:
                    text = running[first_row[row] + parents[row, rank]].flatten()[prompt_length:]
                    found.add(
                        totals[row, rank].item() / count**length_penalty,
                        torch.cat((text, tokens[row, rank, None])),
                    )

        scores, kept = (totals + UNREACHABLE * ended).topk(num_beams)
        rows = (first_row + parents.gather(1, kept)).flatten()
        running = torch.cat((running[rows], tokens.gather(1, kept).view(-1, 1)), dim=1)
        for row, found in enumerate(hypotheses):
            found.close_if_hopeless(scores[row, 0].item() / count**length_penalty, early_stopping)
        if count == max_new_tokens or all(found.closed for found in hypotheses):
            break
        cache.select(rows)
        if attention_mask is not None:
            attention_mask = torch.cat((attention_mask, torch.ones_like(running[:, -1:])), dim=1)
        logits = step(running[:, -1:], attention_mask)

    best = [found.found[0][1] for found in hypotheses]
    longest = max(len(tokens) for tokens in best)
    filled = [torch.cat((tokens, tokens.new_full((longest - len(tokens),), pad_id))) for tokens in best]
    return torch.cat((input_ids, torch.stack(filled)), dim=1)
