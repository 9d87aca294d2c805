"""The key-value cache: what attention has already computed, so that a new token costs one token.

A cache is a plain object that is passed to the model, holds one layer object per block, and grows as the model runs.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minilm.config import ModelConfig

New = Float[Tensor, "batch kv_heads length head_dim"]
Stored = Float[Tensor, "batch kv_heads key head_dim"]


class DynamicLayer:
    """Keys and values of one block, for all tokens so far."""

    def __init__(self):
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.length = 0  # tokens seen

    @property
    def first_position(self) -> int:
        """The place in the sequence of the first key that the next update returns."""
        return 0

    def update(self, key: New, value: New) -> tuple[Stored, Stored]:
        """Append new keys and values; return all that the new queries may see."""
        if self.keys is None:
            self.keys, self.values = key, value
        else:
            self.keys = torch.cat((self.keys, key), dim=-2)
            self.values = torch.cat((self.values, value), dim=-2)
        self.length += key.shape[-2]
        return self.keys, self.values

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None
        self.length = 0

    def select(self, rows: Int[Tensor, " batch"]) -> None:
        """Keep these rows of the batch, in this order; a row may be taken several times."""
        if self.keys is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class SlidingLayer(DynamicLayer):
    """Keys and values of a block whose queries see only the last `window` tokens; older ones are dropped."""

    def __init__(self, window: int):
        super().__init__()
        self.window = window

    @property
    def first_position(self) -> int:
        return max(self.length - (self.window - 1), 0)

    def update(self, key: New, value: New) -> tuple[Stored, Stored]:
        keys, values = super().update(key, value)
        # The next query adds its own key, so window - 1 stored ones are enough for it.
        keep = min(self.window - 1, keys.shape[-2])
        self.keys, self.values = keys[:, :, keys.shape[-2] - keep :], values[:, :, values.shape[-2] - keep :]
        return keys, values


class DynamicCache:
    """A cache that grows with the text. Layers with a sliding window keep only what the window can still see."""

    def __init__(self, config: ModelConfig):
        windows = (config.window(index) for index in range(config.num_layers))
        self.layers = [DynamicLayer() if window is None else SlidingLayer(window) for window in windows]

    @property
    def length(self) -> int:
        """How many tokens the model has seen, padding included."""
        return self.layers[0].length

    def reset(self) -> None:
        """Forget everything, as if new."""
        for layer in self.layers:
            layer.reset()

    def select(self, rows: Int[Tensor, " batch"]) -> None:
        """Keep these rows of the batch, in this order: repeats rows for samples, reorders them for beams."""
        for layer in self.layers:
            layer.select(rows)
