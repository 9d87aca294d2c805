"""Exercises of notebook 11: how to attend without the matrix of all scores?

A softmax seems to need a whole row of scores at once. It does not: keep the largest score and the sum of
exponentials of what was seen so far, and correct both when a larger score comes.

Check your answers with `python -m minilm.course check 11`.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def online_softmax(blocks: Iterable[Float[Tensor, "*batch block"]]) -> Float[Tensor, "*batch key"]:
    """The softmax of a row of scores that comes in blocks, each seen once (exercise 11.1, 20 min).

    On a GPU a block of scores lies in the small memory of the chip, and the next one takes its place. So it
    is here: all blocks come in one buffer, and a block is gone when the next one is asked for. Keep what you
    compute from it, not the block.

    blocks:  the scores along the last axis, in any number of pieces of any sizes. -inf = hidden.
    Returns: the softmax of all of them, side by side, in the dtype of the blocks; computed in fp32. Where
             every score of a row is -inf, its weights are 0.

    Example: blocks [0, ln 2] and [ln 3]. After the first, the largest score is ln 2, and the sum of the
    exponentials measured from it is 1/2 + 1 = 1.5. The second raises the peak to ln 3 and makes the sum
    1.5 · 2/3 + 1 = 2. The result is [1/6, 2/6, 3/6].
    Raises: ValueError if there is no block.
    """
    # BEGIN SOLUTION 11.1
    kept = []  # for each block its exponentials, and the peak that they are measured from
    peak, total = torch.tensor(-torch.inf), torch.tensor(0.0)
    for block in blocks:
        scores = block.to(torch.promote_types(block.dtype, torch.float32))
        new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
        # A row that has seen nothing but -inf has the peak -inf, and -inf - -inf is NaN. Measured from 0
        # instead, its exponentials are exp(-inf) = 0.
        origin = new_peak.masked_fill(new_peak == -torch.inf, 0.0)
        weights = torch.exp(scores - origin)
        # The old sum was measured from the old peak: e^(s - old) · e^(old - new) = e^(s - new).
        total = total * torch.exp(peak - origin) + weights.sum(-1, keepdim=True)
        peak = new_peak
        kept.append((weights, peak))
    if not kept:
        raise ValueError("there are no blocks; a softmax is taken over one score or more")
    # Now the last peak is known, and the same factor brings every block to it.
    weights = torch.cat([weights * torch.exp(old_peak - origin) for weights, old_peak in kept], dim=-1)
    return (weights / total.masked_fill(total == 0, 1.0)).to(block.dtype)
    # END SOLUTION


def merge_attention(
    out_a: Float[Tensor, "batch heads query head_dim"],
    lse_a: Float[Tensor, "batch heads query"],
    out_b: Float[Tensor, "batch heads query head_dim"],
    lse_b: Float[Tensor, "batch heads query"],
) -> tuple[Float[Tensor, "batch heads query head_dim"], Float[Tensor, "batch heads query"]]:
    """Attention over two sets of keys, from the attention over each of them (exercise 11.2, 15 min).

    A long text's keys may lie on two devices. Each device attends to its own, and says with its result how
    much its keys weigh: lse, the logarithm of the sum of exp(score) over them. So the sum itself is exp(lse),
    and the results mix in proportion to the two sums.

    lse is in fp32, and -inf where a query sees no key of a set; then out is 0 there. It may also be too large
    for exp. The weights are computed in fp32.
    Returns: out in the dtype of out_a, and the lse of all keys in fp32. Where neither set has a key to see:
             0 and -inf.

    Example: values 4 and 8 with lse ln 1 and ln 3 give (1 · 4 + 3 · 8) / (1 + 3) = 7 with lse ln 4.
    Raises: ValueError if an lse has not the shape of its out without head_dim.
    """
    # BEGIN SOLUTION 11.2
    for out, lse in ((out_a, lse_a), (out_b, lse_b)):
        if lse.shape != out.shape[:-1]:
            raise ValueError(
                f"lse is {tuple(lse.shape)} for an out of {tuple(out.shape)}; it holds one number per query "
                f"and head: {tuple(out.shape[:-1])}"
            )
    peak = torch.maximum(lse_a, lse_b)
    # Neither set has a key: measured from 0 both weights are exp(-inf) = 0, while -inf - -inf would be NaN.
    origin = peak.masked_fill(peak == -torch.inf, 0.0)
    weight_a, weight_b = torch.exp(lse_a - origin), torch.exp(lse_b - origin)
    total = weight_a + weight_b  # at least 1, for the larger lse lies at the origin; or 0
    share_a, share_b = (
        (weight / total.masked_fill(total == 0, 1.0))[..., None] for weight in (weight_a, weight_b)
    )
    # total was measured from the origin, so its logarithm gets the origin back. Without keys: log 0 = -inf.
    return (share_a * out_a + share_b * out_b).to(out_a.dtype), origin + total.log()
    # END SOLUTION


def flash_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    block_size: int,
    causal: bool,
) -> tuple[Float[Tensor, "batch heads query head_dim"], Float[Tensor, "batch heads query"]]:
    """Exact attention that never holds the [query, key] matrix of scores (exercise 11.3, 40 min).

    Go through tiles of block_size queries and block_size keys; the last ones may be smaller. Nothing as large
    as query × key may be made, and the mask is such a thing too. Query head h reads key head
    h // (heads // kv_heads), and scores are divided by √head_dim.

    causal: the queries are the last of the keys, as with a cache. For 2 queries and 5 keys:

        1 1 1 1 0
        1 1 1 1 1

    Everything is computed in fp32, the scores too, since fp16 ends at 65504.
    Returns: out in query's dtype; lse in fp32, the logarithm of the sum of exp(score) of each query. A query
             that sees no key has out 0 and lse -inf. Gradients are not asked for: you may write in place.

    Example: with all queries 0, out is the mean of the values that a query sees, and lse the logarithm of
    their number: in the picture above, ln 4 and ln 5.
    Raises: ValueError if block_size is less than 1 or heads is not a multiple of kv_heads.
    """
    # BEGIN SOLUTION 11.3
    batch, heads, queries, head_dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; a tile holds at least one query and one key")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads evenly")
    wide = torch.promote_types(query.dtype, torch.float32)
    # The queries get an axis for the members of a group, the keys one of length 1: no key is copied.
    grouped = query.to(wide).view(batch, kv_heads, heads // kv_heads, queries, head_dim) / head_dim**0.5
    wide_key, wide_value = key.to(wide)[:, :, None], value.to(wide)[:, :, None]
    query_places = torch.arange(queries, device=query.device) + keys - queries  # the last query: keys - 1
    key_places = torch.arange(keys, device=query.device)

    outs, lses = [], []
    for first_query in range(0, queries, block_size):
        rows = slice(first_query, first_query + block_size)
        tile_query, places = grouped[..., rows, :], query_places[rows, None]
        # What is known of the keys so far: the largest score, and two sums of exp(score - peak), one of them
        # with the values.
        peak = tile_query.new_full((*tile_query.shape[:-1], 1), -torch.inf)
        total, accumulator = torch.zeros_like(peak), torch.zeros_like(tile_query)
        for first_key in range(0, keys, block_size):
            columns = slice(first_key, first_key + block_size)
            if causal and first_key > places[-1]:
                break  # this tile and all later ones lie in the future of all these queries
            scores = tile_query @ wide_key[..., columns, :].transpose(-1, -2)
            if causal:
                scores = scores.masked_fill(key_places[columns] > places, -torch.inf)
            new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
            origin = new_peak.masked_fill(new_peak == -torch.inf, 0.0)  # -inf - -inf would be NaN
            weights = torch.exp(scores - origin)
            shrink = torch.exp(peak - origin)  # both sums were measured from the old peak
            total = total * shrink + weights.sum(-1, keepdim=True)
            accumulator = accumulator * shrink + weights @ wide_value[..., columns, :]
            peak = new_peak
        # Divide once, at the end. A query that saw no key has total 0: out 0 / 1, and lse -inf + log 0.
        outs.append(accumulator / total.masked_fill(total == 0, 1.0))
        lses.append((peak + total.log()).squeeze(-1))
    out, lse = torch.cat(outs, dim=-2), torch.cat(lses, dim=-1)
    return out.reshape(query.shape).to(query.dtype), lse.reshape(batch, heads, queries)
    # END SOLUTION
