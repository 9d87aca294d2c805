"""Exercises of notebook 12: why compute padding at all?

The rows of a batch differ in length, and padding makes them equal. Instead, the real tokens can be laid end
to end, computed, and put back. Attention then has to know where each sequence begins.

    padded [2, 4]       packed [5]      indices       cu_seqlens
    a b . .             a b c d e       0 1 4 5 6     0 2 5
    c d e .

Check your answers with `python -m minilm.course check 12`.
"""

import torch
from jaxtyping import Bool, Float, Int, Int32, Shaped
from torch import Tensor


def cu_seqlens(
    attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"],
) -> tuple[Int[Tensor, " total"], Int32[Tensor, " batch_plus_1"], int]:
    """Find the real tokens of a batch, and where each row begins among them (exercise 12.1, 15 min).

    attention_mask: 1 or True = real. Padding may stand on either side, or in the middle; a row may be all
                    padding.
    Returns: indices     the places of the real tokens in the batch as one row of batch·length, in order;
                         int64
             cu_seqlens  cumulative lengths: row i is packed[cu_seqlens[i] : cu_seqlens[i + 1]]. int32, as the
                         kernels want it
             longest     tokens of the longest row, a Python int

    Example: [[1, 1, 0, 0], [1, 1, 1, 0]] gives [0, 1, 4, 5, 6], [0, 2, 5] and 3.
    Raises: ValueError if the mask is not [batch, length].
    """
    raise NotImplementedError("exercise 12.1")


def unpad(
    x: Shaped[Tensor, "batch length *features"], indices: Int[Tensor, " total"]
) -> Shaped[Tensor, "total *features"]:
    """Take the real tokens out of a padded batch (exercise 12.2, 5 min).

    What a layer computes token by token (norms, MLP, projections) can then run on real tokens only.

    x:       any dtype; any number of axes behind the length: ids have none, hidden states one, heads two.
    indices: places in the batch as one row of batch·length, from cu_seqlens.

    Example: [[a, b, ., .], [c, d, e, .]] and [0, 1, 4, 5, 6] give [a, b, c, d, e].
    Raises: ValueError if x has fewer than two axes.
    """
    raise NotImplementedError("exercise 12.2")


def pad(
    x: Shaped[Tensor, "total *features"], indices: Int[Tensor, " total"], batch: int, length: int
) -> Shaped[Tensor, "batch length *features"]:
    """Undo unpad: put the tokens back where they stood, with 0 where the padding was (exercise 12.3, 10 min).

    Example: [a, b, c, d, e] with indices [0, 1, 4, 5, 6], batch 2 and length 4 gives
    [[a, b, 0, 0], [c, d, e, 0]].
    Returns: the dtype of x.
    Raises: ValueError if there is not one index per token.
    """
    raise NotImplementedError("exercise 12.3")


def varlen_attention(
    query: Float[Tensor, "total_q heads head_dim"],
    key: Float[Tensor, "total_k kv_heads head_dim"],
    value: Float[Tensor, "total_k kv_heads head_dim"],
    cu_seqlens_q: Int32[Tensor, " batch_plus_1"],
    cu_seqlens_k: Int32[Tensor, " batch_plus_1"],
    causal: bool,
) -> Float[Tensor, "total_q heads head_dim"]:
    """Attention within each of many sequences that are laid end to end (exercise 12.4, 30 min).

    Queries of sequence i see keys of sequence i only. It has the queries from cu_seqlens_q[i] up to
    cu_seqlens_q[i + 1], and the keys likewise; with a cache it has more keys than queries. It may have none
    of either.

    causal: the queries are the last of their sequence's keys: with 2 queries and 5 keys, the first sees 4.
    Query head h reads key head h // (heads // kv_heads). Scores are divided by √head_dim, and the softmax is
    taken in fp32. A query that sees no key gets 0. The result has query's dtype.

    Example: cu_seqlens [0, 1, 3] for both, not causal: token 0 sees itself alone and gets its own value;
    tokens 1 and 2 see each other.
    Raises: ValueError if cu_seqlens are not int32, do not run from 0 to the number of tokens (lengths do
            not), or differ in their number of sequences.
    """
    raise NotImplementedError("exercise 12.4")


def packed_position_ids(cu_seqlens: Int32[Tensor, " batch_plus_1"]) -> Int[Tensor, " total"]:
    """The position of every packed token in its own sequence, counted from 0 (exercise 12.5, 10 min).

    Positions must begin anew with every sequence. Else the second document of a packed row would stand where
    no model was trained, and learned positions would run out.

    Returns: int64.

    Example: [0, 2, 2, 5] (three sequences, the second one empty) gives [0, 1, 0, 1, 2].
    Raises: ValueError if cu_seqlens does not begin with 0, as lengths do not.
    """
    raise NotImplementedError("exercise 12.5")
