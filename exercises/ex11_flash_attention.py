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
    raise NotImplementedError("exercise 11.1")


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
    raise NotImplementedError("exercise 11.2")


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
    raise NotImplementedError("exercise 11.3")
