"""Cross-attention: each token of a text looks at a memory, such as the states of an encoder.

It is attention with keys and values from elsewhere. A memory has no order relative to the text, so nothing is
causal and nothing is rotated; and it does not grow, so its keys and values are computed once per text:

    first pass     memory ── kv_proj ──> keys, values of every block ──> kept in the cache
    every pass     text ──── q_proj ───> queries ── look at all real places of the memory
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minilm.attention import AttentionLayer, Hidden, KVHeads, split_heads
from minilm.cache import DynamicCache, Memory
from minilm.config import ModelConfig
from minilm.linear import Linear
from minilm.packed import Packing, Texts, pack_heads


class CrossAttention(AttentionLayer):
    """Queries from the text, keys and values from the memory; multi-head, grouped and multi-query alike.

    The rows of kv_proj are two blocks, all keys and then all values, whatever the layout of self-attention.
    Source: Vaswani et al. 2017, §3.2.3; layout and rounding of transformers' GPT-2.
    """

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__(config, layer_index)
        query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query_width, bias=config.qkv_bias)
        self.kv_proj = Linear(config.hidden_size, 2 * kv_width, bias=config.qkv_bias)
        self.o_proj = Linear(query_width, config.hidden_size, bias=config.out_bias)

    def project(self, memory: Float[Tensor, "batch memory hidden"]) -> tuple[KVHeads, KVHeads]:
        """The keys and values of a memory."""
        key, value = self.kv_proj(memory).chunk(2, dim=-1)
        return split_heads(key, self.config.num_kv_heads), split_heads(value, self.config.num_kv_heads)

    def forward(
        self,
        x: Hidden,
        key: Float[Tensor, "_ kv_heads memory head_dim"],
        value: Float[Tensor, "_ kv_heads memory head_dim"],
        mask: Bool[Tensor, "..."] | Texts,
        attend: Callable,
    ) -> tuple[Hidden, Tensor | None]:
        """Returns what mix does. A row whose memory is all padding reads 0: it contributes o_proj's bias."""
        return self.mix(split_heads(self.q_proj(x), self.config.num_heads), key, value, mask, attend)


def read_memory(
    decoder: nn.Module,
    memory: Tensor | None,
    memory_mask: Tensor | None,
    cache: DynamicCache | None,
    batch: int,
) -> Memory | None:
    """Project a memory for all blocks of a Decoder, or find it in the cache, which keeps it for later passes.

    memory:      [batch, memory_length, hidden], which transformers calls encoder_hidden_states; for a model
                 with cross-attention, and once per cache.
    memory_mask: [batch, memory_length] with 1 = real (encoder_attention_mask); None means that all of it is.
    Returns:     None for a model without cross-attention.
    Raises:      ValueError for a memory that is missing, not wanted, there twice, or of a wrong shape.
    """
    held = cache.memory if cache is not None else None
    _check_memory(decoder.config, memory, memory_mask, held, batch, decoder.embed_tokens.weight.dtype)
    if memory is None:
        return held
    real = memory.new_ones(memory.shape[:2]) if memory_mask is None else memory_mask
    found = Memory(tuple(block.cross_attention.project(memory) for block in decoder.layers), real.bool())
    if cache is not None:
        cache.memory = found
    return found


def for_blocks(
    memory: Memory | None, num_layers: int, query_length: int, packing: Packing | None
) -> list[tuple[Tensor, Tensor, Bool[Tensor, "batch 1 query memory"] | Texts] | None]:
    """For each block the keys, values and mask of its cross-attention; None where there is none.

    Where texts are packed, the real places of their memories are packed as well.
    """
    if memory is None:
        return [None] * num_layers
    if packing is not None:
        texts = packing.memory_texts(memory.real)
        return [(*(pack_heads(x, texts.keys.indices) for x in pair), texts) for pair in memory.layers]
    mask = memory.real[:, None, None].expand(-1, -1, query_length, -1)
    return [(*pair, mask) for pair in memory.layers]


def _check_memory(
    config: ModelConfig,
    memory: Tensor | None,
    memory_mask: Tensor | None,
    held: Memory | None,
    batch: int,
    dtype: torch.dtype,
) -> None:
    """Refuse a memory that is missing, not wanted, there twice (held: in the cache), or of a wrong shape."""
    if not config.cross_attention:
        if memory is not None or memory_mask is not None or held is not None:
            raise ValueError(
                "a memory was given to a model without cross-attention; leave memory and memory_mask out, or "
                "use a model whose config has cross_attention=True"
            )
        return
    if held is not None:
        if memory is not None or memory_mask is not None:
            raise ValueError(
                "the cache holds a memory already, and it is read once; leave memory and memory_mask out, or "
                "reset() the cache for another memory"
            )
        if len(held.real) != batch:
            raise ValueError(
                f"the cache holds a memory for {len(held.real)} rows and {batch} were given; use one cache "
                "per batch, or reset it"
            )
        return
    if memory is None:
        raise ValueError(
            f"this model has cross-attention; give memory [batch, memory_length, hidden] = ({batch}, any, "
            f"{config.hidden_size}), or a cache that holds one from an earlier pass"
        )
    shape = tuple(memory.shape)
    if len(shape) != 3 or (shape[0], shape[2]) != (batch, config.hidden_size) or not shape[1]:
        raise ValueError(
            f"memory is {shape}; it must be [batch, memory_length, hidden] = ({batch}, 1 or more, "
            f"{config.hidden_size})"
        )
    if memory.dtype != dtype:
        raise ValueError(f"memory is {memory.dtype} and the model {dtype}; convert it with .to({dtype})")
    if memory_mask is not None and tuple(memory_mask.shape) != shape[:2]:
        raise ValueError(
            f"memory_mask is {tuple(memory_mask.shape)}; it must be [batch, memory_length] = {shape[:2]}, "
            "with 1 = real"
        )
