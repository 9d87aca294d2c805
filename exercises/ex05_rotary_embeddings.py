"""Exercises of notebook 05: how does order enter?

To attention a text is a set of tokens without an order. Rotary embeddings (RoPE) turn pairs of dimensions of
every query and key like the hands of clocks, each by an angle that grows with the token's position. The
product of a query and a key then depends on the distance between their tokens.

Check your answers with `python -m minilm.course check 5`.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


def inverse_frequencies(rotary_dim: int, theta: float) -> Float[Tensor, " half_rotary"]:
    """How far each pair of dimensions turns from one position to the next (exercise 5.1, 10 min).

    rotary_dim dimensions make rotary_dim / 2 pairs. Pair i = 0, 1, … turns by theta^(-2i / rotary_dim)
    radians per position. The first turns by 1 and tells neighbours apart; the later ones are ever slower and
    tell which part of the text a token is in. The result is fp32.

    Example: rotary_dim = 4 and theta = 10000 give [1, 0.01].
    Raises: ValueError if rotary_dim is odd: the last dimension would have no partner.
    """
    raise NotImplementedError("exercise 5.1")


def cos_sin(
    position_ids: Int[Tensor, "batch length"], inv_freq: Float[Tensor, " half_rotary"], dtype: torch.dtype
) -> tuple[Float[Tensor, "batch length rotary"], Float[Tensor, "batch length rotary"]]:
    """Cosine and sine of the angle of every pair at every position (exercise 5.2, 10 min).

    The angle of pair i at position p is p · inv_freq[i]. Pair i consists of the dimensions i and i + half, so
    both need its angle: the list of angles stands in the result twice, one copy behind the other. A model
    computes this once, for all its layers.
    Angles are computed in fp32, because bf16 has no odd number beyond 256; cos and sin are cast to dtype.

    Example: position 2 and inv_freq [1, 0.5] give cos [cos 2, cos 1, cos 2, cos 1], and sin likewise.
    """
    raise NotImplementedError("exercise 5.2")


def rotate_half(x: Float[Tensor, "*batch rotary"]) -> Float[Tensor, "*batch rotary"]:
    """Turn every pair of dimensions by 90° (exercise 5.3, 5 min).

    A pair is (x_i, x_{i + half}); a quarter turn makes it (-x_{i + half}, x_i). It is what sin is multiplied
    by when a pair turns by any other angle.

    Example: [1, 2, 3, 4] has the pairs (1, 3) and (2, 4), and becomes [-3, -4, 1, 2].
    Raises: ValueError if the last axis is odd.
    """
    raise NotImplementedError("exercise 5.3")


def apply_rope(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch kv_heads length head_dim"],
    cos: Float[Tensor, "#batch length rotary"],
    sin: Float[Tensor, "#batch length rotary"],
) -> tuple[Float[Tensor, "batch heads length head_dim"], Float[Tensor, "batch kv_heads length head_dim"]]:
    """Turn queries and keys to their positions (exercise 5.4, 20 min).

    A pair (a, b) at angle φ becomes (a cos φ - b sin φ, b cos φ + a sin φ). Pairs are (x_i, x_{i + half}),
    and cos and sin come from exercise 5.2. All heads of a token turn alike. Values are never turned.
    Where cos is narrower than a head, only that many first dimensions turn, as a smaller head would; the
    others stay as they are (partial rotary: GPT-NeoX turns a quarter of each head).

    Example: the query [1, 0] at 90° (cos [0, 0], sin [1, 1]) becomes [0, 1], and [1, 0, 7] becomes [0, 1, 7].
    Raises: ValueError if cos is wider than a head.
    """
    raise NotImplementedError("exercise 5.4")


def pairs_to_halves(
    weight: Float[Tensor, "features hidden"], num_heads: int
) -> Float[Tensor, "features hidden"]:
    """Reorder a query or key projection whose pairs are neighbours (exercise 5.5, 15 min).

    Some checkpoints pair the dimensions (0, 1), (2, 3), … of a head; apply_rope pairs i with i + half.
    Nothing has to be trained anew: the rows of the projection say which number lands in which dimension.
    Within every head, bring the first members of all pairs to the front, in their order, and their partners
    behind them, in the same order.
    Queries and keys are reordered alike, so their products stay what they were.

    weight: num_heads · head_dim rows, head after head, as in nn.Linear: row r makes feature r.
    Example: one head of six rows (three pairs) a0 b0 a1 b1 a2 b2 becomes a0 a1 a2 b0 b1 b2.
    Raises: ValueError if the rows do not make num_heads heads of whole pairs.
    """
    raise NotImplementedError("exercise 5.5")
