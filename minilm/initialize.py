"""What a model's weights are before anything is learned."""

import math

import torch
from torch import nn

from minilm.config import ModelConfig
from minilm.norm import Norm


def initialize(model: nn.Module, config: ModelConfig, generator: torch.Generator | None = None) -> None:
    """Give a new model its starting weights: normal matrices, zero biases, norms that change nothing.

    With depth_scaled_init the two projections that write to the residual stream start smaller.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            writes_to_residual = name.endswith(("o_proj", "down_proj"))
            std = config.init_std
            if config.depth_scaled_init and writes_to_residual:
                std = residual_init_std(std, config.num_layers)
            nn.init.normal_(module.weight, std=std, generator=generator)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Norm):
            nn.init.constant_(module.weight, 0.0 if module.kind == "offset_rms" else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def residual_init_std(std: float, num_layers: int) -> float:
    """The std of what is added to the residual stream twice per layer, so that the sum keeps its size.

    Source: GPT-2, Radford et al. 2019, §2.3.
    """
    return std / math.sqrt(2 * num_layers)


def make_table(entries: int, hidden_size: int) -> nn.Embedding:
    """An embedding table without starting values: `initialize` or a checkpoint gives it some.

    torch's own would draw them first, and where no memory is allocated yet that loads its whole compiler.
    """
    return nn.Embedding.from_pretrained(torch.empty(entries, hidden_size), freeze=False)
