"""Exercises of notebook 06: what lies beyond the trained length?

A model meets only positions below its trained length. Beyond it, the slow pairs of RoPE reach angles that
they never had in training. These are three ways to change the frequencies so that a longer text stays within
the angles that the model knows.

Check your answers with `python -m minilm.course check 6`.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def interpolated_cos_sin(
    position_ids: Int[Tensor, "batch length"],
    inv_freq: Float[Tensor, " half_rotary"],
    factor: float,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "batch length rotary"], Float[Tensor, "batch length rotary"]]:
    """Cosine and sine for a text factor times longer than the trained ones (exercise 6.1, 10 min).

    Position interpolation lays the longer text between the positions that the model knows: the token at
    position p gets the angles of position p / factor. The price is that neighbours come closer together.
    As in exercise 5.2, the list of angles stands twice, angles are fp32, and cos and sin are cast to dtype.

    Example: with factor 2, position 3 has the angles of 1.5: inv_freq [1] gives cos [0.0707, 0.0707] and
    sin [0.9975, 0.9975].
    Raises: ValueError if factor is not positive.
    """
    # BEGIN SOLUTION 6.1
    if factor <= 0:
        raise ValueError(f"factor is {factor}; a text becomes a positive number of times longer")
    # p / factor · inv_freq: it does not matter which of the two is divided. The result must not be rounded to
    # whole positions, or neighbours would fall together.
    angles = position_ids[..., None].float() * inv_freq / factor
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)
    # END SOLUTION


def dynamic_ntk_frequencies(
    rotary_dim: int, theta: float, factor: float, max_positions: int, seq_len: int
) -> Float[Tensor, " half_rotary"]:
    """Frequencies that slow down as a text grows beyond the trained length (exercise 6.2, 15 min).

    Up to max_positions tokens, the trained length, they are those of exercise 5.1. Beyond it the base grows
    with seq_len, the present length of the text: theta becomes theta · s^(rotary_dim / (rotary_dim - 2)) with
    s = factor · seq_len / max_positions - (factor - 1), which is 1 at max_positions. With this exponent the
    slowest pair becomes exactly s times slower, and the first pair keeps its speed: neighbours stay as far
    apart as they were. The result is fp32.

    Example: rotary_dim 4, theta 10000, factor 2, trained for 100: at 200 tokens s = 3, the base is 90000, and
    the frequencies are [1, 1/300]; up to 100 tokens they are [1, 1/100].
    Raises: ValueError if rotary_dim is odd or less than 4.
    """
    # BEGIN SOLUTION 6.2
    if rotary_dim % 2 or rotary_dim < 4:
        raise ValueError(
            f"rotary_dim is {rotary_dim}; it must be even and at least 4, as rotary_dim - 2 divides"
        )
    # A text that fits counts as one of the trained length: there s = 1, and the base stays what it was.
    length = max(seq_len, max_positions)
    s = factor * length / max_positions - (factor - 1)
    # The slowest pair is base^(-(rotary_dim - 2) / rotary_dim). With this exponent, s comes out of it as 1/s.
    base = theta * s ** (rotary_dim / (rotary_dim - 2))
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    return 1.0 / base**exponents
    # END SOLUTION


def llama3_frequencies(
    inv_freq: Float[Tensor, " half_rotary"],
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_positions: int,
) -> Float[Tensor, " half_rotary"]:
    """Slow down only the pairs that do not come round in the trained length (exercise 6.3, 15 min).

    The wavelength of a pair is the number of positions in which it turns once. In original_max_positions it
    makes a number of turns: original_max_positions / wavelength. A pair with more than high_freq_factor turns
    has been through all of its angles in training, and stays. One with less than low_freq_factor turns
    becomes factor times slower. In between, the share that stays grows linearly with the turns from 0 to 1,
    and the frequency f becomes share · f + (1 - share) · f / factor.

    Example: factor 8, bounds 1 and 4, trained for 8192 (Llama 3.1). A wavelength of 1000 stays, one of 9000
    becomes 72000. One of 4096 makes 2 turns: its share is 1/3, and its frequency f becomes 5/12 · f.
    Raises: ValueError if high_freq_factor is not greater than low_freq_factor.
    """
    # BEGIN SOLUTION 6.3
    if high_freq_factor <= low_freq_factor:
        raise ValueError(f"high_freq_factor {high_freq_factor} must exceed low_freq_factor {low_freq_factor}")
    # A whole turn is 2π radians, and inv_freq is radians per position.
    wavelength = 2 * math.pi / inv_freq
    turns = original_max_positions / wavelength
    # 0 at the lower bound and 1 at the upper one. Cut off at both, it covers the outer pairs as well: with
    # share 0 the formula is f / factor, with share 1 it is f.
    share = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return share * inv_freq + (1 - share) * inv_freq / factor
    # END SOLUTION
