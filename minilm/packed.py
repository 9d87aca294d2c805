"""A whole decoder on real tokens only: unpad once at the entry, pad once at the exit.

Norms, projections and MLPs treat every token by itself, so a packed batch [1, total, hidden] goes through the
blocks like one long row. Only attention must know where each text begins, and the cache keeps its padded
form.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minilm import flash, unpad
from minilm.cache import DynamicCache, DynamicLayer
from minilm.unpad import RealTokens


@dataclass(frozen=True)
class Texts:
    """What attention must know of a packed batch in one kind of layer."""

    queries: RealTokens
    keys: RealTokens
    window: int | None
    causal: bool = True  # False: the keys are a memory, of which each query sees all


class Packing:
    """How a padded batch and its cache are packed, and how results get back to their places."""

    def __init__(
        self, attention_mask: Tensor | None, batch: int, length: int, seen: int, device: torch.device
    ):
        if attention_mask is None:
            attention_mask = torch.ones(batch, seen + length, dtype=torch.long, device=device)
        self.mask, self.batch, self.length = attention_mask, batch, length
        self.queries = unpad.real_tokens(attention_mask[:, seen:])

    def pack(self, x: Float[Tensor, "_ length features"]) -> Float[Tensor, "1 total features"]:
        """The real tokens end to end; what all rows share is taken once per row."""
        return unpad.unpad(x.expand(self.batch, -1, -1), self.queries.indices)[None]

    def unpack(self, x: Float[Tensor, "1 total features"]) -> Float[Tensor, "batch length features"]:
        """The tokens back in their places, zeros at the padding."""
        return unpad.pad(x[0], self.queries.indices, self.batch, self.length)

    def texts(self, first_position: int, window: int | None) -> Texts:
        """The boundaries for layers whose keys begin at first_position."""
        return Texts(self.queries, unpad.real_tokens(self.mask[:, first_position:]), window)

    def memory_texts(self, real: Bool[Tensor, "batch memory"]) -> Texts:
        """The boundaries for cross-attention: each text looks at the real places of its row's memory."""
        return Texts(self.queries, unpad.real_tokens(real), window=None, causal=False)

    def layer(self, cache: DynamicCache | None, index: int, texts: Texts) -> "PackedLayer | None":
        """One layer of the cache, for packed keys."""
        return None if cache is None else PackedLayer(cache.layers[index], self, texts)


class PackedLayer:
    """A layer of a cache that takes and returns packed keys, and stores them padded."""

    def __init__(self, layer: DynamicLayer, packing: Packing, texts: Texts):
        self.held, self.packing, self.texts = layer, packing, texts

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append packed keys and values [1, kv_heads, total, head_dim]; return all real ones, packed
        likewise.
        """
        padded = (self.packing.unpack(x.transpose(1, 2).flatten(2)) for x in (key, value))
        heads, head_dim = key.shape[1], key.shape[3]
        held = self.held.update(*(x.unflatten(2, (heads, head_dim)).transpose(1, 2) for x in padded))
        return tuple(pack_heads(x, self.texts.keys.indices) for x in held)


def pack_heads(
    x: Float[Tensor, "batch kv_heads length head_dim"], indices: Int[Tensor, " total"]
) -> Float[Tensor, "1 kv_heads total head_dim"]:
    """Keys or values of the real tokens only, end to end."""
    return unpad.unpad(x.transpose(1, 2), indices).transpose(0, 1)[None]


def attention(
    query: Float[Tensor, "1 heads queries head_dim"],
    key: Float[Tensor, "1 kv_heads keys head_dim"],
    value: Float[Tensor, "1 kv_heads keys head_dim"],
    texts: Texts,
    scale: float,
    dropout: float,
) -> Float[Tensor, "1 heads queries head_dim"]:
    """Attention within each text of a packed batch, by the best kernel that the device has."""
    _, kernel = flash.varlen_kernel(query.device)
    context = kernel(
        *(x[0].transpose(0, 1) for x in (query, key, value)),
        texts.queries.cu_seqlens,
        texts.keys.cu_seqlens,
        texts.queries.longest,
        texts.keys.longest,
        dropout_p=dropout,
        softmax_scale=scale,
        causal=texts.causal,
        window_size=(-1 if texts.window is None else texts.window - 1, -1 if texts.window is None else 0),
    )
    return context.transpose(0, 1)[None]
