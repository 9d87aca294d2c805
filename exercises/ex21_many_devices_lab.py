"""Exercises of notebook 21: what beyond one device?

A matrix that is too large for one device can be cut. Here a list stands for the devices: entry i is what
device i holds. Within one entry computing is free; adding entries up is communication, and costs time.

Check your answers with `python -m minilm.course check 21`.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def column_parallel(
    x: Float[Tensor, "*batch inputs"], weight_shards: list[Float[Tensor, "outputs inputs"]]
) -> list[Float[Tensor, "*batch outputs"]]:
    """A linear layer whose outputs are shared out over devices (exercise 21.1, 10 min).

    For the matrices of a block that read the residual stream: queries, keys, values, gate, up. Every device
    has the whole x, and some of the outputs: whole heads, or some units of the MLP. What follows, attention
    or the activation, works on each part by itself, so nothing is sent and the parts stay where they are.

    weight_shards: the matrix [outputs, inputs], as torch.nn.Linear stores it, cut into groups of rows; they
                   may differ in size. It is called column-parallel after the transposed matrix in x · Wᵀ.
    Returns: a list with one tensor per device: its part of the outputs. Side by side, in the order of the
             devices, they are what one device would compute.

    Example: x = [1, 2] and shards [[1, 0], [0, 1]] and [[1, 1]] give [1, 2] on device 0 and [3] on device 1.
    Raises: ValueError if there is no shard, or one that does not take all inputs of x.
    """
    raise NotImplementedError("exercise 21.1")


def row_parallel(
    x_shards: list[Float[Tensor, "*batch inputs"]], weight_shards: list[Float[Tensor, "outputs inputs"]]
) -> Float[Tensor, "*batch outputs"]:
    """A linear layer whose inputs are shared out over devices (exercise 21.2, 10 min).

    For the matrices of a block that write to the residual stream: the attention's output, and down. Device i
    holds the inputs x_shards[i], which is just what column_parallel left there, and the columns of the matrix
    that belong to them. Then the devices add up what they have: one all-reduce for attention and one for the
    MLP, in every block.

    weight_shards: the matrix [outputs, inputs] cut into groups of columns; they may differ in size.
    Returns: the outputs of the whole layer, which every device has after the all-reduce.

    Example: devices with [1] and [2], and shards [[1], [0]] and [[3], [4]], compute [1, 0] and [6, 8]. The
    result is [7, 8].
    Raises: ValueError if there is not one shard of x for each shard of the matrix.
    """
    raise NotImplementedError("exercise 21.2")
