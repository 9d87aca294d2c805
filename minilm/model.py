"""The decoder: embed the tokens, add what each block contributes to the residual stream, normalise."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minilm import backends, checks, cross_attention, masks, rope
from minilm.attention import Attention
from minilm.cache import DynamicCache, DynamicLayer
from minilm.config import ModelConfig
from minilm.cross_attention import CrossAttention
from minilm.initialize import make_table
from minilm.linear import Linear
from minilm.mlp import make_mlp
from minilm.norm import Norm
from minilm.packed import PackedLayer, Packing, Texts

Hidden = Float[Tensor, "batch length hidden"]
Mask = Bool[Tensor, "..."] | Texts | None  # None: plain causal attention


class Block(nn.Module):
    """One layer: attention and MLP, each on a normalised copy of the residual stream, each added to it.

        sequential                           parallel
        h = x + attention(norm(x))           x + attention(norm(x)) + mlp(other_norm(x))
        h + mlp(other_norm(h))

    With cross-attention, h + cross_attention(third_norm(h), memory) takes the place of h in the second line.
    """  # fmt: skip

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        self.parallel = config.residual == "parallel"
        self.attention_norm = Norm(config)
        self.attention = Attention(config, layer_index)
        if config.cross_attention:
            self.cross_norm = Norm(config)
            self.cross_attention = CrossAttention(config, layer_index)
        self.mlp_norm = Norm(config)
        self.mlp = make_mlp(config)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self,
        x: Hidden,
        cos_sin: tuple[Tensor, Tensor] | None,
        mask: Mask,
        cache: DynamicLayer | PackedLayer | None,
        attend: Callable,
        memory: tuple[Tensor, Tensor, Mask] | None = None,
    ) -> tuple[Hidden, Tensor | None, Tensor | None]:
        """memory: keys, values and mask for cross-attention.

        Returns the residual stream after this block, and the weights of attention and of cross-attention if
        the backend has them.
        """
        attended, weights = self.attention(self.attention_norm(x), cos_sin, mask, cache, attend)
        attended = self.drop(attended)
        if self.parallel:
            # The reference adds the two branches first; in floating point the order shows.
            return self.drop(self.mlp(self.mlp_norm(x))) + attended + x, weights, None
        x, cross_weights = attended + x, None
        if memory is not None:
            read, cross_weights = self.cross_attention(self.cross_norm(x), *memory, attend)
            x = self.drop(read) + x
        return self.drop(self.mlp(self.mlp_norm(x))) + x, weights, cross_weights

    def drop(self, x: Hidden) -> Hidden:
        """Dropout while training; a call that does nothing would still cost a decoding step its time."""
        return self.dropout(x) if self.training else x


@dataclass
class DecoderOutput:
    """What the trunk hands to a head."""

    hidden: Hidden  # after the final norm
    cache: DynamicCache | None
    attentions: tuple[Tensor, ...] | None  # per block: [batch, heads, query, key]
    # The embeddings, then the stream after each block; the last one is normalised.
    hidden_states: tuple[Hidden, ...] | None
    cross_attentions: tuple[Tensor, ...] | None = None  # per block: [batch, heads, query, memory]


class Decoder(nn.Module):
    """The trunk that every task shares: from token ids to one normalised vector per token."""

    def __init__(self, config: ModelConfig, backend: str = "sdpa"):
        super().__init__()
        checks.structure(config, "a model")
        self.config = config
        self.embed_tokens = make_table(config.vocab_size, config.hidden_size)
        if config.rope is None:
            self.embed_positions = make_table(config.max_positions, config.hidden_size)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_layers))
        self.final_norm = Norm(config)
        self.backend = backend

    @property
    def backend(self) -> str:
        """How attention is computed, and with it whether products keep the reference's bits ("eager")."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        backends.select(name)  # refuses a name that does not exist
        self._backend = name
        for module in self.modules():
            if isinstance(module, Linear):
                module.exact = name == "eager"

    def embed(self, input_ids: Int[Tensor, "batch length"]) -> Hidden:
        """Look the tokens up in the table, scaled where the model asks for it."""
        embedded = self.embed_tokens(input_ids)
        if self.config.scale_embeddings:
            # The factor is rounded to the embeddings' dtype first: √3072 is 55.4256, but 55.5 in bf16.
            embedded = embedded * torch.tensor(self.config.hidden_size**0.5, dtype=embedded.dtype)
        return embedded

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        *,
        inputs_embeds: Hidden | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#batch length"] | None = None,
        cache: DynamicCache | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> DecoderOutput:
        """memory, memory_mask: what cross-attention looks at, as `cross_attention.read_memory` takes it."""
        attend = backends.select(self.backend)
        if output_attentions and self.backend != "eager":
            raise ValueError(
                f"backend {self.backend!r} does not keep attention weights; set model.backend = 'eager' to "
                "get them"
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        config, device = self.config, self.embed_tokens.weight.device
        if inputs_embeds is None:
            checks.token_ids(input_ids, config.vocab_size, device)
        else:
            checks.embeddings(inputs_embeds, config.hidden_size, device)
        if cache is not None:
            checks.cache(cache, config)
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        (batch, length), seen = x.shape[:2], cache.length if cache is not None else 0
        checks.mask(attention_mask, batch, length, seen, config.num_heads, device)
        if position_ids is not None:
            checks.positions(position_ids, batch, length, device)

        x, cos_sin = self.place(x, position_ids, attention_mask, seen)
        packing = self._packing(attention_mask, x, seen)
        held = cross_attention.read_memory(self, memory, memory_mask, cache, len(x))
        reads = cross_attention.for_blocks(held, len(self.layers), x.shape[1], packing)
        layer_masks = self._layer_masks(attention_mask, x.shape[1], seen, cache, packing, x.device)
        if packing is not None:
            x = packing.pack(x)
            cos_sin = None if cos_sin is None else tuple(packing.pack(angles) for angles in cos_sin)

        x = self.dropout(x)
        hidden_states, attentions, cross_attentions = [x], [], []
        for index, block in enumerate(self.layers):
            mask = layer_masks[self.config.window(index)]
            if packing is not None:
                layer_cache = packing.layer(cache, index, mask)
            else:
                layer_cache = cache.layers[index] if cache is not None else None
            x, weights, cross_weights = block(x, cos_sin, mask, layer_cache, attend, reads[index])
            if output_attentions:
                attentions.append(weights)
                cross_attentions.append(cross_weights)
            if output_hidden_states:
                hidden_states.append(x)
        x = self.final_norm(x)
        hidden_states = [*hidden_states[:-1], x]
        if packing is not None:
            hidden_states = [packing.unpack(state) for state in hidden_states]
        return DecoderOutput(
            hidden=hidden_states[-1],
            cache=cache,
            attentions=tuple(attentions) if output_attentions else None,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            cross_attentions=tuple(cross_attentions) if output_attentions and held is not None else None,
        )

    def _packing(self, attention_mask: Tensor | None, x: Hidden, seen: int) -> Packing | None:
        """How to leave the padding out, where the backend can: then the blocks see one row of real tokens."""
        # A single token per row has no padding around it, and on a CPU torch's own kernel is faster then.
        if self.backend != "flash" or (x.shape[1] == 1 and x.device.type == "cpu"):
            return None
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(
                "the flash backend takes padding masks only; set model.backend = 'sdpa' for 4-D masks"
            )
        return Packing(attention_mask, x.shape[0], x.shape[1], seen, x.device)

    def place(
        self, x: Hidden, position_ids: Tensor | None, attention_mask: Tensor | None, seen: int
    ) -> tuple[Hidden, tuple[Tensor, Tensor] | None]:
        """Tell embedded tokens where they stand: by adding learned positions, or by the angles for RoPE.

        seen: how many tokens the cache holds. Returns: the embeddings, and cos and sin where there is RoPE.
        """
        if position_ids is None:
            position_ids = self._default_positions(attention_mask, x, seen)
        if self.config.rope is None:
            checks.learned_positions(position_ids, self.config.max_positions)
            return x + self.embed_positions(position_ids), None
        return x, self._cos_sin(position_ids, x.dtype)

    def _default_positions(
        self, attention_mask: Tensor | None, x: Hidden, seen: int
    ) -> Int[Tensor, "_ length"]:
        """Count the real tokens of each row; without padding, go on from what the cache has seen."""
        if attention_mask is not None and attention_mask.ndim == 2:
            return masks.position_ids_from_mask(attention_mask)[:, seen:]
        return torch.arange(seen, seen + x.shape[1], device=x.device)[None]

    def _cos_sin(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        config = self.config
        # Only dynamic scaling depends on the length, and reading it would make a GPU wait.
        seq_len = int(position_ids.max()) + 1 if config.rope.scaling == "dynamic" else 0
        inv_freq = rope.frequencies(config.rope, config.rotary_dim, config.max_positions, seq_len)
        scale = rope.attention_factor(config.rope)
        return rope.cos_sin(position_ids, inv_freq.to(position_ids.device), dtype, scale)

    def _layer_masks(
        self,
        attention_mask: Tensor | None,
        query_length: int,
        seen: int,
        cache: DynamicCache | None,
        packing: Packing | None,
        device: torch.device,
    ) -> dict[int | None, Mask]:
        """One mask for each kind of layer, by its window; None where plain causal attention is right."""
        made: dict[int | None, Mask] = {}
        for index in range(len(self.layers)):
            window = self.config.window(index)
            if window in made:
                continue
            first = cache.layers[index].first_position if cache is not None else 0
            if attention_mask is not None and attention_mask.ndim == 4:
                made[window] = attention_mask[..., first:]
                continue
            if packing is not None:
                made[window] = packing.texts(first, window)
                continue
            key_length = seen + query_length - first
            key_valid = attention_mask[:, first:].bool() if attention_mask is not None else None
            if masks.causal_flag_suffices(query_length, key_length, key_valid, window):
                made[window] = None
                continue
            positions = torch.arange(first, seen + query_length, device=device)[None]
            made[window] = masks.visible(positions[:, -query_length:], positions, key_valid, window)
        return made
