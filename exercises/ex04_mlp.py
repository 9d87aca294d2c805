"""Exercises of notebook 04: where does the model compute?

The MLP widens each token's vector, bends it with an activation function, and narrows it again. Modern models
have two matrices that widen: the bent result of one says how much of the other passes.

Check your answers with `python -m minilm.course check 4`.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def gelu_tanh(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """GELU in its tanh form: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³))) (exercise 4.1, 10 min).

    The activation of Gemma and BigCode. GELU multiplies x by the share of a normal distribution that lies
    below x; the tanh stands in for that share. Computed in fp32 and rounded once, to x's dtype.

    Example: gelu_tanh(1) = 0.84119 and gelu_tanh(-1) = -0.15881. The exact GELU of 1 is 0.84134.
    """
    raise NotImplementedError("exercise 4.1")


def silu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x · sigmoid(x), with sigmoid(x) = 1 / (1 + exp(-x)): also called swish (exercise 4.2, 10 min).

    The activation of Llama, Mistral and Qwen2. Computed in fp32 and rounded once, to x's dtype. Values and
    gradients are finite for every finite x, for -100 too, where exp(-x) is infinite in fp32.

    Example: silu(1) = 0.73106, silu(-1) = -0.26894, silu(0) = 0.
    """
    raise NotImplementedError("exercise 4.2")


def gated_mlp(
    x: Float[Tensor, "*batch hidden"],
    gate_weight: Float[Tensor, "intermediate hidden"],
    up_weight: Float[Tensor, "intermediate hidden"],
    down_weight: Float[Tensor, "hidden intermediate"],
    activation: Callable[[Tensor], Tensor],
) -> Float[Tensor, "*batch hidden"]:
    """down(activation(gate(x)) · up(x)): the MLP of Llama, Mistral, Qwen2 and Gemma (exercise 4.3, 15 min).

    gate and up widen the vector of each token from hidden to intermediate, down narrows the product again.
    The weights are stored as in nn.Linear: one row for each number that comes out. There are no biases, and
    the residual x is added later, by the block.

    Example: x = [2], gate [[1]], up [[3]], down [[5]] and an activation that changes nothing: 2 · 6 · 5 = 60.
    """
    raise NotImplementedError("exercise 4.3")
