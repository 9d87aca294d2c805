"""Speculative decoding: guess several tokens cheaply, check them in one pass, keep those that were right.

Reading k tokens costs the model little more than reading one, because both read every weight once. Every
token that is kept is the one that greedy decoding would have chosen, whatever the guesses were.
Source: Leviathan et al. 2022; prompt lookup, Saxena 2023.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from minilm import checks
from minilm.cache import DynamicCache
from minilm.heads import CausalLM

Draft = Callable[
    [list[int], int], list[int]
]  # (all ids so far, how many at most) -> guesses of the next ones


def prompt_lookup(ids: list[int], limit: int, longest: int = 3) -> list[int]:
    """Guess that the text goes on as it did the last time that its last few tokens occurred."""
    for size in range(min(longest, len(ids) - 1), 0, -1):
        ending = ids[-size:]
        for start in range(len(ids) - size - 1, -1, -1):
            if ids[start : start + size] == ending:
                return ids[start + size : start + size + limit]
    return []


class DraftModel:
    """Guesses with a smaller model of the same vocabulary, which keeps a cache of its own."""

    def __init__(self, model: CausalLM):
        self.model, self.cache, self.seen = model, DynamicCache(model.config), []

    def __call__(self, ids: list[int], limit: int) -> list[int]:
        """Take back what the large model refused, read what it chose, and go on greedily."""
        common = next(
            (i for i, (a, b) in enumerate(zip(self.seen, ids, strict=False)) if a != b), len(self.seen)
        )
        common = min(common, len(ids) - 1)
        common = self.cache.go_back(common)
        pending, guesses = ids[common:], []
        while len(guesses) < limit:
            step = torch.tensor([pending], device=self.model.device)
            pending = [int(self.model(step, cache=self.cache, logits_to_keep=1).logits[0, -1].argmax())]
            guesses += pending
        self.seen = (ids + guesses)[: self.cache.length]
        return guesses


@torch.no_grad()
def speculate(
    model: CausalLM,
    input_ids: Int[Tensor, "1 length"],
    cache: DynamicCache,
    draft: Draft,
    *,
    max_new_tokens: int,
    stop_ids: Int[Tensor, " stops"],
    guesses: int = 8,
    put: Callable[[Tensor], None] = lambda token: None,
) -> Int[Tensor, "1 total"]:
    """Greedy decoding of one row, several tokens per step where the guesses are right.

    The model reads its last token and the guesses at once. Its choice after each position is what greedy
    decoding gives there, as long as everything before was right: so choices are kept up to the first that is
    not the guess, the cache is cut back to them, and the last one kept costs nothing extra.
    """
    ids = input_ids[0].tolist()
    unread, total, stops = ids[cache.length :], len(ids) + max_new_tokens, set(stop_ids.tolist())
    while len(ids) < total:
        guessed = draft(ids, min(guesses, total - len(ids) - 1))
        step = torch.tensor([unread + guessed], device=input_ids.device)
        logits = model(step, cache=cache, logits_to_keep=len(guessed) + 1).logits[0]
        if len(ids) == input_ids.shape[1]:
            checks.scores(logits, model)
        chosen = logits.float().argmax(dim=-1).tolist()
        right = next(
            (i for i, (a, b) in enumerate(zip(guessed, chosen, strict=False)) if a != b), len(guessed)
        )
        kept = chosen[: right + 1]
        ended = next((i for i, token in enumerate(kept) if token in stops), None)
        if ended is not None:
            kept = kept[: ended + 1]
        ids += kept
        for token in kept:
            put(torch.tensor([token]))
        if ended is not None:
            break
        unread = ids[-1:]
        cache.crop(len(ids) - 1)
    return torch.tensor([ids], dtype=input_ids.dtype, device=input_ids.device)
