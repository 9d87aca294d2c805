"""The MLP: where a decoder computes on each token by itself, and where most of its parameters are."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minilm.config import ModelConfig
from minilm.linear import Linear


def silu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x · sigmoid(x). Source: Elfwing et al. 2017; also called swish."""
    return nn.functional.silu(x)


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x · Φ(x), with Φ the exact normal distribution function. Source: Hendrycks & Gimpel 2016."""
    return nn.functional.gelu(x)


def gelu_tanh(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """GELU with Φ approximated by a tanh, as one kernel. Source: Hendrycks & Gimpel 2016, §2."""
    return nn.functional.gelu(x, approximate="tanh")


def gelu_new(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tanh GELU step by step, as GPT-2 wrote it: the same function as gelu_tanh, rounded more often."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def gelu_fast(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tanh GELU in a third order of operations, which GPT-NeoX-20B's checkpoint asks for."""
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def relu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """max(x, 0)."""
    return nn.functional.relu(x)


def activate(x: Float[Tensor, "*shape"], activation: str) -> Float[Tensor, "*shape"]:
    """Apply the activation function that carries this name in ModelConfig."""
    functions = {
        "silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh, "gelu_new": gelu_new, "gelu_fast": gelu_fast,
        "relu": relu,
    }  # fmt: skip
    return functions[activation](x)


class PlainMLP(nn.Module):
    """down(activation(up(x))): widen, bend, narrow. Source: Vaswani et al. 2017, §3.3."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.activation = config.activation
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        return self.down_proj(activate(self.up_proj(x), self.activation))


class GatedMLP(nn.Module):
    """down(activation(gate(x)) · up(x)): one half decides how much of the other half passes.

    Source: GLU variants, Shazeer 2020.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.activation = config.activation
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        return self.down_proj(activate(self.gate_proj(x), self.activation) * self.up_proj(x))


def make_mlp(config: ModelConfig) -> nn.Module:
    """The MLP that config.mlp names."""
    return GatedMLP(config) if config.mlp == "gated" else PlainMLP(config)
