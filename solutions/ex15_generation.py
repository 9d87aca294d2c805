"""Exercises of notebook 15: how does it choose?

A model gives one number, a logit, for each token that could come next. Filters make some of these tokens
impossible, decoding takes one of what is left, and beam search follows several texts at once.

Check your answers with `python -m minilm.course check 15`.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


def top_k_filter(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """Leave the k best tokens of each row: none of the bad rest is ever drawn (exercise 15.1, 10 min).

    The logits of all other tokens become -inf: their probability is 0. Tokens that tie with the k-th best
    stay too, so that more than k may be left. A k larger than the vocabulary keeps all.

    Example: [3, 1, 2, 0] and k = 2 give [3, -inf, 2, -inf]; [3, 2, 2, 0] and k = 2 give [3, 2, 2, -inf].
    Raises: ValueError if k is less than 1.
    """
    # BEGIN SOLUTION 15.1
    if k < 1:
        raise ValueError(f"k is {k}; at least one token has to stay")
    best_first = logits.sort(dim=-1, descending=True).values
    # The k-th best stands at index k - 1. A small vocabulary has no k-th, and its last one lets all stay.
    kth_best = best_first[:, min(k, logits.shape[-1]) - 1]
    # Comparing with its value, and not taking the first k places, is what lets ties stay. The None keeps one
    # threshold per row.
    return logits.masked_fill(logits < kth_best[:, None], -torch.inf)
    # END SOLUTION


def top_p_filter(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Leave the smallest set of best tokens whose probability reaches p (exercise 15.2, 20 min).

    Where the model is sure, one or two tokens stay; where it is not, many do. The token with which the sum
    reaches p belongs to the set, so at least one token always stays. All other logits become -inf.
    Probabilities are computed and summed in fp32; the result has the dtype of the logits.

    Example: of probabilities 0.5, 0.2, 0.15, 0.1, 0.05, p = 0.8 keeps three (0.85 in all), p = 0.3 keeps one,
    p = 1 keeps all.
    Raises: ValueError if p is not above 0 and at most 1.
    Source: nucleus sampling, Holtzman et al. 2019.
    """
    # BEGIN SOLUTION 15.2
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}; a probability above 0 and at most 1 is needed")
    probabilities = logits.float().softmax(dim=-1)
    best_first, order = probabilities.sort(dim=-1, descending=True)
    # What the better tokens have together. As long as that is less than p, the next token is needed too: so
    # the one that crosses p stays, and the best, with nothing before it, always does.
    before = best_first.cumsum(dim=-1) - best_first
    needed = before < p
    # needed[0] speaks of the best token, not of token 0. Write each verdict back to the place its token had.
    stays = torch.zeros_like(needed).scatter(1, order, needed)
    return logits.masked_fill(~stays, -torch.inf)
    # END SOLUTION


def penalize_repetition(
    logits: Float[Tensor, "batch vocab"], input_ids: Int[Tensor, "batch length"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Make tokens that already stand in the row less likely, against loops (exercise 15.3, 10 min).

    A positive logit is divided by the penalty and a negative one is multiplied by it: both go down. A token
    counts once, however often it stands in the row. All other logits stay as they are.

    Example: logits [4, -1, 2], the text [0, 1, 0] and a penalty of 2 give [2, -2, 2].
    Raises: ValueError if penalty is not positive.
    Source: CTRL, Keskar et al. 2019, §4.1.
    """
    # BEGIN SOLUTION 15.3
    if penalty <= 0:
        raise ValueError(f"penalty is {penalty}; it must be positive (1 changes nothing)")
    # seen[row, token]: does the token stand in this row? Setting True twice is the same as once.
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, input_ids, True)
    # Dividing -1 by 2 would make it -0.5: more likely than before. Below 0, down means away from 0.
    lower = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lower, logits)
    # END SOLUTION


def greedy_batch(
    model: Callable[[Tensor, Tensor], Tensor],
    input_ids: Int[Tensor, "batch length"],
    attention_mask: Int[Tensor, "batch length"],
    eos_token_ids: list[int],
    pad_token_id: int,
    max_new_tokens: int,
) -> Int[Tensor, "batch total"]:
    """Continue several texts of different lengths at once, always by the best token (exercise 15.4, 30 min).

    model:          model(input_ids, attention_mask) gives logits [batch, length, vocab]; those at place t
                    say what comes after the token at t. It keeps nothing: each call reads the whole text.
    attention_mask: 1 = real token. Rows are padded on the left, so that every row ends in text.
    eos_token_ids:  each of them ends the row that writes it; the list may be empty. One that stands in the
                    prompt ends nothing.
    Returns: prompts and new tokens. A row keeps the token that ended it and goes on with pad_token_id. It is
             over when every row has ended, or after max_new_tokens: there is no column of padding alone.

    Example: two rows, of which one writes 7 8 2 and the other 9 2, with 2 as the end and 0 as padding: the
    new columns are [[7, 8, 2], [9, 2, 0]], even if max_new_tokens is 10.
    Raises: ValueError if a row ends in padding.
    """
    # BEGIN SOLUTION 15.4
    if not attention_mask[:, -1].all():
        raise ValueError("a row ends in padding, and new tokens would follow it; pad rows on the left")
    ends = torch.tensor(eos_token_ids, dtype=torch.long)
    running = torch.ones(len(input_ids), dtype=torch.bool)
    for _ in range(max_new_tokens):
        # Every row ends in its newest token, so the last column predicts for all of them.
        token = model(input_ids, attention_mask)[:, -1].argmax(dim=-1)
        # A row that ended is still computed, since it stands in the batch, but what it says is not written.
        token = torch.where(running, token, pad_token_id)
        input_ids = torch.cat((input_ids, token[:, None]), dim=1)
        # New tokens are seen by those after them. In ended rows nothing matters any more.
        attention_mask = torch.cat((attention_mask, torch.ones_like(attention_mask[:, :1])), dim=1)
        # Once ended, always ended: the rows need not end in the same step. This comes after the token is
        # written, so the end itself stays in the text; and only the new token is looked at, not the prompt.
        running = running & ~torch.isin(token, ends)
        if not running.any():
            break
    return input_ids
    # END SOLUTION


def beam_step(
    scores: Float[Tensor, "batch beams"], log_probs: Float[Tensor, "batch beams vocab"], num_beams: int
) -> tuple[Float[Tensor, "batch num_beams"], Int[Tensor, "batch num_beams"], Int[Tensor, "batch num_beams"]]:
    """Choose the best ways to go on by one token, among all beams of a prompt (exercise 15.5, 20 min).

    scores:    the log-probability of each beam's text so far.
    log_probs: of each token after that text. The score of the longer text is the sum of the two.
    num_beams: how many to keep, which need not be as many as there are: a search begins with one beam.
    Returns:   for each prompt, best first: the new scores, the beam that each one continues, the token that
               it adds. Several may continue the same beam, and others die out.

    Example: scores [[-1, -2]] and log_probs [[[-1, -3], [-0.5, -1.5]]] with num_beams = 2 give scores
    [[-2, -2.5]], beams [[0, 1]] and tokens [[0, 0]].
    Raises: ValueError if there are fewer than num_beams ways to go on.
    """
    # BEGIN SOLUTION 15.5
    beams, vocab_size = log_probs.shape[1:]
    if num_beams > beams * vocab_size:
        raise ValueError(f"{beams} beams and {vocab_size} tokens have no {num_beams} different continuations")
    # Each beam's score goes with every token that may follow it.
    totals = scores[:, :, None] + log_probs
    # One list per prompt lets the beams compete. Prompts do not: the batch axis stays.
    candidates = rearrange(totals, "batch beams vocab -> batch (beams vocab)")
    best, place = candidates.topk(num_beams)
    # The list holds all tokens of beam 0, then all of beam 1, …: its places count in steps of the vocabulary.
    return best, place // vocab_size, place % vocab_size
    # END SOLUTION
