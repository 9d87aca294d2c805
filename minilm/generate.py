"""Generating: run the model, choose a token, append it, again. Every filter is a function of the logits."""

import sys
from collections.abc import Iterable
from typing import Protocol, TextIO, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minilm.cache import DynamicCache
from minilm.heads import CausalLM
from minilm.tokenizer import Tokenizer

Logits = Float[Tensor, "batch vocab"]
Ids = Int[Tensor, "batch length"]


@runtime_checkable
class Streamer(Protocol):
    """Whoever wants the tokens as they come: first the prompt, then one token per row and step."""

    def put(self, ids: Tensor) -> None: ...

    def end(self) -> None: ...


class TextStreamer:
    """Prints one row's new text as soon as its characters are complete; the prompt itself is not repeated."""

    def __init__(self, tokenizer: Tokenizer, file: TextIO | None = None):
        self.tokenizer, self.file = tokenizer, file
        self.ids: list[int] = []
        self.printed = 0
        self.prompt_seen = False

    def put(self, ids: Tensor) -> None:
        """Take the prompt, then one token after the other."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.ids += ids.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # a character of several bytes may be half there
            self._write(text)

    def end(self) -> None:
        """Print what is left, and a new line."""
        self._write(self.tokenizer.decode(self.ids, skip_special_tokens=True) + "\n")
        self.ids, self.printed, self.prompt_seen = [], 0, False

    def _write(self, text: str) -> None:
        print(text[self.printed :], end="", flush=True, file=self.file or sys.stdout)
        self.printed = len(text)


def penalize_repetition(logits: Logits, input_ids: Ids, penalty: float) -> Logits:
    """Make tokens that already stand in the row less likely: divide positive scores, multiply negative ones.

    Source: CTRL, Keskar et al. 2019, §4.1.
    """
    scores = logits.gather(1, input_ids)
    return logits.scatter(1, input_ids, torch.where(scores < 0, scores * penalty, scores / penalty))


def top_k_filter(logits: Logits, k: int) -> Logits:
    """Keep the k best tokens of each row (more where they tie with the k-th); the others become impossible."""
    kth_best = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth_best, -torch.inf)


def top_p_filter(logits: Logits, p: float) -> Logits:
    """Keep the smallest set of best tokens whose probability reaches p, and always the best one.

    The token that crosses the threshold belongs to the set: the worst ones are dropped while they sum to 1 - p or less.
    Source: nucleus sampling, Holtzman et al. 2019.
    """
    ascending, order = logits.sort(dim=-1)
    dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    dropped[:, -1] = False
    return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def choose(
    logits: Logits,
    do_sample: bool,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Int[Tensor, " batch"]:
    """The next token of each row: the best one, or one drawn after temperature, top-k and top-p, in this order."""
    if not do_sample:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k is not None:
        logits = top_k_filter(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = top_p_filter(logits, top_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)


@torch.no_grad()
def generate(
    model: CausalLM,
    input_ids: Ids,
    attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"] | None = None,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    eos_token_id: int | Iterable[int] | None = None,
    pad_token_id: int | None = None,
    generator: torch.Generator | None = None,
    streamer: Streamer | None = None,
) -> Int[Tensor, "batch total"]:
    """Continue each row by up to max_new_tokens tokens, as transformers' generate does, token for token.

    attention_mask: 1 = real token; rows of different lengths are padded on the left, so that every row ends in text.
    eos_token_id:   what ends a row: None = the checkpoint's own, [] = nothing, an id or several.
    Returns: prompt and new tokens; a row that ended early goes on with pad_token_id.
    Raises: ValueError for settings that cannot be, before anything is computed.
    """
    _check_settings(
        model, input_ids, attention_mask, max_new_tokens, temperature, top_k, top_p, repetition_penalty
    )
    stop_ids = torch.tensor(end_tokens(model, eos_token_id), dtype=torch.long, device=input_ids.device)
    pad_id = _pad_token(model, pad_token_id, stop_ids)
    if attention_mask is not None:
        attention_mask = None if bool(attention_mask.all()) else attention_mask.long()

    if streamer is not None:
        streamer.put(input_ids.cpu())
    was_training = model.training
    model.eval()
    cache = DynamicCache(model.config)
    running = torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    step_ids = input_ids
    try:
        for _ in range(max_new_tokens):
            out = model(step_ids, attention_mask=attention_mask, cache=cache, logits_to_keep=1)
            logits = out.logits[:, -1].float()
            if repetition_penalty != 1.0:
                logits = penalize_repetition(logits, input_ids, repetition_penalty)
            token = choose(logits, do_sample, temperature, top_k, top_p, generator)
            token = torch.where(running, token, pad_id)
            running = running & ~torch.isin(token, stop_ids)
            step_ids = token[:, None]
            input_ids = torch.cat((input_ids, step_ids), dim=1)
            if attention_mask is not None:
                attention_mask = torch.cat((attention_mask, torch.ones_like(step_ids)), dim=1)
            if streamer is not None:
                streamer.put(token.cpu())
            if not running.any():
                break
    finally:
        model.train(was_training)
        if streamer is not None:
            streamer.end()
    return input_ids


def end_tokens(model: CausalLM, eos_token_id: int | Iterable[int] | None) -> list[int]:
    """The ids that end a row: those given, else those of generation_config.json, else those of config.json."""
    if eos_token_id is None:
        eos_token_id = model.generation_config.get("eos_token_id")
    if eos_token_id is None:
        eos_token_id = model.config.eos_token_ids
    return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)


def _pad_token(model: CausalLM, pad_token_id: int | None, stop_ids: Tensor) -> int:
    """What fills a row after its end; any id serves where nothing is ever filled."""
    candidates = (pad_token_id, model.generation_config.get("pad_token_id"), model.config.pad_token_id)
    given = next((candidate for candidate in candidates if candidate is not None), None)
    if given is not None:
        return given
    return int(stop_ids[0]) if len(stop_ids) else 0


def _check_settings(
    model: CausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float,
) -> None:
    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(message)

    require(input_ids.ndim == 2 and input_ids.shape[1] > 0, f"input_ids is {tuple(input_ids.shape)}; give [batch, length] "
            "with at least one token, for instance the tokenizer's beginning-of-text token")  # fmt: skip
    require(max_new_tokens >= 0, f"max_new_tokens is {max_new_tokens}; it must be 0 or more")
    require(
        temperature > 0,
        f"temperature is {temperature}; it must be positive (do_sample=False always takes the best)",
    )
    require(
        top_k is None or top_k > 0, f"top_k is {top_k}; it must be at least 1, or None to keep all tokens"
    )
    require(
        top_p is None or 0 < top_p <= 1,
        f"top_p is {top_p}; it must lie in (0, 1], or None to keep all tokens",
    )
    require(
        repetition_penalty > 0,
        f"repetition_penalty is {repetition_penalty}; it must be positive (1 changes nothing)",
    )
    total = input_ids.shape[1] + max_new_tokens
    limit = model.config.max_positions
    require(model.config.rope is not None or total <= limit, f"{input_ids.shape[1]} prompt tokens and {max_new_tokens} "
            f"new ones are {total}, but this model has learned {limit} positions; shorten one of them")  # fmt: skip
    if attention_mask is not None:
        require(attention_mask.shape == input_ids.shape, f"attention_mask is {tuple(attention_mask.shape)}; it must have "
                f"the shape of input_ids, {tuple(input_ids.shape)}")  # fmt: skip
        require(bool(attention_mask[:, -1].all()), "a row ends in padding, and new tokens would follow it; "
                "pad rows on the left to generate from them")  # fmt: skip
