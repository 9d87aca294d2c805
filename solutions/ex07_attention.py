"""Exercises of notebook 07: how do tokens look at each other?

Attention is a soft dictionary: a query is compared with every key, and the result is a mixture of the values,
each weighted by how well its key matched. It is the only place in a decoder where tokens meet.

Check your answers with `python -m minilm.course check 7`.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


def stable_softmax(scores: Float[Tensor, "*batch key"]) -> Float[Tensor, "*batch key"]:
    """Turn scores into weights that are positive and sum to 1, in fp32 (exercise 7.1, 10 min).

    Along the last axis, weight i is exp(score i) / Σ exp(score j). It must work for large scores too:
    exp(100) is infinite in fp32, and infinity / infinity is NaN. A score of -inf gives weight 0.
    Whatever dtype the scores have, every step is computed in fp32, and the result is fp32: computed in bf16,
    a weight among a hundred may be off by 2 %. torch.softmax does all this; here you write it.

    Example: [0, ln 3] gives [1/4, 3/4], and so does [1000, 1000 + ln 3].
    """
    # BEGIN SOLUTION 7.1
    scores = scores.float()
    # Subtracting the same number from all scores of a row divides numerator and denominator alike. With the
    # row's maximum, the largest exponential is exp(0) = 1: none is infinite, and the sum is at least 1.
    exponentials = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)
    # END SOLUTION


def attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch heads key head_dim"],
    value: Float[Tensor, "batch heads key head_dim"],
    mask: Bool[Tensor, "#batch #heads query key"] | None = None,
) -> tuple[Float[Tensor, "batch heads query head_dim"], Float[Tensor, "batch heads query key"]]:
    """Mix the values by how well each query matches the keys (exercise 7.2, 20 min).

    output = weights · value, with weights = softmax(query · keyᵀ / √head_dim) over the keys. Without the
    root, the scores of wider heads would spread further, and the softmax would pick one key, not mix many.
    mask: True = visible; None lets every query see every key. A hidden key has weight 0. A query that sees no
    key has weights 0 and output 0, and its gradients are 0 too.
    The softmax is taken in fp32 (exercise 7.1). Both results have query's dtype.

    Returns: output, weights.
    Example: head_dim 1, query [1], keys [0] and [ln 3], values [0] and [4] give the weights [1/4, 3/4] and
    the output [3].
    Raises: ValueError if mask is not boolean: 0 and 1 might stand for hidden and visible, or be added.
    """
    # BEGIN SOLUTION 7.2
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}; it must be boolean, True = visible")
    # Every query with every key: [query, head_dim] · [head_dim, key]. A product of head_dim random numbers of
    # variance 1 has the variance head_dim; the root of it brings the scores back to variance 1.
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        # Before the softmax, so that the visible weights sum to 1. exp(-inf) is 0.
        scores = scores.masked_fill(~mask, -torch.inf)
    # A row of -inf alone is 0/0 in the softmax: NaN, which becomes 0 here. masked_fill passes no gradient to
    # the places that it fills, so the NaN does not come back through the gradients either.
    weights = stable_softmax(scores).nan_to_num(0.0).to(query.dtype)
    return weights @ value, weights
    # END SOLUTION


def split_qkv_per_head(
    qkv: Float[Tensor, "batch length features"], num_heads: int
) -> tuple[
    Float[Tensor, "batch heads length head_dim"],
    Float[Tensor, "batch heads length head_dim"],
    Float[Tensor, "batch heads length head_dim"],
]:
    """Take queries, keys and values out of a projection that is stored head by head (exercise 7.3, 10 min).

    One matrix makes all three at once. In GPT-NeoX its features are, in this order: query, key and value of
    head 0, then query, key and value of head 1, and so on.

    Example: two heads of width 1 and the features [0, 1, 2, 3, 4, 5]: the queries are 0 and 3, the keys 1
    and 4, the values 2 and 5.
    Raises: ValueError if the features are not num_heads times query, key and value of one width.
    """
    # BEGIN SOLUTION 7.3
    if qkv.shape[-1] % (3 * num_heads):
        raise ValueError(f"{qkv.shape[-1]} features are not query, key and value for {num_heads} heads")
    # The axis of features counts heads slowest and dimensions fastest, and in between it counts 0, 1, 2 for
    # query, key and value. That middle axis comes to the front, where the three can be taken apart.
    query, key, value = rearrange(
        qkv,
        "batch length (heads three head_dim) -> three batch heads length head_dim",
        heads=num_heads,
        three=3,
    )
    return query, key, value
    # END SOLUTION


def split_qkv_blocks(
    qkv: Float[Tensor, "batch length features"], num_heads: int, head_dim: int
) -> tuple[
    Float[Tensor, "batch heads length head_dim"],
    Float[Tensor, "batch kv_heads length head_dim"],
    Float[Tensor, "batch kv_heads length head_dim"],
]:
    """Take queries, keys and values out of a projection that is stored in blocks (exercise 7.4, 10 min).

    Here the features are all query heads, then all key heads, then all value heads. There may be fewer key
    heads than query heads: GPT-BigCode has a single one. How many there are follows from the width: what the
    queries leave is half keys and half values.

    Example: two query heads of width 1 and the features [0, 1, 2, 3]: the queries are 0 and 1, the key is 2,
    the value is 3. With the features [0, 1, 2, 3, 4, 5] the keys are 2 and 3, the values 4 and 5.
    Raises: ValueError if the queries do not leave as many key heads as value heads, one of each or more.
    """
    # BEGIN SOLUTION 7.4
    query_width = num_heads * head_dim
    rest = qkv.shape[-1] - query_width
    if rest <= 0 or rest % (2 * head_dim):
        raise ValueError(
            f"{qkv.shape[-1]} features: {rest} more than {num_heads} query heads of {head_dim}. That must be "
            f"a positive multiple of {2 * head_dim}, the width of a key head and a value head"
        )
    blocks = qkv.split((query_width, rest // 2, rest // 2), dim=-1)
    # Within a block the heads stand side by side. The single key head of BigCode keeps its axis, of length 1.
    query, key, value = (
        rearrange(block, "batch length (heads head_dim) -> batch heads length head_dim", head_dim=head_dim)
        for block in blocks
    )
    return query, key, value
    # END SOLUTION
