"""The key-value cache: what attention has already computed, so that a new token costs one token.

A cache is a plain object that is passed to the model. It holds one layer object per block, each of the kind
that the block needs: one that grows, one of fixed size, or one that keeps only what a sliding window can
still see.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minilm import checks
from minilm.config import ModelConfig

Heads = Float[Tensor, "batch kv_heads length head_dim"]
AllHeads = Float[Tensor, "batch kv_heads total head_dim"]


class DynamicLayer:
    """Keys and values of one block for all tokens so far, in a buffer that doubles when it is full."""

    def __init__(self):
        # Keys and values, each [batch, kv_heads, capacity, head_dim]; only the first `length` places count.
        self.buffers: tuple[Tensor, Tensor] | None = None
        self.length = 0  # tokens seen
        self.room = 64  # how many tokens the first buffer holds; who knows how many will come can say so

    @property
    def first_position(self) -> int:
        """The place in the sequence of the first key that the next update returns."""
        return 0

    def update(self, key: Heads, value: Heads) -> tuple[AllHeads, AllHeads]:
        """Append new keys and values; return all that the new queries may see."""
        start, end = self.length, self.length + key.shape[-2]
        if self.buffers is not None:
            check_fits(self.buffers[0], key)
        if key.requires_grad:
            # Writing into a buffer would overwrite what the backward pass needs; this is slower and
            # differentiable.
            old = (buffer[:, :, :start] for buffer in self.buffers or (key[:, :, :0], value[:, :, :0]))
            self.buffers = tuple(torch.cat(pair, dim=2) for pair in zip(old, (key, value), strict=True))
        else:
            self.reserve(end, key)
            self.buffers[0][:, :, start:end] = key
            self.buffers[1][:, :, start:end] = value
        self.length = end
        return self.buffers[0][:, :, :end], self.buffers[1][:, :, :end]

    def reserve(self, length: int, like: Heads) -> None:
        """Make room for `length` tokens. Doubling keeps the copying at a constant share per token."""
        capacity = 0 if self.buffers is None else self.buffers[0].shape[2]
        if length <= capacity:
            return
        batch, kv_heads, _, head_dim = like.shape
        shape = (batch, kv_heads, max(length, 2 * capacity, self.room), head_dim)
        grown = like.new_empty(shape), like.new_empty(shape)
        for new, old in zip(grown, self.buffers or (), strict=False):
            new[:, :, : self.length] = old[:, :, : self.length]
        self.buffers = grown

    def can_crop(self, length: int) -> bool:
        """Whether the layer still holds what it needs to go back to its first `length` tokens."""
        return True

    def crop(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        self.length = min(self.length, length)
        if self.buffers is not None and self.buffers[0].requires_grad:
            self.buffers = tuple(buffer[:, :, : self.length] for buffer in self.buffers)

    def reset(self) -> None:
        """Forget everything."""
        self.buffers, self.length = None, 0

    def select(self, rows: Int[Tensor, " batch"]) -> None:
        """Keep these rows of the batch, in this order; a row may be taken several times."""
        if self.buffers is not None:
            self.buffers = tuple(buffer[rows] for buffer in self.buffers)


class StaticLayer(DynamicLayer):
    """Keys and values in a buffer of fixed size, allocated once: addresses and shapes never change."""

    def __init__(
        self, batch_size: int, kv_heads: int, max_length: int, head_dim: int, dtype: torch.dtype, device
    ):
        super().__init__()
        shape = (batch_size, kv_heads, max_length, head_dim)
        self.buffers = tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))

    def update(self, key: Heads, value: Heads) -> tuple[AllHeads, AllHeads]:
        if key.requires_grad:
            raise ValueError(
                "a static cache cannot be trained through; use torch.no_grad(), or a DynamicCache"
            )
        return super().update(key, value)

    def reserve(self, length: int, like: Heads) -> None:
        capacity = self.buffers[0].shape[2]
        if length > capacity:
            raise ValueError(
                f"the static cache holds {capacity} tokens; it has {self.length} and cannot take "
                f"{length - self.length} more. Make it with a larger max_length, or reset() it for a new text"
            )

    def reset(self) -> None:
        self.length = 0

    def select(self, rows: Int[Tensor, " batch"]) -> None:
        for buffer in self.buffers:
            if len(rows) != buffer.shape[0]:
                raise ValueError(
                    f"a static cache keeps its {buffer.shape[0]} rows; {len(rows)} were selected"
                )
            buffer.copy_(buffer[rows])


class SlidingLayer(DynamicLayer):
    """Keys and values of a block whose queries see only the last `window` tokens; older ones are dropped."""

    def __init__(self, window: int):
        super().__init__()
        self.window = window

    @property
    def first_position(self) -> int:
        return self.length - self.kept(self.length)

    def kept(self, length: int) -> int:
        """The next query adds its own key, so window - 1 stored ones are enough for it."""
        return min(self.window - 1, length)

    def update(self, key: Heads, value: Heads) -> tuple[AllHeads, AllHeads]:
        if self.buffers is None:
            self.buffers = key.contiguous(), value.contiguous()  # a view would keep all of q, k and v
        else:
            check_fits(self.buffers[0], key)
            stored, first = self.kept(self.length), self.buffers[0].shape[2] - self.kept(self.length)
            old = (buffer[:, :, first : first + stored] for buffer in self.buffers)
            self.buffers = tuple(torch.cat(pair, dim=2) for pair in zip(old, (key, value), strict=True))
        self.length += key.shape[2]
        return self.buffers

    def can_crop(self, length: int) -> bool:
        dropped = max(self.length - length, 0)
        return dropped == 0 or self.buffers[0].shape[2] - dropped >= self.kept(length)

    def crop(self, length: int) -> None:
        """Forget all tokens after the first `length`; only those of the last update can be taken back."""
        if not self.can_crop(length):
            raise ValueError(
                f"this layer slides over {self.window} tokens and has dropped what it would need to go back "
                f"from {self.length} to {length} tokens; only the tokens of the last update can be taken back"
            )
        dropped = max(self.length - length, 0)
        if dropped:
            self.buffers = tuple(buffer[:, :, : buffer.shape[2] - dropped] for buffer in self.buffers)
            self.length = length


def check_fits(held: Tensor, new: Heads) -> None:
    """Refuse keys that do not continue what a cache holds."""
    if (held.shape[0], held.shape[1], held.shape[3]) != (new.shape[0], new.shape[1], new.shape[3]):
        raise ValueError(
            f"the cache holds {held.shape[0]} rows of {held.shape[1]} heads of {held.shape[3]} dimensions, "
            f"the new keys have {new.shape[0]}, {new.shape[1]} and {new.shape[3]}; use one cache per batch "
            "and model, or reset it"
        )
    if (held.dtype, held.device) != (new.dtype, new.device):
        raise ValueError(
            f"the cache holds {held.dtype} on {held.device}, the new keys are {new.dtype} on {new.device}; "
            "make the cache with the model's dtype and device"
        )


@dataclass(frozen=True)
class Memory:
    """What cross-attention looks at, projected once: it does not change while the text grows."""

    layers: tuple[tuple[Tensor, Tensor], ...]  # per block: keys, values [batch, kv_heads, memory, head_dim]
    real: Bool[Tensor, "batch memory"]  # False at padding

    def select(self, rows: Int[Tensor, " rows"]) -> "Memory":
        """These rows of the batch, in this order; a row may be taken several times."""
        return Memory(tuple((key[rows], value[rows]) for key, value in self.layers), self.real[rows])


class DynamicCache:
    """A cache that grows with the text. Layers that slide keep only what their window can still see."""

    memory: Memory | None = None  # filled by the first pass that is given one

    def __init__(self, config: ModelConfig):
        checks.structure(config, "a cache")
        windows = (config.window(index) for index in range(config.num_layers))
        self.layers = [DynamicLayer() if window is None else SlidingLayer(window) for window in windows]

    @property
    def length(self) -> int:
        """How many tokens the model has seen, padding included."""
        return self.layers[0].length

    def crop(self, length: int) -> None:
        """Forget all tokens after the first `length`, as if they had not been seen. The memory stays."""
        if length < 0:
            raise ValueError(
                f"a cache cannot be cropped to {length} tokens; give how many to keep, 0 or more"
            )
        for layer in sorted(self.layers, key=lambda layer: layer.can_crop(length)):  # one that refuses, first
            layer.crop(length)

    def go_back(self, length: int) -> int:
        """Crop to `length` tokens, or forget them all where a sliding layer cannot; return what is left."""
        if all(layer.can_crop(length) for layer in self.layers):
            self.crop(length)
        else:
            self._reset_layers()
        return self.length

    def reset(self) -> None:
        """Forget everything, as if new."""
        self._reset_layers()
        self.memory = None

    def _reset_layers(self) -> None:
        for layer in self.layers:
            layer.reset()

    def select(self, rows: Int[Tensor, " batch"]) -> None:
        """Keep these rows of the batch, in this order: how beam search reorders its beams."""
        for layer in self.layers:
            layer.select(rows)
        if self.memory is not None:
            self.memory = self.memory.select(rows)

    def repeat(self, times: int) -> None:
        """Continue each row in `times` ways: row r becomes rows r·times to r·times + times - 1."""
        held = [layer.buffers[0] for layer in self.layers if layer.buffers is not None]
        held += [self.memory.real] if self.memory is not None else []
        if held:
            self.select(torch.arange(len(held[0]), device=held[0].device).repeat_interleave(times))

    @property
    def nbytes(self) -> int:
        """How many bytes the keys and values take, room for more included."""
        pairs = [layer.buffers for layer in self.layers if layer.buffers is not None]
        pairs += self.memory.layers if self.memory is not None else ()
        return sum(tensor.nbytes for pair in pairs for tensor in pair)


class SlidingWindowCache(DynamicCache):
    """A cache for a model of which every layer slides: its memory does not grow beyond the window."""

    def __init__(self, config: ModelConfig):
        checks.structure(config, "a cache")
        growing = [index for index in range(config.num_layers) if config.window(index) is None]
        if growing:
            raise ValueError(
                f"layer {growing[0]} of this model sees all tokens, so its cache must grow; use "
                "DynamicCache, which gives every layer the kind that it needs"
            )
        super().__init__(config)


class StaticCache(DynamicCache):
    """A cache of fixed size, allocated at once: what a compiled step needs, and no surprise in memory."""

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ):
        checks.structure(config, "a cache")
        for name, size in (("batch_size", batch_size), ("max_length", max_length)):
            checks.whole_number(name, size, 1, "it must be at least 1")
        checks.dtype(dtype)
        device = checks.device(device)
        self.max_length = max_length
        self.layers = [
            StaticLayer(batch_size, config.num_kv_heads, max_length, config.head_dim, dtype, device)
            for _ in range(config.num_layers)
        ]
