"""Exercises of notebook 09: who may see whom?

A mask says of every query and every key whether the query may look at the key: True = visible. Masks stay
boolean as long as they are joined with others; only attention itself needs numbers, which are exercise 9.4.

Check your answers with `python -m minilm.course check 9`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def causal_mask(query_length: int, key_length: int) -> Bool[Tensor, "1 1 query key"]:
    """The keys that each query may see when nobody looks ahead (exercise 9.1, 10 min).

    A decoder learns to predict each next token, so no token may see a later one. With a cache there are more
    keys than queries: the queries are then the last tokens, and query i stands at position
    key_length - query_length + i. The two axes of length 1 stand for batch and heads, which share the mask.

    Example: causal_mask(2, 4) has the rows [True, True, True, False] and [True, True, True, True].
    Raises: ValueError if query_length is greater than key_length: every query has a key of its own.
    """
    raise NotImplementedError("exercise 9.1")


def sliding_window_mask(query_length: int, key_length: int, window: int) -> Bool[Tensor, "1 1 query key"]:
    """The keys that each query may see when it looks back over a window only (exercise 9.2, 10 min).

    Mistral and some layers of Qwen2 do this, so that a token of a long text costs no more than one of a short
    text. A query sees `window` keys, its own and those just before it, or fewer at the start of the text. The
    queries are the last tokens, as in `causal_mask`.

    Example: sliding_window_mask(2, 4, 2) has the rows [False, True, True, False] and
    [False, False, True, True].
    Raises: ValueError if window is less than 1, or query_length greater than key_length.
    """
    raise NotImplementedError("exercise 9.2")


def combine_masks(
    causal: Bool[Tensor, "1 1 query key"],
    attention_mask: Int[Tensor, "batch key"] | Bool[Tensor, "batch key"],
) -> Bool[Tensor, "batch 1 query key"]:
    """Hide the padding of each row from all queries, besides what is hidden already (exercise 9.3, 10 min).

    The rows of a batch are filled up to one length with padding, which means nothing. The tokenizer's
    attention_mask says which keys are real (1 or True) and which are padding (0 or False). Only keys are
    hidden: a query that is padding itself is left as it is, since nobody reads what it computes. A row of
    the mask may become all False that way.

    Example: causal_mask(2, 2) and attention_mask [[0, 1]] give the rows [False, False] and [False, True].
    Raises: ValueError if attention_mask does not have one number for every key.
    """
    raise NotImplementedError("exercise 9.3")


def mask_to_bias(mask: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Turn a mask into numbers to be added to the scores before the softmax (exercise 9.4, 10 min).

    Where the mask is True the number is 0, which changes no score. Elsewhere it is the lowest finite number
    of dtype, torch.finfo(dtype).min: the softmax makes a weight of 0 of it. It is finite because the softmax
    of a row of -inf alone is 0/0, which is NaN.

    Example: the mask [True, False] and torch.float16 give [0.0, -65504.0].
    Raises: ValueError if mask is not boolean, or if dtype is not a floating one.
    """
    raise NotImplementedError("exercise 9.4")


def visible(
    query_positions: Int[Tensor, "#batch query"],
    key_positions: Int[Tensor, "#batch key"],
    key_valid: Bool[Tensor, "batch key"],
    window: int | None = None,
) -> Bool[Tensor, "batch 1 query key"]:
    """The one rule behind every mask, for queries and keys that stand anywhere (exercise 9.5, 15 min).

    A query sees the valid keys at or before its own position, and with a window only the last `window`
    positions, its own included. Keys need not come in order, nor are the queries always the last tokens: a
    cache of fixed size has slots that nothing was written to yet, and one that is filled in a circle has its
    oldest key anywhere. Both are described by the keys' positions and by key_valid, which is False at padding
    and at empty slots. Positions of [1, …] serve all rows of the batch.

    Example: query_positions [[5]], key_positions [[4, 5, 6, 3]], key_valid [[True, True, True, True]] and
    window 2 give the row [True, True, False, False].
    Raises: ValueError if window is less than 1.
    """
    raise NotImplementedError("exercise 9.5")
