"""Exercises of notebook 02: how does text become vectors?

A batch is a rectangle, and texts are not equally long: the shorter ones are filled up, and from then on every
part of a model has to know which places are real. Each id is then looked up in a table of vectors.

Check your answers with `python -m minilm.course check 2`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def pad_batch(
    sequences: list[list[int]], pad_id: int, side: str
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Write rows of ids into a rectangle, and say which places are real (exercise 2.1, 15 min).

    length is that of the longest row. For generating, the padding goes to the left, so that every row ends
    with its last real token; for training either side will do. pad_id may also stand for a real token, as it
    does in models that pad with their end-of-text id: whether a place is real follows from the lengths alone.

    side:    where the padding goes, "left" or "right".
    Returns: the ids and the mask, 1 at a real token and 0 at padding; both int64.
    Example: [[5, 6], [7]] with pad_id 0 on the left: ids [[5, 6], [0, 7]] and mask [[1, 1], [0, 1]].
    Raises:  ValueError if side is neither "left" nor "right".
    """
    raise NotImplementedError("exercise 2.1")


def position_ids_from_mask(
    attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"],
) -> Int[Tensor, "batch length"]:
    """The position of every token in its own text (exercise 2.2, 10 min).

    The first real token of a row has position 0, wherever the padding stands. That matters in every model
    that has learned a vector per position, such as BigCode: there a text would change with its padding.

    Padding gets the position of the last real token before it, or 0 where there is none. Any value would do,
    since nothing looks there; this one never lies outside the model's table. The result is int64.

    Example: the mask [0, 0, 1, 1, 1] gives [0, 0, 0, 1, 2], and [1, 1, 0] gives [0, 1, 1].
    """
    raise NotImplementedError("exercise 2.2")


def embed(
    input_ids: Int[Tensor, "batch length"], table: Float[Tensor, "vocab hidden"], scale: float | None = None
) -> Float[Tensor, "batch length hidden"]:
    """Look up the vector of each id; Gemma multiplies it by √hidden (exercise 2.3, 10 min).

    The first step of the model: row i of the table is the vector of id i. Where a scale is given, it is
    rounded to the table's dtype before the product, as transformers does for Gemma: in bf16, √3072 = 55.4256
    becomes 55.5, and a model that computes with 55.4256 gives other numbers from its first step on.

    Example: the ids [2, 0] and the table [[1, 2], [3, 4], [5, 6]] with scale 10 give [[50, 60], [10, 20]].
    Raises: ValueError if an id lies outside the table, on either side: torch would take -1 for the last row.
    """
    raise NotImplementedError("exercise 2.3")
