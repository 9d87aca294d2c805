"""Exercises of notebook 08: why share keys?

In grouped-query attention several query heads read the same key and value head. The cache shrinks by the
size of the group, and the queries stay as many as they were.

Check your answers with `python -m minilm.course check 8`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def repeat_kv(
    x: Float[Tensor, "batch kv_heads length head_dim"], groups: int
) -> Float[Tensor, "batch heads length head_dim"]:
    """Give every query head its own copy of the key or value head that it shares (exercise 8.1, 10 min).

    Attention as a formula wants as many key heads as query heads. Query head h reads key head h // groups, so
    the heads 0 … groups - 1 of the result are copies of head 0 of x.

    Example: two heads [a, b] and groups = 3 give [a, a, a, b, b, b].
    Raises: ValueError if groups is less than 1.
    """
    raise NotImplementedError("exercise 8.1")


def kv_cache_bytes(
    num_layers: int, num_kv_heads: int, head_dim: int, length: int, batch: int, bytes_per_value: int
) -> int:
    """How much memory the key-value cache of a model takes (exercise 8.2, 5 min).

    Every layer keeps, for every token of every row, one key and one value per key head.

    Example: 2 layers, 3 key heads of 4 dimensions, 5 tokens, 1 row, 2 bytes per value (bf16): 480 bytes.
    """
    raise NotImplementedError("exercise 8.2")


def grouped_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    mask: Bool[Tensor, "#batch 1 query key"] | None = None,
) -> Float[Tensor, "batch heads query head_dim"]:
    """Attention in which groups of query heads share a key head, with no copy of it (exercise 8.3, 20 min).

    mask: True = visible; None lets every query see every key. A query that sees nothing gets 0.
    Scores are divided by √head_dim, and the softmax is taken in fp32. The result has query's dtype.

    Example: with one key head, all query heads read the same keys; with as many as query heads, it is
    ordinary multi-head attention.
    Raises: ValueError if heads is not a multiple of kv_heads.
    """
    raise NotImplementedError("exercise 8.3")
