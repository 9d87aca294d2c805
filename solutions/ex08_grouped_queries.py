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
    # BEGIN SOLUTION 8.1
    if groups < 1:
        raise ValueError(f"groups is {groups}; each key head serves at least one query head")
    batch, kv_heads, length, head_dim = x.shape
    # A new axis behind the heads, then the same head along it: [a, b] becomes [[a, a, a], [b, b, b]] …
    copies = x[:, :, None].expand(batch, kv_heads, groups, length, head_dim)
    # … and reading the two axes as one gives a, a, a, b, b, b. With the axis in front it would be a, b, a, b.
    return copies.reshape(batch, kv_heads * groups, length, head_dim)
    # END SOLUTION


def kv_cache_bytes(
    num_layers: int, num_kv_heads: int, head_dim: int, length: int, batch: int, bytes_per_value: int
) -> int:
    """How much memory the key-value cache of a model takes (exercise 8.2, 5 min).

    Every layer keeps, for every token of every row, one key and one value per key head.

    Example: 2 layers, 3 key heads of 4 dimensions, 5 tokens, 1 row, 2 bytes per value (bf16): 480 bytes.
    """
    # BEGIN SOLUTION 8.2
    values_per_token = 2 * num_kv_heads * head_dim  # 2: a key and a value
    return num_layers * batch * length * values_per_token * bytes_per_value
    # END SOLUTION


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
    # BEGIN SOLUTION 8.3
    batch, heads, queries, head_dim = query.shape
    kv_heads = key.shape[1]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads evenly")
    # Give the queries the group axis instead of giving the keys copies: head h is member h % groups of group
    # h // groups. The keys get an axis of length 1 there, which matmul stretches without copying.
    grouped = query.view(batch, kv_heads, heads // kv_heads, queries, head_dim)
    scores = grouped @ key[:, :, None].transpose(-1, -2) / head_dim**0.5
    scores = scores.float()
    if mask is not None:
        scores = scores.masked_fill(~mask[:, :, None], -torch.inf)
    # A row of -inf alone is 0/0 in the softmax: NaN, which would spread. Such a query gets nothing instead.
    weights = scores.softmax(dim=-1).nan_to_num(0.0).to(value.dtype)
    return (weights @ value[:, :, None]).reshape(query.shape)
    # END SOLUTION
