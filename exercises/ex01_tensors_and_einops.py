"""Exercises of notebook 01: how do I read these shapes?

Attention works on several heads at once: the width of a token is cut into heads, every query is compared
with every key, and in the end the heads are put side by side again. The last exercise is about rows of
unequal length.

Check your answers with `python -m minilm.course check 1`.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


def split_heads(
    x: Float[Tensor, "batch length hidden"], num_heads: int
) -> Float[Tensor, "batch heads length head_dim"]:
    """Cut the width of every token into heads, and bring the heads in front (exercise 1.1, 10 min).

    Attention works on each head by itself, so the heads must stand beside the batch. Head h of a token is the
    slice h · head_dim … (h + 1) · head_dim of its numbers, where head_dim = hidden / num_heads.

    Example: one token [1, 2, 3, 4, 5, 6] and 3 heads give the heads [1, 2], [3, 4] and [5, 6].
    Raises: ValueError if hidden is not a multiple of num_heads.
    """
    raise NotImplementedError("exercise 1.1")


def merge_heads(x: Float[Tensor, "batch heads length head_dim"]) -> Float[Tensor, "batch length hidden"]:
    """Put the heads of every token side by side: the inverse of split_heads (exercise 1.2, 5 min).

    What attention has computed per head goes back to one vector per token, head 0 first, which the output
    projection then mixes.

    Example: one token with the heads [1, 2], [3, 4] and [5, 6] gives [1, 2, 3, 4, 5, 6].
    """
    raise NotImplementedError("exercise 1.2")


def attention_scores(
    query: Float[Tensor, "batch heads query head_dim"], key: Float[Tensor, "batch heads key head_dim"]
) -> Float[Tensor, "batch heads query key"]:
    """How well each query fits each key: all dot products, head by head (exercise 1.3, 10 min).

    The plain products: notebook 07 says why attention divides them by √head_dim, and what comes after.

    Example: the query [1, 2] and the keys [3, 4] and [0, 1] give the scores [11, 2].
    """
    raise NotImplementedError("exercise 1.3")


def masked_mean(
    x: Float[Tensor, "batch length hidden"], mask: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch hidden"]:
    """The mean of the real tokens of each row (exercise 1.4, 15 min).

    One vector for a whole text, as used for classifying and for search. The sum and the quotient are computed
    in fp32 and the mean is rounded once, to x's dtype. A row without a real token gives 0.

    mask: 1 at a real token, 0 at padding.
    Example: the tokens [2, 4], [4, 8] and [9, 9] with the mask [1, 1, 0] give [3, 6].
    """
    raise NotImplementedError("exercise 1.4")
