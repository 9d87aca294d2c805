"""Attention: queries look at keys and take a mixture of values. One module serves every layout."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from minilm import rope
from minilm.cache import DynamicLayer
from minilm.config import ModelConfig
from minilm.linear import Linear
from minilm.norm import Norm
from minilm.packed import PackedLayer, Texts

Hidden = Float[Tensor, "batch length hidden"]
Heads = Float[Tensor, "batch heads length head_dim"]
KVHeads = Float[Tensor, "batch kv_heads length head_dim"]


def split_heads(x: Float[Tensor, "batch length features"], num_heads: int) -> Heads:
    """Cut each token's features into num_heads consecutive pieces and bring the heads to the front."""
    batch, length, features = x.shape
    return x.view(batch, length, num_heads, features // num_heads).transpose(1, 2)


def merge_heads(x: Heads) -> Float[Tensor, "batch length features"]:
    """Undo split_heads: put the pieces of each token side by side again."""
    return x.transpose(1, 2).flatten(2)


def split_qkv_per_head(
    qkv: Float[Tensor, "batch length features"], num_heads: int
) -> tuple[Heads, Heads, Heads]:
    """Split fused rows that are stored head by head: query, key and value of head 0, then those of head 1, ….

    Three equal blocks of the rows would mix the heads, and the text would stay fluent enough to hide it.
    """
    return split_heads(qkv, num_heads).chunk(3, dim=-1)


def split_qkv_blocks(
    qkv: Float[Tensor, "batch length features"], num_heads: int, head_dim: int
) -> tuple[Heads, KVHeads, KVHeads]:
    """Split fused rows that are stored as three blocks: every query head, every key head, every value head.

    The number of key heads follows from the width: what the queries leave, halved.
    """
    query_width = num_heads * head_dim
    kv_width = (qkv.shape[-1] - query_width) // 2
    query, key, value = qkv.split((query_width, kv_width, kv_width), dim=-1)
    kv_heads = kv_width // head_dim
    return split_heads(query, num_heads), split_heads(key, kv_heads), split_heads(value, kv_heads)


def repeat_kv(
    x: Float[Tensor, "batch kv_heads length head_dim"], groups: int
) -> Float[Tensor, "batch heads length head_dim"]:
    """Give every query head its own copy of the key or value head that it shares.

    Returns: head h of the result is head h // groups of x (each head repeated in place, not the list of heads
             tiled).
    Source:  GQA, Ainslie et al. 2023, §2.2.
    """
    if groups == 1:
        return x
    batch, kv_heads, length, head_dim = x.shape
    return (
        x[:, :, None].expand(batch, kv_heads, groups, length, head_dim).reshape(batch, -1, length, head_dim)
    )


class AttentionLayer(nn.Module):
    """What self- and cross-attention share: calling a backend, and the way back to the residual stream."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        self.config = config
        shrink = layer_index + 1 if config.softmax == "float32_scaled" else None
        self.settings = {"scale": config.score_scale, "softmax": config.softmax, "shrink": shrink}

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | Texts | None, attend: Callable
    ) -> tuple[Hidden, Tensor | None]:
        """Returns the block's new contribution, and the attention weights where the backend keeps them."""
        dropout = self.config.attention_dropout if self.training else 0.0
        context, weights = attend(query, key, value, mask, dropout=dropout, **self.settings)
        return self.o_proj(merge_heads(context)), weights


class Attention(AttentionLayer):
    """Project to queries, keys and values; turn them to their positions; attend; project back."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__(config, layer_index)
        query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        if config.qkv_layout == "separate":
            self.q_proj = Linear(config.hidden_size, query_width, bias=config.qkv_bias)
            self.k_proj = Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
            self.v_proj = Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        else:
            self.qkv_proj = Linear(config.hidden_size, query_width + 2 * kv_width, bias=config.qkv_bias)
        self.o_proj = Linear(query_width, config.hidden_size, bias=config.out_bias)
        if config.qk_norm:
            self.q_norm = Norm(config, config.head_dim)
            self.k_norm = Norm(config, config.head_dim)

    def project(self, x: Hidden) -> tuple[Heads, KVHeads, KVHeads]:
        """Queries, keys and values per head, before the rotation."""
        config = self.config
        if config.qkv_layout == "separate":
            query = split_heads(self.q_proj(x), config.num_heads)
            key = split_heads(self.k_proj(x), config.num_kv_heads)
            value = split_heads(self.v_proj(x), config.num_kv_heads)
        elif config.qkv_layout == "per_head":
            query, key, value = split_qkv_per_head(self.qkv_proj(x), config.num_heads)
        else:
            query, key, value = split_qkv_blocks(self.qkv_proj(x), config.num_heads, config.head_dim)
        if config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key, value

    def forward(
        self,
        x: Hidden,
        cos_sin: tuple[Tensor, Tensor] | None,
        mask: Bool[Tensor, "..."] | Texts | None,
        cache: DynamicLayer | PackedLayer | None,
        attend: Callable,
    ) -> tuple[Hidden, Tensor | None]:
        """Returns what mix does, for each token of x looking at itself and what the cache holds."""
        query, key, value = self.project(x)
        if cos_sin is not None:
            query, key = rope.apply_rope(query, key, *cos_sin)
            if self.config.qkv_layout == "per_head":
                # The reference joins what is turned and the rest of a head, even no rest: this is its layout.
                query, key = query.contiguous(), key.contiguous()
        if cache is not None:
            key, value = cache.update(key, value)
        return self.mix(query, key, value, mask, attend)
