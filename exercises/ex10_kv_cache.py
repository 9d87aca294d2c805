"""Exercises of notebook 10: why is token 1000 not 1000 times dearer?

Keys and values of a token never change, since no token sees a later one. So a model computes them once and
keeps them: the key-value cache. Each class here is the cache of one layer; a model has as many as layers.

Check your answers with `python -m minilm.course check 10`.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

NewTokens = Float[Tensor, "batch kv_heads length head_dim"]
AllTokens = Float[Tensor, "batch kv_heads total head_dim"]
Slots = Float[Tensor, "batch kv_heads max_length head_dim"]
OldRows = Float[Tensor, "rows kv_heads length head_dim"]
NewRows = Float[Tensor, "new_rows kv_heads length head_dim"]


class DynamicCache:
    """The keys and values of one layer, which grow with the text (exercise 10.1, 15 min).

    Attention hands it the keys and values of the tokens that were just read, and goes on with those of all
    tokens so far.
    """

    def __init__(self):
        # Of all tokens so far, [batch, kv_heads, length, head_dim]; None before the first update.
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def update(self, key: NewTokens, value: NewTokens) -> tuple[AllTokens, AllTokens]:
        """Append the keys and values of new tokens; return those of all tokens so far, the oldest first.

        Example: update with 5 tokens, then with 1: the second call returns the keys and values of 6 tokens.
        Raises: ValueError if batch, kv_heads or head_dim are not those of the tokens before.
        """
        raise NotImplementedError("exercise 10.1")


class StaticCache:
    """The keys and values of one layer in buffers of fixed size (exercise 10.2, 15 min).

    All memory is taken at once, and neither an address nor a shape ever changes: what a compiled decoding
    step needs. Attention reads the whole buffers each time, and a mask hides the slots that hold nothing yet.
    """

    def __init__(self, batch: int, kv_heads: int, max_length: int, head_dim: int):
        """Take fp32 buffers for keys and values, with max_length slots for tokens, filled with 0."""
        raise NotImplementedError("exercise 10.2")

    def update(
        self, key: NewTokens, value: NewTokens, positions: Int[Tensor, " length"]
    ) -> tuple[Slots, Slots]:
        """Write the keys and values of new tokens into the slots `positions`; return the whole buffers.

        The caller knows the positions; the cache itself counts nothing. A slot that is written again holds
        what was written last, so that tokens can be taken back.

        Example: with max_length 4, tokens at positions [0, 1] and then one at [2] leave only slot 3 empty.
        Returns: the buffers themselves, the same memory each time.
        Raises: ValueError if a position is not one of 0 … max_length - 1.
        """
        raise NotImplementedError("exercise 10.2")


class SlidingWindowCache:
    """The keys and values that a layer with a sliding window can still see (exercise 10.3, 15 min).

    Each query sees `window` keys, its own included. The next token brings its own key, so window - 1 stored
    ones are enough for it, however long the text is.
    """

    def __init__(self, window: int):
        """Raises: ValueError if window is less than 1."""
        raise NotImplementedError("exercise 10.3")

    def update(self, key: NewTokens, value: NewTokens) -> tuple[AllTokens, AllTokens]:
        """Return what is stored followed by what is new, oldest first; keep the last window - 1 tokens of it.

        Nothing is left out of what is returned: the first of several new tokens sees further back than the
        last, and a mask gives each of them its window.

        Example: with window 4, update with 7 tokens returns these 7, and the next one, with 1 token, returns
        4: three that were kept, and the new one.
        """
        raise NotImplementedError("exercise 10.3")


def reorder(
    cache: list[tuple[OldRows, OldRows]], beam_index: Int[Tensor, " new_rows"]
) -> list[tuple[NewRows, NewRows]]:
    """Give each row of the batch the history of the row that it continues (exercise 10.4, 10 min).

    Beam search keeps several texts per prompt, one per row. At each step some are dropped and others go on in
    two ways: new row i continues old row beam_index[i], and needs its keys and values. There may be more new
    rows than old ones, when a prompt that was read once is continued in several ways.

    cache: a pair (keys, values) for every layer.
    Example: beam_index [2, 0, 0] on a cache of rows a, b, c gives the rows c, a, a.
    Returns: a new list of pairs; the old cache stays as it is.
    Raises: ValueError if beam_index names a row that does not exist.
    """
    raise NotImplementedError("exercise 10.4")


def greedy_decode(
    model: Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]],
    input_ids: Int[Tensor, "batch length"],
    steps: int,
) -> Int[Tensor, "batch total"]:
    """Continue each row by its likeliest token, `steps` times, with a cache (exercise 10.5, 20 min).

    The first call of the model reads the prompt, each further call one token per row: the one that was chosen
    last. So every token is read once, and the last one not at all: the model is called `steps` times.

    model: model(input_ids, position_ids, cache) reads new tokens and returns logits and a cache. input_ids
           [batch, new] are the new tokens alone; position_ids [1, new] say where in the text they stand,
           counted from 0; cache is what the call before returned, None in the first call. The logits
           [batch, new, vocab] score what may follow each of the new tokens.

    Example: a prompt of 5 tokens and 3 steps make three calls, with 5, 1 and 1 tokens, at the positions
    0 … 4, 5 and 6. A network of this package becomes such a model like this:

        def model(input_ids, position_ids, cache):
            cache = cache or minilm.DynamicCache(network.config)
            return network(input_ids, position_ids=position_ids, cache=cache).logits, cache

    Returns: the prompt followed by the new tokens.
    Raises: ValueError if steps is negative or the prompt has no tokens.
    """
    raise NotImplementedError("exercise 10.5")
