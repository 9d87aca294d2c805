"""Exercises of notebook 13: how do parts become a model?

One vector per token runs through the whole decoder: the residual stream. Every block reads it, and adds what
it found. Nothing ever overwrites it.

Check your answers with `python -m minilm.course check 13`.
"""

import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from minilm.config import ModelConfig

Hidden = Float[Tensor, "batch length hidden"]


def sequential_block(
    x: Hidden,
    attention: Callable[[Hidden], Hidden],
    mlp: Callable[[Hidden], Hidden],
    norm_1: Callable[[Hidden], Hidden],
    norm_2: Callable[[Hidden], Hidden],
) -> Hidden:
    """One layer of most decoders: attention, then an MLP that reads its result (exercise 13.1, 10 min).

    Qwen2, Llama, Gemma and GPT-BigCode are stacks of this block. Each of the two branches reads a normalised
    copy of the stream (norm_1 before attention, norm_2 before the MLP) and is added to the stream itself.
    Every branch runs once: in a real model attention also writes to the cache.

    Example: x = 1, norms that change nothing, attention(y) = 2y, mlp(y) = 3y: after attention the stream is
    1 + 2·1 = 3, and the result is 3 + 3·3 = 12.
    """
    raise NotImplementedError("exercise 13.1")


def parallel_block(
    x: Hidden,
    attention: Callable[[Hidden], Hidden],
    mlp: Callable[[Hidden], Hidden],
    norm_1: Callable[[Hidden], Hidden],
    norm_2: Callable[[Hidden], Hidden],
) -> Hidden:
    """One layer of GPT-NeoX: attention and MLP read the same stream, side by side (exercise 13.2, 5 min).

    Both branches start from x, each with its own norm (norm_1 before attention, norm_2 before the MLP), and
    both are added to x. Neither waits for the other, so a GPU can compute them together. Every branch runs
    once.

    Example: x = 1, norms that change nothing, attention(y) = 2y, mlp(y) = 3y give 1 + 2·1 + 3·1 = 6.
    """
    raise NotImplementedError("exercise 13.2")


def residual_init_std(std: float, num_layers: int) -> float:
    """The starting std of the matrices that write to the residual stream, as in GPT-2 (exercise 13.3, 5 min).

    These are the last matrix of attention and the last one of the MLP, in every layer. Each adds a random
    vector to the stream of a new model. Their std is chosen so that the sum over all layers has the size that
    one such vector would have with std, however deep the model is.

    Example: std = 0.02 and 8 layers give 0.02 / √16 = 0.005.
    Raises: ValueError if num_layers is less than 1.
    """
    raise NotImplementedError("exercise 13.3")


def count_parameters(config: ModelConfig) -> int:
    """How many numbers a decoder with a language modelling head has learned (exercise 13.4, 25 min).

    It tells, before anything is loaded, what a model needs: 2 bytes per parameter in bf16. The parts:

    - a table of vocab_size embeddings; another of max_positions where positions are learned (rope is None)
    - in every layer two norms, attention (matrices for q, k, v and back) and the MLP (up and down, and gate
      where mlp is "gated"); with qk_norm one norm over head_dim for the queries and one for the keys
    - with cross_attention, in every layer also a third norm, and matrices for q, k, v and back of the same
      shapes and biases as attention's (but no qk_norm)
    - a norm at the end, and the output head: a matrix without bias, or nothing where tie_embeddings is True

    qkv_bias, out_bias and mlp_bias give each of their matrices a bias as long as its result. A norm has one
    weight per dimension, and a bias as well where norm is "layer". Query heads together are
    num_heads · head_dim wide, which need not be hidden_size.

    Example: a vocabulary of 10, hidden size 4, 1 layer, 2 heads of 2 dimensions that share 1 key head, a
    gated MLP of width 8, and else ModelConfig's defaults: 236 parameters. They are 40 + 40 in table and head,
    16 + 8 + 8 + 16 in attention, 3 · 32 in the MLP and 3 · 4 in the norms.
    """
    raise NotImplementedError("exercise 13.4")
