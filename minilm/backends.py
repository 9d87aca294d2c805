"""Three ways to compute attention behind one interface: the model never knows which one runs.

A backend takes queries, keys and values per head (fewer key heads than query heads under GQA) and a boolean
mask, or None for plain causal attention, and returns the context of every head. Only eager also returns the
attention weights; only flash also takes the boundaries of packed texts in place of a mask.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minilm import attention, masks, packed

Queries = Float[Tensor, "batch heads query head_dim"]
Keys = Float[Tensor, "batch kv_heads key head_dim"]
Mask = Bool[Tensor, "#batch #heads query key"]
Weights = Float[Tensor, "batch heads query key"]


def attention_scores(
    query: Queries, key: Float[Tensor, "batch heads key head_dim"], scale: float, shrink: int | None
) -> Weights:
    """How well each query matches each key: their product times scale.

    Where fp16 would overflow, shrink makes the product so many times smaller, and undoes it in fp32.
    """
    if shrink is None or query.dtype == torch.float32:
        return torch.matmul(query, key.transpose(2, 3)) * scale
    flat_query, flat_key = query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)
    # beta=0 ignores the first argument; alpha scales inside the kernel, before the product is rounded.
    scores = torch.baddbmm(flat_query.new_zeros(()), flat_query, flat_key, beta=0, alpha=scale / shrink)
    return scores.view(*query.shape[:2], *scores.shape[1:]).float() * shrink


def attention_weights(scores: Weights, mask: Mask, softmax: str) -> Weights:
    """Softmax over the visible keys. A query that sees none gets weight 0 everywhere, not NaN."""
    lowest = torch.finfo(scores.dtype).min
    # A negative score may carry the lowest number on to -inf; a row of nothing else would become NaN.
    scores = (scores + masks.mask_to_bias(mask, scores.dtype)).clamp(min=lowest)
    weights = nn.functional.softmax(scores, dim=-1, dtype=None if softmax == "input" else torch.float32)
    return weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def eager_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    mask: Mask | None,
    *,
    scale: float,
    dropout: float = 0.0,
    softmax: str = "float32",
    shrink: int | None = None,
) -> tuple[Queries, Weights]:
    """Attention as the formula says it, one operation a line: softmax(Q·Kᵀ·scale + bias)·V.

    Every step is rounded as transformers 5.23 rounds it on CPU. shrink and softmax are ModelConfig.softmax.
    Source: Vaswani et al. 2017, §3.2.1.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = attention.repeat_kv(key, groups), attention.repeat_kv(value, groups)
    if mask is None:
        mask = masks.causal_mask(query.shape[2], key.shape[2], query.device)
    scores = attention_scores(query, key, scale, shrink)
    weights = attention_weights(scores, mask, softmax).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=dropout > 0)
    return torch.matmul(weights, value), weights


def sdpa_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    mask: Mask | None,
    *,
    scale: float,
    dropout: float = 0.0,
    softmax: str = "float32",
    shrink: int | None = None,
) -> tuple[Queries, None]:
    """torch's fused kernel, which never stores the score matrix in fp32 and keeps no weights to return.

    The kernel always accumulates in fp32, so the softmax variants of the eager backend do not apply.
    """
    batch, heads, query_length, head_dim = query.shape
    kv_heads = key.shape[1]
    if query_length == 1 and (mask is None or mask.shape[1] == 1):
        # One query per head: the heads of a group become queries of their key head, so no key is repeated.
        grouped = query.reshape(batch, kv_heads, heads // kv_heads, head_dim)
        context = nn.functional.scaled_dot_product_attention(
            grouped, key, value, attn_mask=mask, dropout_p=dropout, scale=scale
        )
        return context.reshape(query.shape), None
    context = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and query_length > 1,
        dropout_p=dropout,
        scale=scale,
        enable_gqa=kv_heads != heads,
    )
    return context, None


def flash_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    mask: packed.Texts | Mask | None,
    *,
    scale: float,
    dropout: float = 0.0,
    softmax: str = "float32",
    shrink: int | None = None,
) -> tuple[Queries, None]:
    """FlashAttention on packed texts; on rows that were not packed, torch's fused kernel.

    Source: Dao et al. 2022; flash.varlen_kernel says which implementation a device gets.
    """
    if isinstance(mask, packed.Texts):
        return packed.attention(query, key, value, mask, scale, dropout), None
    return sdpa_attention(query, key, value, mask, scale=scale, dropout=dropout)


NAMES = ("eager", "sdpa", "flash")


def select(name: str) -> Callable:
    """The function of a backend, looked up now, so that a replacement put into this module is found."""
    if name not in NAMES:
        raise ValueError(f"backend {name!r} does not exist; choose one of {', '.join(NAMES)}")
    return {"eager": eager_attention, "sdpa": sdpa_attention, "flash": flash_attention}[name]
