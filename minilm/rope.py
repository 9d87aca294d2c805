"""Rotary position embeddings: each pair of dimensions is a clock hand that turns with the position.

A query at position m and a key at position n are turned by m and n; their product then depends on m - n
alone.
Source: RoFormer, Su et al. 2021. Pairs are (i, i + rotary_dim/2): the "halves" layout of all checkpoints.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minilm.config import RopeConfig


def inverse_frequencies(rotary_dim: int, theta: float | Float[Tensor, ""]) -> Float[Tensor, " half_rotary"]:
    """The angle in radians by which each pair turns per position: theta^(-2i/rotary_dim), from 1
    downwards.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    return 1.0 / theta**exponents


def dynamic_ntk_frequencies(
    rotary_dim: int, theta: float, factor: float, max_positions: int, seq_len: int
) -> Float[Tensor, " half_rotary"]:
    """Frequencies for a text of seq_len tokens: beyond the trained length the base grows, so slow pairs slow
    most.

    They depend on the longest position seen so far, so keys that are already cached keep older frequencies.
    Source: "dynamic NTK", bloc97 and emozilla 2023. Beyond max_positions the reference computes in fp32
            tensors.
    """
    length = torch.tensor(seq_len) if seq_len > max_positions else max_positions
    stretch = (factor * length / max_positions) - (factor - 1)
    return inverse_frequencies(rotary_dim, theta * stretch ** (rotary_dim / (rotary_dim - 2)))


def yarn_frequencies(
    rotary_dim: int,
    theta: float,
    factor: float,
    original_max_positions: int,
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
) -> Float[Tensor, " half_rotary"]:
    """Leave the fast pairs, divide the slow ones by factor, and blend linearly in between.

    A pair is fast when it makes more than beta_fast turns in the trained length, slow below beta_slow.
    Source: YaRN, Peng et al. 2023, §3.2.
    """

    def pair_with_turns(turns: float) -> float:
        return rotary_dim * math.log(original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_with_turns(beta_fast), pair_with_turns(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    if first == last:
        last += 0.001  # a ramp of no width would divide by zero

    ramp = ((torch.arange(rotary_dim // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    unscaled_part = 1 - ramp
    turns_per_position = theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    scaled, unscaled = 1.0 / (factor * turns_per_position), 1.0 / turns_per_position
    return scaled * (1 - unscaled_part) + unscaled * unscaled_part


def yarn_attention_factor(rope: RopeConfig) -> float:
    """What YaRN multiplies cos and sin by, so that attention over a longer text stays as sharp."""

    def log_factor(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return log_factor(rope.mscale) / log_factor(rope.mscale_all_dim)
    return log_factor(1.0)


def llama3_frequencies(
    inv_freq: Float[Tensor, " half_rotary"],
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_positions: int,
) -> Float[Tensor, " half_rotary"]:
    """Leave short wavelengths, divide long ones by factor, and blend smoothly in between.

    Source: Llama 3.1, 2024.
    """
    wavelength = 2 * math.pi / inv_freq
    is_long = wavelength > original_max_positions / low_freq_factor
    is_short = wavelength < original_max_positions / high_freq_factor
    smooth = (original_max_positions / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    blended = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    return torch.where(is_long, inv_freq / factor, torch.where(is_short, inv_freq, blended))


def attention_factor(rope: RopeConfig) -> float:
    """What a model multiplies cos and sin by: 1, but for YaRN."""
    return yarn_attention_factor(rope) if rope.scaling == "yarn" else 1.0


def frequencies(
    rope: RopeConfig, rotary_dim: int, max_positions: int, seq_len: int
) -> Float[Tensor, " half_rotary"]:
    """The inverse frequencies of a model for a text of seq_len tokens."""
    if rope.scaling == "dynamic":
        return dynamic_ntk_frequencies(rotary_dim, rope.theta, rope.factor, max_positions, seq_len)
    if rope.scaling == "yarn":
        return yarn_frequencies(
            rotary_dim, rope.theta, rope.factor, rope.original_max_positions, rope.beta_fast,
            rope.beta_slow, rope.truncate,
        )  # fmt: skip
    inv_freq = inverse_frequencies(rotary_dim, rope.theta)
    if rope.scaling == "linear":
        inv_freq = inv_freq / rope.factor
    if rope.scaling == "llama3":
        inv_freq = llama3_frequencies(
            inv_freq, rope.factor, rope.low_freq_factor, rope.high_freq_factor, rope.original_max_positions
        )
    return inv_freq


def cos_sin(
    position_ids: Int[Tensor, "batch length"],
    inv_freq: Float[Tensor, " half_rotary"],
    dtype: torch.dtype,
    scale: float = 1.0,
) -> tuple[Float[Tensor, "batch length rotary"], Float[Tensor, "batch length rotary"]]:
    """Cosine and sine of every position's angle, once for each half of the rotary dimensions.

    Angles are computed in fp32 (a bf16 position beyond 256 would be rounded) and the results cast to dtype.
    """
    angles = position_ids[..., None].float() * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate_half(x: Float[Tensor, "*batch rotary"]) -> Float[Tensor, "*batch rotary"]:
    """Turn every pair (x_i, x_{i + half}) by a quarter: it becomes (-x_{i + half}, x_i)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rope(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch kv_heads length head_dim"],
    cos: Float[Tensor, "#batch length rotary"],
    sin: Float[Tensor, "#batch length rotary"],
) -> tuple[
    Float[Tensor, "batch heads length head_dim"],
    Float[Tensor, "batch kv_heads length head_dim"],
]:
    """Turn queries and keys to their positions; dimensions beyond cos's width pass through (partial
    rotary).
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # one angle for all heads
    rotary_dim = cos.shape[-1]

    def turn(x: Tensor) -> Tensor:
        if rotary_dim == x.shape[-1]:
            return x * cos + rotate_half(x) * sin
        turned, passed = x[..., :rotary_dim], x[..., rotary_dim:]
        return torch.cat((turned * cos + rotate_half(turned) * sin, passed), dim=-1)

    return turn(query), turn(key)
