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
    # BEGIN SOLUTION 13.1
    # The norm stands on the way into the branch, not on the stream: x itself goes on as it is, and in the
    # backward pass the gradient reaches the first layer through nothing but additions.
    h = x + attention(norm_1(x))
    # From here on h is the stream: the MLP reads it, with what attention brought from other tokens, and is
    # added to it. With x in either place, attention's finding would be lost to the MLP or to the next block.
    return h + mlp(norm_2(h))
    # END SOLUTION


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
    # BEGIN SOLUTION 13.2
    # The MLP's input is x, not x + attention(…): that is the whole difference to the sequential block. The
    # two norms have weights of their own, although both read x.
    # In bf16 the order of the two additions shows in the last bit; transformers adds the branches first.
    return mlp(norm_2(x)) + attention(norm_1(x)) + x
    # END SOLUTION


def residual_init_std(std: float, num_layers: int) -> float:
    """The starting std of the matrices that write to the residual stream, as in GPT-2 (exercise 13.3, 5 min).

    These are the last matrix of attention and the last one of the MLP, in every layer. Each adds a random
    vector to the stream of a new model. Their std is chosen so that the sum over all layers has the size that
    one such vector would have with std, however deep the model is.

    Example: std = 0.02 and 8 layers give 0.02 / √16 = 0.005.
    Raises: ValueError if num_layers is less than 1.
    """
    # BEGIN SOLUTION 13.3
    if num_layers < 1:
        raise ValueError(f"num_layers is {num_layers}; a model has at least one layer")
    # Of independent random numbers the variances add, not the stds: n vectors of std s make a sum of std
    # s·√n. Here n is 2·num_layers, since every layer adds twice. Dividing s by √n leaves the sum at s.
    additions = 2 * num_layers
    return std / math.sqrt(additions)
    # END SOLUTION


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
    # BEGIN SOLUTION 13.4
    hidden, width = config.hidden_size, config.intermediate_size
    query_width = config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim

    def matrix(inputs: int, outputs: int, bias: bool) -> int:
        return inputs * outputs + (outputs if bias else 0)

    def norm(size: int) -> int:
        return 2 * size if config.norm == "layer" else size

    # Fused rows are the same rows in one matrix, so qkv_layout changes nothing.
    attention = (
        matrix(hidden, query_width, config.qkv_bias)
        + 2 * matrix(hidden, kv_width, config.qkv_bias)  # keys and values
        + matrix(query_width, hidden, config.out_bias)
    )
    widening = 2 if config.mlp == "gated" else 1  # gate and up have one shape
    mlp = widening * matrix(hidden, width, config.mlp_bias) + matrix(width, hidden, config.mlp_bias)

    layer = norm(hidden) + attention + norm(hidden) + mlp
    if config.qk_norm:
        layer += 2 * norm(config.head_dim)  # all heads share these weights
    if config.cross_attention:
        layer += norm(hidden) + attention

    tables = config.vocab_size * hidden  # RoPE's angles follow from a formula and are not learned …
    if config.rope is None:
        tables += config.max_positions * hidden  # … and a table of positions is
    head = 0 if config.tie_embeddings else config.vocab_size * hidden
    return tables + config.num_layers * layer + norm(hidden) + head
    # END SOLUTION
