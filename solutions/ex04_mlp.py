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
    # BEGIN SOLUTION 4.1
    wide = x.float()  # in fp16, x³ leaves the range where x passes 40
    # The tanh runs from -1 to 1, so (1 + tanh) / 2 runs from 0 to 1: nothing of x passes, or all of it.
    bend = torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide.pow(3)))
    return (0.5 * wide * (1 + bend)).to(x.dtype)
    # END SOLUTION


def silu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x · sigmoid(x), with sigmoid(x) = 1 / (1 + exp(-x)): also called swish (exercise 4.2, 10 min).

    The activation of Llama, Mistral and Qwen2. Computed in fp32 and rounded once, to x's dtype. Values and
    gradients are finite for every finite x, for -100 too, where exp(-x) is infinite in fp32.

    Example: silu(1) = 0.73106, silu(-1) = -0.26894, silu(0) = 0.
    """
    # BEGIN SOLUTION 4.2
    wide = x.float()
    # torch.sigmoid never takes exp of a large positive number. Written out, exp(100) is inf in fp32: the
    # value, x / inf = 0, comes out right, and the gradient is 0 · inf = NaN.
    return (wide * torch.sigmoid(wide)).to(x.dtype)
    # END SOLUTION


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
    # BEGIN SOLUTION 4.3
    # A weight of shape [out, in] is turned to [in, out], so that each of its rows becomes a column: one dot
    # product with x for each number that comes out. Leading axes of x stay as they are.
    gate = activation(x @ gate_weight.T)
    up = x @ up_weight.T
    # Place by place: where the activation is near 0, nothing of up passes.
    return (gate * up) @ down_weight.T
    # END SOLUTION
