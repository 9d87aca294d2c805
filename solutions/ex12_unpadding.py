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
    # BEGIN SOLUTION 12.1
    if attention_mask.ndim != 2:
        raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}; it must be [batch, length]")
    real = attention_mask.bool()
    # As one row, token t of row i stands at i · length + t.
    indices = real.flatten().nonzero().flatten()
    lengths = real.sum(dim=-1)
    # A row begins where all rows before it end: [2, 3] becomes [2, 5], and the first row begins at 0.
    ends = lengths.cumsum(dim=0)
    boundaries = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    return indices, boundaries, int(lengths.max())
    # END SOLUTION


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
    # BEGIN SOLUTION 12.2
    if x.ndim < 2:
        raise ValueError(f"x is {tuple(x.shape)}; it must be [batch, length, …], its padding included")
    # Batch and length become one axis, and only these two: whatever a token has stays together.
    return x.flatten(0, 1)[indices]
    # END SOLUTION


def pad(
    x: Shaped[Tensor, "total *features"], indices: Int[Tensor, " total"], batch: int, length: int
) -> Shaped[Tensor, "batch length *features"]:
    """Undo unpad: put the tokens back where they stood, with 0 where the padding was (exercise 12.3, 10 min).

    Example: [a, b, c, d, e] with indices [0, 1, 4, 5, 6], batch 2 and length 4 gives
    [[a, b, 0, 0], [c, d, e, 0]].
    Returns: the dtype of x.
    Raises: ValueError if there is not one index per token.
    """
    # BEGIN SOLUTION 12.3
    if len(x) != len(indices):
        raise ValueError(f"{len(x)} tokens and {len(indices)} indices; every token needs its place")
    flat = x.new_zeros(batch * length, *x.shape[1:])  # new_zeros: the dtype and device of x
    # Indexing on the left side writes: token number n goes to place indices[n].
    flat[indices] = x
    return flat.view(batch, length, *x.shape[1:])
    # END SOLUTION


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
    # BEGIN SOLUTION 12.4
    for name, boundaries, total in (("q", cu_seqlens_q, len(query)), ("k", cu_seqlens_k, len(key))):
        if boundaries.dtype != torch.int32:
            raise ValueError(f"cu_seqlens_{name} is {boundaries.dtype}; kernels read torch.int32")
        if boundaries[0] != 0 or boundaries[-1] != total:
            raise ValueError(
                f"cu_seqlens_{name} is {boundaries.tolist()}; cumulative lengths run from 0 to {total}"
            )
    if len(cu_seqlens_q) != len(cu_seqlens_k):
        raise ValueError(
            f"{len(cu_seqlens_q) - 1} sequences of queries and {len(cu_seqlens_k) - 1} of keys; a sequence "
            "without queries or keys needs its place too"
        )
    groups = query.shape[1] // key.shape[1]
    # A kernel gives each sequence to another part of the GPU. Here we cut, and go one by one.
    queries = query.split(cu_seqlens_q.diff().tolist())
    keys, values = (x.split(cu_seqlens_k.diff().tolist()) for x in (key, value))
    results = []
    for q, k, v in zip(queries, keys, values, strict=True):
        q = q.transpose(0, 1)  # [heads, query, head_dim]
        k, v = (x.transpose(0, 1).repeat_interleave(groups, dim=0) for x in (k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        hidden = torch.zeros(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        if causal:
            # Query i stands at key i + (keys - queries), so that the last query stands at the last key.
            places = torch.arange(len(hidden), device=scores.device) + hidden.shape[1] - hidden.shape[0]
            hidden = torch.arange(hidden.shape[1], device=scores.device) > places[:, None]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        # A row that is hidden as a whole is NaN after the softmax; it becomes 0. With no keys at all, the
        # product below is a sum of nothing, which is 0 as well.
        weights = weights.masked_fill(hidden, 0.0).to(v.dtype)
        results.append((weights @ v).transpose(0, 1))
    return torch.cat(results)
    # END SOLUTION


def packed_position_ids(cu_seqlens: Int32[Tensor, " batch_plus_1"]) -> Int[Tensor, " total"]:
    """The position of every packed token in its own sequence, counted from 0 (exercise 12.5, 10 min).

    Positions must begin anew with every sequence. Else the second document of a packed row would stand where
    no model was trained, and learned positions would run out.

    Returns: int64.

    Example: [0, 2, 2, 5] (three sequences, the second one empty) gives [0, 1, 0, 1, 2].
    Raises: ValueError if cu_seqlens does not begin with 0, as lengths do not.
    """
    # BEGIN SOLUTION 12.5
    if cu_seqlens[0] != 0:
        raise ValueError(f"cu_seqlens is {cu_seqlens.tolist()}; cumulative lengths begin with 0")
    # Number the tokens of the whole row, and take from each the place where its sequence begins.
    lengths = cu_seqlens.diff()
    begins = cu_seqlens[:-1].repeat_interleave(lengths)
    return torch.arange(len(begins), device=cu_seqlens.device) - begins
    # END SOLUTION
