"""Exercises of notebook 03: why normalise, and in which precision?

Every block adds something to the residual stream, so its vectors grow from block to block. A norm brings
each vector back to a known size before the next part reads it. Three formulas are in use, and each has its
place where the result goes back from fp32 to bf16: who rounds elsewhere gets other bits than transformers.

Check your answers with `python -m minilm.course check 3`.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def layer_norm(
    x: Float[Tensor, "*batch hidden"],
    weight: Float[Tensor, " hidden"],
    bias: Float[Tensor, " hidden"],
    eps: float,
) -> Float[Tensor, "*batch hidden"]:
    """Bring each vector to mean 0 and variance 1, then scale and shift it (exercise 3.1, 15 min).

    The norm of GPT-NeoX and BigCode. The variance is the mean of the squared distances from the mean: it
    divides by hidden, not by hidden - 1. eps is added to the variance. All of it is computed in fp32 and
    rounded once, at the end, to x's dtype, which weight and bias have too.

    Example: [1, 3] has mean 2 and variance 1. With weight [2, 5], bias [10, 10] and eps 0 it gives [8, 15].
    """
    raise NotImplementedError("exercise 3.1")


def rms_norm(
    x: Float[Tensor, "*batch hidden"], weight: Float[Tensor, " hidden"], eps: float
) -> Float[Tensor, "*batch hidden"]:
    """Divide each vector by its root mean square, then scale it (exercise 3.2, 15 min).

    The norm of Llama, Mistral and Qwen2: no mean is subtracted and nothing is added. The vector is divided
    by √(mean of the squares + eps) in fp32 and *rounded to x's dtype; then* it is multiplied by the weight,
    which has x's dtype. In bf16 another order gives other bits than transformers.

    Example: the squares of [1, 7] have the mean 25. With weight [10, 1] and eps 0 the result is [2, 1.4].
    """
    raise NotImplementedError("exercise 3.2")


def gemma_rms_norm(
    x: Float[Tensor, "*batch hidden"], weight: Float[Tensor, " hidden"], eps: float
) -> Float[Tensor, "*batch hidden"]:
    """Root mean square norm that multiplies by 1 + weight (exercise 3.3, 10 min).

    Gemma stores by how much each weight differs from 1: a new model holds zeros, and weight decay pulls
    towards the plain norm. Division, sum and product are all computed in fp32; the result is rounded once, at
    the end, to x's dtype, which the weight has too.

    Example: the squares of [1, 7] have the mean 25. With weight [0, 1] and eps 0 the result is [0.2, 2.8].
    """
    raise NotImplementedError("exercise 3.3")
