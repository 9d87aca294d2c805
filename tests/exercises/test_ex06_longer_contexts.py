"""What checks the exercises of notebook 06, and the wrong answers that people give."""

import math

import torch

from minilm.course.spec import Case, Unit

UNIT = Unit(6, "longer_contexts")


def frequencies(rotary_dim, theta):
    """As in exercise 5.1."""
    return 1.0 / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)


# --------------------------------------------------------------------------------------------------
# 6.1

interpolated_cos_sin = UNIT.exercise(
    "interpolated_cos_sin",
    minutes=10,
    difficulty=1,
    hints=(
        (
            "A text of 4000 tokens should look to the model like one of 1000. Where "
            "does its last token stand then?"
        ),
        "Divide the positions by factor, as fractions, and go on as in exercise 5.2.",
        (
            "angles = position_ids[..., None].float() / factor * inv_freq; join "
            "them twice, cos, sin, .to(dtype)."
        ),
    ),
)


@interpolated_cos_sin.inputs
def _(draw):
    inv_freq = frequencies(6, float(draw.integer(20, 2000)))
    yield Case((torch.tensor([[3]]), torch.ones(1), 2.0, torch.float32), "the example")
    yield Case((draw.integers(0, 60, 2, 5), inv_freq, 2.5, torch.float32), "2.5 times longer")
    yield Case((draw.integers(0, 60, 1, 7), inv_freq, 4.0, torch.float32), "4 times longer")
    yield Case((draw.integers(0, 60, 2, 4), inv_freq, 1.0, torch.float32), "no longer than trained")
    # Odd positions where bf16 holds even numbers only.
    positions = 257 + 2 * draw.integers(0, 60, 2, 4)
    yield Case((positions, frequencies(8, 50.0), 2.0, torch.bfloat16), "positions beyond 256, bf16")
    yield Case((torch.tensor([[3]]), inv_freq, 0.0, torch.float32), refused="factor is 0")


@interpolated_cos_sin.law("position factor · p has the angles that p had in training")
def _(answer, draw):
    positions, inv_freq = draw.integers(0, 30, 1, 6), frequencies(6, 100.0)
    trained = answer(positions, inv_freq, 1.0, torch.float32)
    longer = answer(positions * 3, inv_freq, 3.0, torch.float32)
    for one, other in zip(trained, longer, strict=True):
        assert torch.allclose(one, other, atol=1e-4), (
            "With factor 3, position 3p differs from p with factor 1."
        )


def cos_sin(angles, dtype):
    """As in exercise 5.2."""
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


@interpolated_cos_sin.mistake(
    "multiplied",
    "You multiply the positions by factor: the text is stretched away from what the model knows.",
    "Neighbours stand several positions apart, and the angles of training end even earlier.",
    "notebook 06, Interpolation",
)
def _(position_ids, inv_freq, factor, dtype):
    return cos_sin(position_ids[..., None].float() * factor * inv_freq, dtype)


@interpolated_cos_sin.mistake(
    "not interpolated",
    "You do not use factor.",
    "The model runs as before, and its text falls apart beyond the trained length.",
    "notebook 06, See it",
)
def _(position_ids, inv_freq, factor, dtype):
    return cos_sin(position_ids[..., None].float() * inv_freq, dtype)


@interpolated_cos_sin.mistake(
    "whole positions",
    "You divide and round down: factor tokens in a row share one position.",
    "A query cannot tell these tokens apart by their place, and word order is lost.",
    "notebook 06, Interpolation",
)
def _(position_ids, inv_freq, factor, dtype):
    return cos_sin((position_ids[..., None] // factor).float() * inv_freq, dtype)


@interpolated_cos_sin.mistake(
    "cos divided",
    "You divide cos and sin by factor instead of the positions.",
    "That shrinks every query and key, and with them the scores; the angles are as before.",
    "notebook 06, Interpolation",
)
def _(position_ids, inv_freq, factor, dtype):
    cos, sin = cos_sin(position_ids[..., None].float() * inv_freq, torch.float32)
    return (cos / factor).to(dtype), (sin / factor).to(dtype)


@interpolated_cos_sin.mistake(
    "positions in half precision",
    "You cast the positions to dtype before you divide: in bf16, 257 becomes 256.",
    "Interpolation is made for large positions, and just there bf16 is coarsest. Nothing shows in fp32.",
    "notebook 05, Break it",
)
def _(position_ids, inv_freq, factor, dtype):
    return cos_sin(position_ids[..., None].to(dtype).float() / factor * inv_freq, dtype)


# --------------------------------------------------------------------------------------------------
# 6.2

dynamic_ntk_frequencies = UNIT.exercise(
    "dynamic_ntk_frequencies",
    minutes=15,
    difficulty=2,
    hints=(
        "It is exercise 5.1 with another base. What is the base for a text that fits?",
        "length = max(seq_len, max_positions) covers both cases: at max_positions, s is 1.",
        "base = theta * (factor * length / max_positions - (factor - 1)) ** (rotary_dim / (rotary_dim - 2)).",
    ),
)


@dynamic_ntk_frequencies.inputs
def _(draw):
    yield Case((4, 10_000.0, 2.0, 100, 200), "the example")
    yield Case((4, 10_000.0, 2.0, 100, 100), "just the trained length")
    yield Case((8, 10_000.0, 2.0, 64, 40), "shorter than the trained length")
    for index in range(3):
        rotary_dim, theta, trained = (
            2 * draw.integer(3, 6),
            float(draw.integer(50, 2000)),
            draw.integer(20, 90),
        )
        seq_len = trained + draw.integer(10, 300)
        yield Case((rotary_dim, theta, draw.integer(4, 12) / 2, trained, seq_len), f"longer, {index + 1}")
    yield Case((2, 10_000.0, 2.0, 100, 200), refused="rotary_dim is 2")
    yield Case((7, 10_000.0, 2.0, 100, 200), refused="rotary_dim is 7")


@dynamic_ntk_frequencies.law("the first pair keeps its speed, and the slowest is s times slower")
def _(answer, draw):
    rotary_dim, factor = 2 * draw.integer(3, 16), 2.0
    trained = answer(rotary_dim, 10_000.0, factor, 100, 100)
    longer = answer(rotary_dim, 10_000.0, factor, 100, 350)
    ratio = trained / longer
    assert abs(ratio[0] - 1) < 1e-4, f"The first pair is {ratio[0]:.4g} times slower at 350 tokens."
    assert abs(ratio[-1] - 6) < 1e-2, (
        f"At 350 tokens s is 6, and the slowest pair {ratio[-1]:.4g} times slower."
    )


def ntk(rotary_dim, theta, factor, max_positions, length, s=None, exponent=None):
    """Dynamic NTK with the places where people go wrong."""
    if rotary_dim % 2 or rotary_dim < 4:
        raise ValueError
    s = factor * length / max_positions - (factor - 1) if s is None else s
    exponent = rotary_dim / (rotary_dim - 2) if exponent is None else exponent
    return frequencies(rotary_dim, theta * s**exponent)


@dynamic_ntk_frequencies.mistake(
    "short texts changed",
    "You apply the formula below the trained length too: s is less than 1 there, and the pairs turn faster.",
    "The model was right on short texts, and now meets frequencies there that it was not trained with.",
    "notebook 06, Dynamic NTK",
)
def _(rotary_dim, theta, factor, max_positions, seq_len):
    return ntk(rotary_dim, theta, factor, max_positions, seq_len)


@dynamic_ntk_frequencies.mistake(
    "not dynamic",
    "You scale the base by factor alone, whatever seq_len is.",
    "This is the fixed form of NTK scaling: short texts pay for a length that they do not have.",
    "notebook 06, Dynamic NTK",
)
def _(rotary_dim, theta, factor, max_positions, seq_len):
    return ntk(rotary_dim, theta, factor, max_positions, seq_len, s=factor)


@dynamic_ntk_frequencies.mistake(
    "never longer",
    "Your frequencies are those of the trained length, however long the text is.",
    "The slow pairs reach angles that the model never met, as without any scaling.",
    "notebook 06, See it",
)
def _(rotary_dim, theta, factor, max_positions, seq_len):
    return ntk(rotary_dim, theta, factor, max_positions, max_positions)


@dynamic_ntk_frequencies.mistake(
    "no exponent",
    "You multiply theta by s itself: the exponent rotary_dim / (rotary_dim - 2) is missing.",
    "The slowest pair becomes a little less than s times slower and leaves the angles of training.",
    "notebook 06, Dynamic NTK",
)
def _(rotary_dim, theta, factor, max_positions, seq_len):
    return ntk(rotary_dim, theta, factor, max_positions, max(seq_len, max_positions), exponent=1.0)


@dynamic_ntk_frequencies.mistake(
    "exponent upside down",
    "Your exponent is (rotary_dim - 2) / rotary_dim; it is the other way up.",
    "The base grows too little. The wider a head, the closer both are to 1, and the less it shows.",
    "notebook 06, Dynamic NTK",
)
def _(rotary_dim, theta, factor, max_positions, seq_len):
    length = max(seq_len, max_positions)
    return ntk(rotary_dim, theta, factor, max_positions, length, exponent=(rotary_dim - 2) / rotary_dim)


@dynamic_ntk_frequencies.mistake(
    "factor - 1 not subtracted",
    "Your s is factor · seq_len / max_positions: at the trained length it is factor already, and not 1.",
    "With one token more than the trained length, the slowest pair at once turns factor times slower.",
    "notebook 06, Dynamic NTK",
)
def _(rotary_dim, theta, factor, max_positions, seq_len):
    s = factor * seq_len / max_positions if seq_len > max_positions else 1.0
    return ntk(rotary_dim, theta, factor, max_positions, seq_len, s=s)


@dynamic_ntk_frequencies.mistake(
    "all pairs divided",
    "You divide every frequency by s, and leave the base: that is interpolation.",
    "Neighbours come closer together, which this method is meant to avoid.",
    "notebook 06, Interpolation",
)
def _(rotary_dim, theta, factor, max_positions, seq_len):
    s = factor * max(seq_len, max_positions) / max_positions - (factor - 1)
    return ntk(rotary_dim, theta, factor, max_positions, seq_len, s=1.0) / s


# --------------------------------------------------------------------------------------------------
# 6.3

llama3_frequencies = UNIT.exercise(
    "llama3_frequencies",
    minutes=15,
    difficulty=2,
    hints=(
        "How many positions does a pair need for one turn of 2π, if it makes inv_freq radians per position?",
        "The share that stays is (turns - low_freq_factor) / (high_freq_factor "
        "- low_freq_factor), kept within "
        "0 and 1.",
        "turns = original_max_positions * inv_freq / (2π); clamp the share to 0 … 1, then "
        "share * inv_freq + (1 - share) * inv_freq / factor.",
    ),
)


@llama3_frequencies.inputs
def _(draw):
    example = 2 * math.pi / torch.tensor([1000.0, 4096.0, 9000.0])
    yield Case((example, 8.0, 1.0, 4.0, 8192), "the example")
    yield Case((frequencies(16, 500_000.0), 8.0, 1.0, 4.0, 8192), "Llama 3.1 with heads of 16")
    for index in range(2):
        # Frequencies between one turn in 3 positions and one in 300: of all three kinds.
        inv_freq = 2 * math.pi / (3 * 100 ** torch.linspace(0, 1, 12))
        bounds = draw.integer(2, 4) / 2, draw.integer(6, 12) / 2
        arguments = draw.integer(3, 32) / 2, *bounds, draw.integer(60, 120)
        yield Case((inv_freq + 0.001 * draw.normal(12).abs(), *arguments), f"all kinds of pairs, {index + 1}")
    yield Case((frequencies(6, 20.0), 8.0, 1.0, 4.0, 4096), "no slow pair")
    yield Case((example, 8.0, 4.0, 4.0, 8192), refused="high_freq_factor is not greater than low_freq_factor")


@llama3_frequencies.law("no pair becomes faster, and none more than factor times slower")
def _(answer, draw):
    inv_freq, factor = frequencies(32, 10_000.0), draw.integer(2, 16)
    ratio = inv_freq / answer(inv_freq, float(factor), 1.0, 4.0, 300)
    assert ratio.min() > 0.999 and ratio.max() < factor * 1.001, (
        f"With factor {factor}, pairs become {ratio.min():.4g} to {ratio.max():.4g} times slower."
    )


@llama3_frequencies.law("a faster pair stays faster")
def _(answer, draw):
    found = answer(frequencies(64, 1000.0), float(draw.integer(2, 8)), 1.0, 4.0, 256)
    assert (found.diff() < 0).all(), "The order of the pairs has changed."


def by_parts(inv_freq, factor, low, high, length, circle=2 * math.pi, ramp=None):
    """Llama 3 scaling with the places where people go wrong."""
    if high <= low:
        raise ValueError
    turns = length * inv_freq / circle
    share = ((turns - low) / (high - low)).clamp(0, 1)
    share = share if ramp is None else ramp(share, turns)
    return share * inv_freq + (1 - share) * inv_freq / factor


@llama3_frequencies.mistake(
    "all pairs divided",
    "You divide every frequency by factor: that is interpolation.",
    "The fast pairs, which tell neighbours apart, were fine as they were.",
    "notebook 06, Interpolation",
)
def _(inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions):
    return inv_freq / factor


@llama3_frequencies.mistake(
    "in between all left",
    "You leave every pair that makes more than low_freq_factor turns as it is: the blend is missing.",
    "Two pairs of almost one wavelength end up factor apart.",
    "notebook 06, Llama 3",
)
def _(inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions):
    return by_parts(
        inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions,
        ramp=lambda share, turns: (share > 0).float(),
    )  # fmt: skip


@llama3_frequencies.mistake(
    "blend upside down",
    "In between, you give the share of the frequency that stays to the one that is divided, and the reverse.",
    "Of two pairs in between, the faster one is slowed down more; at both bounds the frequencies jump.",
    "notebook 06, Llama 3",
)
def _(inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions):
    return by_parts(
        inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions,
        ramp=lambda share, turns: torch.where((share > 0) & (share < 1), 1 - share, share),
    )  # fmt: skip


@llama3_frequencies.mistake(
    "fast and slow exchanged",
    "You divide the pairs that turn often and leave those that do not come round.",
    "Neighbours move closer together, and the slow pairs still reach angles that the model never met.",
    "notebook 06, Wavelengths",
)
def _(inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions):
    return by_parts(
        inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions,
        ramp=lambda share, turns: 1 - share,
    )  # fmt: skip


@llama3_frequencies.mistake(
    "no 2π",
    "You take 1 / inv_freq for the wavelength; a turn is 2π radians, so it is 2π / inv_freq.",
    "Pairs seem to turn six times as often, and slow ones are left as they were.",
    "notebook 06, Wavelengths",
)
def _(inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions):
    return by_parts(inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions, circle=1.0)


@llama3_frequencies.mistake(
    "in between all divided",
    "You divide every pair that makes fewer than high_freq_factor turns: the "
    "blend is missing, or the two bounds "
    "are exchanged.",
    "Two pairs of almost one wavelength end up factor apart.",
    "notebook 06, Llama 3",
)
def _(inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions):
    return by_parts(
        inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions,
        ramp=lambda share, turns: (share == 1).float(),
    )  # fmt: skip


@llama3_frequencies.mistake(
    "share beyond 0 and 1",
    "You blend all pairs: outside of the two bounds the share is less than 0 or more than 1.",
    "The fast pairs turn many times faster than in training, and the slow ones may even turn backwards.",
    "notebook 06, Llama 3",
)
def _(inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions):
    def ramp(share, turns):
        return (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)

    return by_parts(inv_freq, factor, low_freq_factor, high_freq_factor, original_max_positions, ramp=ramp)
