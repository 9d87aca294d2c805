"""Each component by itself: plain functions against numbers worked out by hand and float64 formulas."""

import itertools
import math

import jaxtyping
import pytest
import torch
from torch import tensor

from minilm import (
    DynamicCache,
    ModelConfig,
    RopeConfig,
    attention,
    backends,
    initialize,
    loss,
    masks,
    mlp,
    norm,
    rope,
)
from minilm.families import FAMILIES
from minilm.heads import CausalLM

FP32 = 1e-6  # a few roundings of fp32 (6e-8 each) relative to the largest number in the result
bf16, fp16 = torch.bfloat16, torch.float16


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = FP32) -> bool:
    """Whether a result is the float64 one up to rounding."""
    expected = expected.double()
    return (found.double() - expected).abs().max().item() <= tolerance * max(expected.abs().max().item(), 1.0)


# --------------------------------------------------------------------------------------------------
# Norms

X, W, B = tensor([[1.0, -1.0]]), tensor([2.0, 10.0]), tensor([0.5, 0.5])


@pytest.mark.parametrize(
    "found, expected",
    [
        # mean square 1, and 1/√(1 + 3) is exactly a half
        pytest.param(lambda: norm.rms_norm(X, W, 3.0), [[1.0, -5.0]], id="rms"),
        pytest.param(lambda: norm.offset_rms_norm(X, W - 1, 3.0), [[1.0, -5.0]], id="offset rms"),
        # the mean of 3 and 1 is 2, the variance 1: a half and minus a half before weight and bias
        pytest.param(lambda: norm.layer_norm(X + 2, W, B, 3.0), [[1.5, -4.5]], id="layer"),
        # eps keeps a vector of zeros from dividing by zero
        pytest.param(lambda: norm.rms_norm(0 * X, W, 1e-6), [[0.0, 0.0]], id="rms of nothing"),
        pytest.param(lambda: norm.offset_rms_norm(0 * X, W, 1e-6), [[0.0, 0.0]], id="offset rms of nothing"),
        pytest.param(lambda: norm.layer_norm(0 * X, W, B, 1e-6), [[0.5, 0.5]], id="layer of nothing"),
    ],
)
def test_norms_by_hand(found, expected):
    assert torch.equal(found(), tensor(expected))


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_norms_follow_their_formulas(eps, size):
    """Each norm on large and on tiny vectors, where eps decides, in float64."""
    x, weight, bias = size * torch.randn(2, 5, 48), torch.randn(48), torch.randn(48)
    x64, w64, b64 = x.double(), weight.double(), bias.double()
    root = (x64.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    centred = x64 - x64.mean(-1, keepdim=True)
    spread = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    assert close(norm.rms_norm(x, weight, eps), w64 * x64 / root)
    assert close(norm.offset_rms_norm(x, weight, eps), (1 + w64) * x64 / root)
    assert close(norm.layer_norm(x, weight, bias, eps), w64 * centred / spread + b64)


def test_rounding_order_of_rms_norms_shows_in_bf16():
    """rms_norm rounds before the weight, offset_rms_norm after it; the other order gives other bits."""
    x, weight = torch.randn(64, 96).to(bf16), (1 + 0.3 * torch.randn(96)).to(bf16)
    unit = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    before, after = weight * unit.to(bf16), (unit * weight.float()).to(bf16)
    assert torch.equal(norm.rms_norm(x, weight, 1e-6), before)
    # the weight's distance from 1 need not be representable in bf16, so take one that is
    offset = (weight.float() - 1).to(bf16)
    assert torch.equal(norm.offset_rms_norm(x, offset, 1e-6), (unit * (1 + offset.float())).to(bf16))
    assert (before != after).float().mean() > 0.1
    other_order = (1 + offset) * unit.to(bf16)
    assert (norm.offset_rms_norm(x, offset, 1e-6) != other_order).float().mean() > 0.1


@pytest.mark.parametrize("function", [norm.rms_norm, norm.offset_rms_norm])
def test_rms_norms_compute_wider_than_their_input(function):
    """300² is infinite in fp16 and loses digits in bf16: the mean square must be taken in fp32."""
    weight = torch.zeros(64) if function is norm.offset_rms_norm else torch.ones(64)
    large = torch.full((1, 64), 300.0, dtype=fp16)
    assert torch.equal(function(large, weight.to(fp16), 1e-6), torch.ones(1, 64, dtype=fp16))
    assert not (
        large * torch.rsqrt(large.pow(2).mean(-1, keepdim=True) + 1e-6)
    ).any()  # what fp16 alone gives

    x = torch.randn(64, 64).to(bf16)
    narrow = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert (function(x, weight.to(bf16), 1e-6) != narrow).float().mean() > 0.2


def test_layer_norm_rounds_once():
    """In bf16 it is the fp32 result rounded, and it does not overflow in fp16."""
    x, weight, bias = torch.randn(8, 96).to(bf16), torch.randn(96).to(bf16), torch.randn(96).to(bf16)
    wide = norm.layer_norm(x.float(), weight.float(), bias.float(), 1e-5)
    assert torch.equal(norm.layer_norm(x, weight, bias, 1e-5), wide.to(bf16))
    large = torch.tensor([[300.0, -300.0] * 8], dtype=fp16)
    out = norm.layer_norm(large, torch.ones(16, dtype=fp16), torch.zeros(16, dtype=fp16), 1e-5)
    assert torch.equal(out, large.sign())


@pytest.mark.parametrize("kind, start", [("rms", 1.0), ("offset_rms", 0.0), ("layer", 1.0)])
def test_norm_module_uses_its_kind(kind, start):
    """Norm starts as a plain normalisation and calls what the config names, with the config's eps."""
    module = norm.Norm(small_config(norm=kind, norm_eps=3.0), size=2)
    assert torch.equal(module.weight, torch.full((2,), start))
    with torch.no_grad():
        module.weight.copy_(W)
        expected = {"rms": [1.0, -5.0], "offset_rms": [1.5, -5.5], "layer": [1.0, -5.0]}[kind]
        assert torch.equal(module(X), tensor([expected]))


# --------------------------------------------------------------------------------------------------
# MLP


def tanh_gelu(x):
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": tanh_gelu,
    "gelu_new": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "relu": lambda x: x * (x > 0),
}
AT_ONE = {"silu": 0.7310586, "gelu": 0.8413447, "gelu_tanh": 0.8411920, "gelu_new": 0.8411920,
          "gelu_fast": 0.8411920, "relu": 1.0}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_follow_their_formulas(name):
    x = torch.linspace(-8, 8, 2001)
    assert close(mlp.activate(x, name), FORMULAS[name](x.double()))
    assert mlp.activate(tensor(1.0), name).item() == pytest.approx(AT_ONE[name], abs=1e-6)
    assert mlp.activate(tensor(0.0), name).item() == 0.0


def test_activations_are_told_apart():
    """Different functions differ clearly; the three tanh GELUs are one function that rounds in three ways."""
    x = torch.linspace(-4, 4, 801)
    for one, other in itertools.combinations(FORMULAS, 2):
        same = FORMULAS[one] is FORMULAS[other]
        difference = (mlp.activate(x, one) - mlp.activate(x, other)).abs().max().item()
        assert (difference < FP32 * 4) if same else (difference > 1e-4), (one, other)
        if same:
            assert not torch.equal(mlp.activate(x.to(bf16), one), mlp.activate(x.to(bf16), other)), (
                one,
                other,
            )


@pytest.mark.parametrize(
    "kind, expected",
    [("gated", 5 * (2 / (1 + math.exp(-2))) * 3), ("plain", 5 * (3 / (1 + math.exp(-3))))],
)
def test_mlps_by_hand(kind, expected):
    """One number in, gate = 2, up = 3, down = 5: the gate is what bends, not up."""
    module = mlp.make_mlp(small_config(mlp=kind, hidden_size=1, intermediate_size=1))
    for name, value in {"gate_proj": 2.0, "up_proj": 3.0, "down_proj": 5.0}.items():
        if hasattr(module, name):
            torch.nn.init.constant_(getattr(module, name).weight, value)
    assert module(torch.ones(1, 1, 1)).item() == pytest.approx(expected, rel=FP32)


# --------------------------------------------------------------------------------------------------
# Rotary embeddings


def test_inverse_frequencies_by_hand():
    """theta^(-2i/d): each pair turns by a constant factor slower than the one before it."""
    assert close(rope.inverse_frequencies(4, 100.0), tensor([1.0, 0.1]))
    assert close(rope.inverse_frequencies(8, 10_000.0), tensor([1.0, 0.1, 0.01, 0.001]), 1e-9)
    assert torch.equal(rope.inverse_frequencies(2, 123.0), tensor([1.0]))


def test_cos_sin_of_known_angles():
    """Position times frequency is the angle, given once for each half; scale multiplies both."""
    cos, sin = rope.cos_sin(tensor([[0, 1, 300]]), tensor([math.pi, math.pi / 2]), torch.float32, scale=2.0)
    assert close(
        cos, 2 * tensor([[[1.0, 1, 1, 1], [-1, 0, -1, 0], [1, 1, 1, 1]]]), 1e-4
    )  # 300π is 4e-5 off in fp32
    assert close(sin, 2 * tensor([[[0.0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]]), 1e-4)


def test_angles_are_computed_in_fp32():
    """bf16 has 8 digits: position 257 would become 256. Only the results are rounded."""
    cos, _ = rope.cos_sin(tensor([[257]]), tensor([1.0]), bf16)
    assert cos.dtype == bf16
    assert cos[0, 0, 0] == torch.tensor(math.cos(257)).to(bf16)
    assert cos[0, 0, 0] != torch.tensor(math.cos(256)).to(bf16)


def test_rotate_half_is_a_quarter_turn():
    x = tensor([[1.0, 2.0, 3.0, 4.0]])
    assert torch.equal(rope.rotate_half(x), tensor([[-3.0, -4.0, 1.0, 2.0]]))
    assert torch.equal(rope.rotate_half(rope.rotate_half(x)), -x)


def as_complex_rotation(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """The same rotation written with complex numbers: pair (i, i + half) times e^(i·angle)."""
    half = len(inv_freq)
    pairs = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double())
    turned = pairs * torch.exp(1j * positions[:, None, :, None].double() * inv_freq.double())
    return torch.cat((turned.real, turned.imag, x[..., 2 * half :].double()), dim=-1)


@pytest.mark.parametrize("rotary_dim", [8, 4, 2])
def test_apply_rope_turns_pairs_like_complex_numbers(rotary_dim):
    """Whole heads and parts of them, other positions in each row; dimensions beyond rotary_dim pass."""
    query, key = torch.randn(2, 6, 5, 8), torch.randn(2, 3, 5, 8)
    positions = tensor([[0, 1, 2, 3, 4], [7, 8, 50, 51, 3]])
    inv_freq = rope.inverse_frequencies(rotary_dim, 100.0)
    cos_sin = rope.cos_sin(positions, inv_freq, torch.float32)
    for found, x in zip(rope.apply_rope(query, key, *cos_sin), (query, key), strict=True):
        assert close(found, as_complex_rotation(x, positions, inv_freq), 1e-5)  # angles to 51 rounded: 3e-6
        assert torch.equal(found[..., rotary_dim:], x[..., rotary_dim:])
        assert close(found.norm(dim=-1), x.norm(dim=-1))  # a rotation keeps lengths
    assert torch.equal(
        rope.apply_rope(query, key, *cos_sin)[0][0, :, 0], query[0, :, 0]
    )  # position 0: no turn


def test_a_part_of_a_head_is_told_by_its_width_alone():
    """Four of eight dimensions, where there are also four heads and four tokens."""
    query = torch.randn(1, 4, 4, 8)
    inv_freq = rope.inverse_frequencies(4, 100.0)
    turned, _ = rope.apply_rope(query, query, *rope.cos_sin(torch.arange(4)[None], inv_freq, torch.float32))
    assert close(turned, as_complex_rotation(query, torch.arange(4)[None], inv_freq))


def test_scores_depend_on_the_distance_alone():
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    inv_freq = rope.inverse_frequencies(16, 100.0)

    def score(m, n):
        q, _ = rope.apply_rope(query, key, *rope.cos_sin(tensor([[m]]), inv_freq, torch.float32))
        _, k = rope.apply_rope(query, key, *rope.cos_sin(tensor([[n]]), inv_freq, torch.float32))
        return (q * k).sum().item()

    assert score(3, 1) == pytest.approx(score(43, 41), abs=1e-5)  # rounding of angles near 43: 2e-6 each
    assert abs(score(3, 1) - score(4, 1)) > 0.1
    assert abs(score(3, 1) - score(1, 3)) > 0.1  # backwards is another distance


def test_linear_scaling_stretches_every_pair():
    plain = rope.inverse_frequencies(8, 10_000.0)
    config = RopeConfig(scaling="linear", factor=4.0)
    assert torch.equal(rope.frequencies(config, 8, 16, seq_len=0), plain / 4)
    assert rope.attention_factor(config) == 1.0


def test_dynamic_scaling_stretches_slow_pairs_most():
    """Within the trained length nothing changes; beyond it the fastest pair stays, the slowest stretches."""
    config, dim, trained = RopeConfig(scaling="dynamic", factor=2.5, theta=100.0), 16, 32
    plain = rope.inverse_frequencies(dim, 100.0)
    for length in (1, trained):
        assert torch.equal(rope.frequencies(config, dim, trained, length), plain)
    # 1.3·32/32 - 0.3 is not quite 1 in fp32: at the trained length itself nothing must be stretched.
    uneven = RopeConfig(scaling="dynamic", factor=1.3, theta=100.0)
    assert torch.equal(rope.frequencies(uneven, dim, trained, trained), plain)
    for length in (trained + 1, 80):
        found = rope.frequencies(config, dim, trained, length)
        stretch = 2.5 * length / trained - 1.5
        assert found[0] == 1.0
        assert found[-1].item() == pytest.approx(plain[-1].item() / stretch, rel=1e-5)  # powers in fp32
        expected = [(100 * stretch ** (16 / 14)) ** (-2 * i / dim) for i in range(dim // 2)]
        assert close(found, tensor(expected), 1e-6)


def turns(inv_freq: torch.Tensor, length: int) -> torch.Tensor:
    """How often each pair turns in a text of this length."""
    return length * inv_freq.double() / (2 * math.pi)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("factor", [1.0, 4.0, 32.0])
def test_yarn_leaves_fast_pairs_and_divides_slow_ones(factor, truncate):
    """Above beta_fast turns in the trained length: unchanged. Below beta_slow: divided. Between: a ramp."""
    dim, theta, length, fast, slow = 32, 1000.0, 256, 8.0, 0.5
    plain = rope.inverse_frequencies(dim, theta)
    found = rope.yarn_frequencies(dim, theta, factor, length, fast, slow, truncate)
    if factor == 1.0:
        assert close(found / plain, torch.ones(dim // 2))
        return
    count = turns(plain, length)
    assert torch.equal(found[count >= fast], plain[count >= fast])
    assert close((found * factor / plain)[count <= slow], torch.ones(int((count <= slow).sum())))
    between = (count < fast) & (count > slow)
    assert between.sum() >= 4
    assert ((found < plain) & (found > plain / factor))[between].all()

    def index(number):  # the real-valued index of the pair that makes this many turns
        return dim / 2 * math.log(length / (2 * math.pi * number), theta)

    first, last = index(fast), index(slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    for i in range(dim // 2):
        part = min(max((i - first) / (last - first), 0.0), 1.0)  # of the way to fully divided
        expected = theta ** (-2 * i / dim) * (1 - part + part / factor)
        assert found[i].item() == pytest.approx(expected, rel=FP32 * 2)


def test_yarn_ramp_ends_at_the_heads_last_dimension():
    """Bounds beyond the dimensions 0 and dim - 1 are moved there, which makes the ramp steeper."""
    found = rope.yarn_frequencies(32, 10.0, 4.0, 1000, beta_fast=200.0, beta_slow=0.5, truncate=False)
    part = torch.arange(16) / 31  # of the way to fully divided
    assert close(found, 10.0 ** (-torch.arange(16).double() / 16) * (1 - part + part / 4))


def test_yarn_ramp_without_width():
    """Where both bounds fall on one pair, the ramp is a step and nothing is divided by zero."""
    found = rope.yarn_frequencies(8, 10_000.0, 4.0, 16, beta_fast=8.0, beta_slow=3.0, truncate=True)
    assert torch.isfinite(found).all()
    assert torch.equal(found[:1], torch.ones(1)) and close(
        found[1:] * 4, rope.inverse_frequencies(8, 1e4)[1:]
    )


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"factor": 4.0}, 0.1 * math.log(4) + 1),
        ({"factor": 1.0}, 1.0),
        ({"factor": 0.5}, 1.0),
        ({"factor": 1.5}, 0.1 * math.log(1.5) + 1),
        ({"factor": 4.0, "attention_factor": 0.7}, 0.7),
        (
            {"factor": 4.0, "mscale": 0.8, "mscale_all_dim": 0.3},
            (0.08 * math.log(4) + 1) / (0.03 * math.log(4) + 1),
        ),
        ({"factor": 4.0, "mscale": 0.8}, 0.1 * math.log(4) + 1),  # one of the two alone says nothing
        ({"factor": 4.0, "mscale_all_dim": 0.3}, 0.1 * math.log(4) + 1),
        ({"factor": 4.0, "attention_factor": 0.7, "mscale": 0.8, "mscale_all_dim": 0.3}, 0.7),
    ],
)
def test_yarn_attention_factor(settings, expected):
    config = RopeConfig(scaling="yarn", original_max_positions=16, **settings)
    assert rope.yarn_attention_factor(config) == pytest.approx(expected, rel=1e-12)
    assert rope.attention_factor(config) == rope.yarn_attention_factor(config)


def test_frequencies_hand_every_setting_on():
    """Each to the parameter that is called like it; one scaling is not mixed with another."""
    length = {"factor": 4.0, "original_max_positions": 64}
    yarn = length | {"beta_fast": 8.0, "beta_slow": 0.5, "truncate": False}
    llama3 = length | {"low_freq_factor": 0.5, "high_freq_factor": 3.0}
    plain = rope.inverse_frequencies(16, 500.0)
    for scaling, settings, expected in (
        ("yarn", yarn, rope.yarn_frequencies(rotary_dim=16, theta=500.0, **yarn)),
        ("llama3", llama3, rope.llama3_frequencies(inv_freq=plain, **llama3)),
        ("default", {"factor": 4.0}, plain),
    ):
        config = RopeConfig(scaling=scaling, theta=500.0, **settings)
        assert torch.equal(rope.frequencies(config, 16, 32, 999), expected), scaling


@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_llama3_leaves_short_wavelengths_and_divides_long_ones(factor):
    """Against a loop over pairs in float64, with pairs of all three kinds."""
    dim, length, low, high = 32, 256, 0.5, 4.0
    plain = rope.inverse_frequencies(dim, 500.0)
    found = rope.llama3_frequencies(plain, factor, low, high, length)
    kinds = set()
    for i in range(dim // 2):
        frequency = 500.0 ** (-2 * i / dim)
        count = length * frequency / (2 * math.pi)  # turns in the trained length
        part = min(max((count - low) / (high - low), 0.0), 1.0)  # how much of the pair stays unscaled
        kinds.add(part if part in (0.0, 1.0) else "blended")
        expected = frequency * (part + (1 - part) / factor)
        assert found[i].item() == pytest.approx(expected, rel=FP32 * 2)
        if part in (0.0, 1.0):
            assert found[i] == (plain[i] if part == 1.0 else plain[i] / factor)
    assert kinds == {0.0, 1.0, "blended"}


# --------------------------------------------------------------------------------------------------
# Heads and groups


def test_split_heads_cuts_consecutive_pieces():
    """Feature f of a token belongs to head f // head_dim; merging brings everything back."""
    x = torch.arange(2 * 3 * 12.0).view(2, 3, 12)
    heads = attention.split_heads(x, 4)
    assert heads.shape == (2, 4, 3, 3)
    for b, h, t, d in itertools.product(range(2), range(4), range(3), range(3)):
        assert heads[b, h, t, d] == x[b, t, 3 * h + d]
    assert torch.equal(attention.merge_heads(heads), x)


def test_split_qkv_per_head_on_labels():
    """Rows q0 k0 v0 q1 k1 v1: with two heads of two dimensions, head 1's key is rows 8 and 9."""
    query, key, value = attention.split_qkv_per_head(torch.arange(12.0).view(1, 1, 12), 2)
    assert query.squeeze().tolist() == [[0, 1], [6, 7]]
    assert key.squeeze().tolist() == [[2, 3], [8, 9]]
    assert value.squeeze().tolist() == [[4, 5], [10, 11]]


@pytest.mark.parametrize(
    "width, keys, values",
    [(8, [[4, 5]], [[6, 7]]), (12, [[4, 5], [6, 7]], [[8, 9], [10, 11]])],
    ids=["one key head", "two key heads"],
)
def test_split_qkv_blocks_on_labels(width, keys, values):
    """All queries, then all keys, then all values; the number of key heads follows from the width."""
    query, key, value = attention.split_qkv_blocks(torch.arange(float(width)).view(1, 1, width), 2, 2)
    assert query[0, :, 0].tolist() == [[0, 1], [2, 3]]
    assert key[0, :, 0].tolist() == keys
    assert value[0, :, 0].tolist() == values


def test_repeat_kv_repeats_in_place():
    """Heads 0 and 1 for six query heads: 0 0 0 1 1 1, not the tiled 0 1 0 1 0 1."""
    heads = torch.arange(2.0).view(1, 2, 1, 1).expand(3, 2, 4, 5)
    repeated = attention.repeat_kv(heads, 3)
    assert repeated.shape == (3, 6, 4, 5)
    assert repeated[0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(attention.repeat_kv(x, 2), x.repeat_interleave(2, dim=1))
    assert torch.equal(attention.repeat_kv(x, 1), x)


@pytest.mark.parametrize(
    "layout, kv_heads, expected",
    [
        ("separate", 2, {"q_proj": (20, 8), "k_proj": (10, 8), "v_proj": (10, 8), "o_proj": (8, 20)}),
        ("blocks", 2, {"qkv_proj": (40, 8), "o_proj": (8, 20)}),
        ("per_head", 4, {"qkv_proj": (60, 8), "o_proj": (8, 20)}),
    ],
)
@pytest.mark.parametrize("qkv_bias, out_bias", [(False, True), (True, False)])
def test_projections_have_the_widths_and_biases_of_the_config(layout, kv_heads, expected, qkv_bias, out_bias):
    """Four heads of five dimensions, which do not add up to the stream's eight."""
    config = small_config(
        num_heads=4, num_kv_heads=kv_heads, head_dim=5, qkv_layout=layout, qkv_bias=qkv_bias,
        out_bias=out_bias, rope=None,
    )  # fmt: skip
    module = attention.Attention(config, 0)
    assert {name: tuple(linear.weight.shape) for name, linear in module.named_children()} == expected
    biased = {name for name, linear in module.named_children() if linear.bias is not None}
    assert biased == ({"o_proj"} if out_bias else expected.keys() - {"o_proj"})


# --------------------------------------------------------------------------------------------------
# Masks


def rows(text: str) -> torch.Tensor:
    """A mask drawn with x where visible and . where not, one word per query."""
    return tensor([[mark == "x" for mark in row] for row in text.split()])


@pytest.mark.parametrize(
    "queries, keys, expected",
    [
        (3, 3, "x.. xx. xxx"),
        (2, 4, "xxx. xxxx"),  # the queries are the last ones: bottom-right, not x... xx..
        (1, 4, "xxxx"),
        (1, 1, "x"),
    ],
)
def test_causal_mask_literally(queries, keys, expected):
    assert torch.equal(masks.causal_mask(queries, keys)[0, 0], rows(expected))


@pytest.mark.parametrize(
    "queries, keys, window, expected",
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], 1, "x... .x.. ..x. ...x"),  # the window counts the query's own key
        ([0, 1, 2, 3], [0, 1, 2, 3], 2, "x... xx.. .xx. ..xx"),
        ([0, 1, 2, 3], [0, 1, 2, 3], 4, "x... xx.. xxx. xxxx"),
        ([4, 5], [2, 3, 4, 5], 3, "xxx. .xxx"),  # keys 0 and 1 have left the cache
        ([5], [3, 4, 5], 2, ".xx"),
        ([2, 3], [0, 1, 2, 3, 4, 5], None, "xxx... xxxx.."),  # room that is not used yet is the future
    ],
)
def test_visible_literally(queries, keys, window, expected):
    found = masks.visible(tensor([queries]), tensor([keys]), None, window)
    assert torch.equal(found[0, 0], rows(expected))


def test_visible_hides_padding_from_everyone():
    """Left padding, right padding and none; a query at padding may see nothing at all."""
    valid = rows(".xxx xxx. xxxx")
    positions = torch.arange(4)[None]
    found = masks.visible(positions, positions, valid, window=3)
    assert found.shape == (3, 1, 4, 4)
    assert torch.equal(found[0, 0], rows(".... .x.. .xx. .xxx"))
    assert torch.equal(found[1, 0], rows("x... xx.. xxx. .xx."))
    assert torch.equal(found[2, 0], rows("x... xx.. xxx. .xxx"))


SOME, ALL = rows("xxx. xxxx"), rows("xxxx xxxx")


@pytest.mark.parametrize(
    "queries, keys, valid, window, expected",
    [
        (4, 4, None, None, True),  # a square: the triangle fits
        (1, 4, None, None, True),  # the last query sees everything: no triangle needed
        (2, 4, None, None, False),  # the triangle would lie at the top left
        (4, 4, ALL, None, True),
        (4, 4, SOME, None, False),
        (1, 4, SOME, None, False),
        (4, 4, None, 4, True),  # a window as long as the text hides nothing
        (4, 4, None, 3, False),
        (1, 4, None, 4, True),
        (1, 4, None, 3, False),
        (2, 4, ALL, 4, False),
        (1, 4, ALL, 5, True),
    ],
)
def test_causal_flag_suffices(queries, keys, valid, window, expected):
    assert masks.causal_flag_suffices(queries, keys, valid, window) is expected


def test_causal_flag_is_the_mask_wherever_it_suffices():
    """For all small shapes: where no mask is built, the kernel's triangle is right, or none for one query."""
    for keys, window in itertools.product(range(1, 6), [None, 1, 2, 3, 4, 5, 6]):
        for queries in range(1, keys + 1):
            places = torch.arange(keys)[None]
            mask = masks.visible(places[:, keys - queries :], places, None, window)[0, 0]
            kernel = (
                torch.ones(queries, keys, dtype=torch.bool).tril() if queries > 1 else torch.ones_like(mask)
            )
            assert masks.causal_flag_suffices(queries, keys, None, window) is torch.equal(mask, kernel)


@pytest.mark.parametrize("dtype", [fp16, bf16, torch.float32])
def test_mask_to_bias_is_finite(dtype):
    """0 where visible, else the lowest finite number: a row of those alone becomes uniform, not NaN."""
    bias = masks.mask_to_bias(rows("x. .."), dtype)
    assert bias.dtype == dtype
    assert torch.equal(
        bias, tensor([[0.0, torch.finfo(dtype).min], [torch.finfo(dtype).min] * 2], dtype=dtype)
    )
    weights = torch.softmax(bias.float(), dim=-1)
    assert torch.equal(weights, tensor([[1.0, 0.0], [0.5, 0.5]]))


@pytest.mark.parametrize("as_bool", [False, True])
def test_position_ids_count_real_tokens(as_bool):
    mask = rows("..xx xx.. x.xx .... xxxx")
    found = masks.position_ids_from_mask(mask if as_bool else mask.long())
    assert found.tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 2], [0, 0, 0, 0], [0, 1, 2, 3]]


# --------------------------------------------------------------------------------------------------
# Attention


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_attention_by_hand(backend):
    """Scores 0 and ln 3 give weights 1/4 and 3/4; values 0 and 4 give 3. The first query sees only itself."""
    query = torch.ones(1, 1, 2, 1)
    key = tensor([0.0, math.log(3)]).view(1, 1, 2, 1)
    value = tensor([0.0, 4.0]).view(1, 1, 2, 1)
    out, _ = backends.select(backend)(query, key, value, None, scale=1.0)
    assert out.flatten().tolist() == pytest.approx([0.0, 3.0], abs=1e-6)
    out, _ = backends.select(backend)(query, key, value, rows(".x x.")[None, None], scale=1.0)
    assert out.flatten().tolist() == [4.0, 0.0]


@pytest.mark.parametrize("queries", [1, 3, 6])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_attention_follows_its_formula(backend, masked, queries):
    """Grouped queries, fewer queries than keys, a mask per row: against a loop over heads in float64."""
    keys, heads, kv_heads, width = 6, 6, 2, 8
    query = torch.randn(2, heads, queries, width)
    key, value = torch.randn(2, kv_heads, keys, width), torch.randn(2, kv_heads, keys, width)
    mask = masks.causal_mask(queries, keys)
    if masked:
        mask = mask & rows("xxxxxx ..xxxx")[:, None, None]
    no_mask = not masked and queries in (1, keys)
    out, weights = backends.select(backend)(query, key, value, None if no_mask else mask, scale=0.3)
    for b, h in itertools.product(range(2), range(heads)):
        scores = query[b, h].double() @ key[b, h // 3].double().T * 0.3
        seen = mask.expand(2, 1, queries, keys)[b, 0]
        expected = torch.zeros(queries, width, dtype=torch.float64)
        for i in range(queries):
            if seen[i].any():
                exps = torch.exp(scores[i][seen[i]])
                expected[i] = (exps / exps.sum()) @ value[b, h // 3].double()[seen[i]]
        assert close(out[b, h], expected)
        if backend == "eager":
            assert close(weights[b, h] @ value[b, h // 3], expected)
            assert not weights[b, h][~seen].any()


@pytest.mark.parametrize("dtype", [torch.float32, bf16, fp16])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_query_that_sees_nothing_gets_nothing(backend, dtype):
    """Its context is 0 and all gradients are finite, beside rows that do see keys.

    Scores of about -100 would carry fp16's lowest finite number on to -inf if the two were added in fp16.
    """
    query, key = torch.full((1, 2, 3, 8), 6.0) + torch.rand(1, 2, 3, 8), torch.full((1, 2, 3, 8), -6.0)
    leaves = [x.to(dtype).requires_grad_() for x in (query, key, torch.randn(1, 2, 3, 8))]
    mask = rows("... xx. xxx")[None, None]
    out, weights = backends.select(backend)(*leaves, mask, scale=0.35)
    assert not out[:, :, 0].any()
    assert weights is None or not weights[:, :, 0].any()
    assert torch.isfinite(out).all()
    out.float().pow(2).sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)
    assert not leaves[0].grad[:, :, 0].any()


@pytest.mark.parametrize("softmax, computed_in", [("float32", torch.float32), ("input", bf16)])
def test_softmax_is_taken_in_fp32_unless_the_config_says_otherwise(softmax, computed_in):
    scores, mask = torch.randn(1, 2, 3, 40).to(bf16), torch.ones(1, 1, 3, 40, dtype=torch.bool)
    weights = backends.attention_weights(scores, mask, softmax)
    assert weights.dtype == computed_in
    assert torch.equal(weights, scores.to(computed_in).softmax(-1))


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
def test_each_head_may_have_a_mask_of_its_own(backend, heads, queries):
    """Heads that share a key head see other keys, and one of them none: as if each were alone."""
    query, key = torch.randn(1, heads, queries, 8), torch.randn(1, heads // 2, 4, 8)
    seen = ("x.x.", "....", ".xxx", "xx..")[:heads]
    mask = torch.stack([rows(" ".join([row] * queries)) for row in seen])[None]
    out, _ = backends.select(backend)(query, key, key, mask, scale=0.3)
    for head in range(heads):
        shared = key[:, head // 2, None]
        alone, _ = backends.eager_attention(
            query[:, head, None], shared, shared, mask[:, head, None], scale=0.3
        )
        assert close(out[:, head, None], alone)
    assert not out[:, 1].any()


@pytest.mark.parametrize("queries", [1, 32])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
def test_dropout_drops_weights(backend, queries):
    """Equal weights on 32 keys whose values are 1: with a quarter of them dropped, the others count 4/3."""
    query, key = torch.zeros(1, 8, queries, 4), torch.ones(1, 8, 32, 4)
    mask = torch.ones(1, 1, queries, 32, dtype=torch.bool)
    attend = backends.select(backend)
    assert close(attend(query, key, key, mask, scale=1.0)[0], torch.ones(1, 8, queries, 4))
    kept = attend(query, key, key, mask, scale=1.0, dropout=0.25)[0] * 32 * 3 / 4
    assert close(kept, kept.round(), 1e-5)
    assert kept.min() < 24 < kept.max()
    assert kept.mean().item() == pytest.approx(24, abs=4)  # 8 or more draws, each with deviation √6


# --------------------------------------------------------------------------------------------------
# Loss


def test_next_token_loss_by_hand():
    """Position 0 is uniform over two tokens, position 1 gives 3/4 and 1/4; the last one predicts nothing."""
    logits = tensor([[[0.0, 0.0], [math.log(3), 0.0], [50.0, -50.0]]])
    found = [
        loss.next_token_loss(logits, tensor([labels])).item()
        for labels in ([1, 0, 1], [0, 0, 0], [0, -100, 1])
    ]
    expected = [(math.log(2) + math.log(4)) / 2, (math.log(2) + math.log(4 / 3)) / 2, math.log(4)]
    assert found == pytest.approx(expected, rel=FP32)


def test_next_token_loss_counts_real_targets_over_the_whole_batch():
    """Rows are not averaged first: three targets in one row and one in the other weigh the same each."""
    logits, labels = torch.randn(2, 4, 11), torch.randint(0, 11, (2, 4))
    labels[1, 2:] = -100
    terms = [
        -torch.log_softmax(logits[b, t].double(), -1)[labels[b, t + 1]]
        for b, t in itertools.product(range(2), range(3))
        if labels[b, t + 1] != -100
    ]
    assert len(terms) == 4
    assert loss.next_token_loss(logits, labels).item() == pytest.approx((sum(terms) / 4).item(), rel=FP32)


def test_a_sum_of_losses_is_not_divided():
    """Three targets count: the sum is three times their mean."""
    logits, labels = torch.randn(1, 5, 11), tensor([[1, 2, 3, -100, 5]])
    mean, total = (loss.next_token_loss(logits, labels, how).item() for how in ("mean", "sum"))
    assert total == pytest.approx(3 * mean, rel=FP32)


def test_next_token_loss_is_taken_in_fp32():
    logits = (10 * torch.randn(2, 5, 300)).to(bf16)
    labels = torch.randint(0, 300, (2, 5))
    found = loss.next_token_loss(logits, labels)
    assert found.dtype == torch.float32
    assert found.item() == loss.next_token_loss(logits.float(), labels).item()


# --------------------------------------------------------------------------------------------------
# Starting weights


@pytest.mark.parametrize("depth_scaled", [False, True])
@pytest.mark.parametrize("kind", ["rms", "offset_rms", "layer"])
def test_starting_weights(kind, depth_scaled):
    """Whatever was there before: matrices of the given deviation, norms that change nothing, biases of 0."""
    config = small_config(
        hidden_size=64, head_dim=32, intermediate_size=96, vocab_size=80, norm=kind, init_std=0.1,
        qkv_bias=True, out_bias=True, mlp_bias=True, depth_scaled_init=depth_scaled,
    )  # fmt: skip
    model = CausalLM(config)
    drawn = []
    for _ in range(2):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, 7.0)
        initialize.initialize(model, config, torch.Generator().manual_seed(3))
        drawn.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    for name, value in drawn[0].items():
        assert torch.equal(value, drawn[1][name]), name
        if name.endswith("bias"):
            assert not value.any(), name
        elif value.ndim == 1:
            assert (value == (0 if kind == "offset_rms" else 1)).all(), name
        else:  # two layers write four times to the residual stream
            halved = depth_scaled and name.endswith(("o_proj.weight", "down_proj.weight"))
            assert value.std().item() == pytest.approx(0.05 if halved else 0.1, rel=0.1), name


# --------------------------------------------------------------------------------------------------
# What is refused


def small_config(**changes) -> ModelConfig:
    values = dict(
        vocab_size=11, hidden_size=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4,
        intermediate_size=12, max_positions=16,
    )  # fmt: skip
    return ModelConfig(**(values | changes))


def test_wrong_shapes_are_caught_by_the_annotations():
    """The test run checks every shape annotation of minilm: axes that are missing, and axes that disagree."""
    with pytest.raises(jaxtyping.TypeCheckError, match="repeat_kv"):
        attention.repeat_kv(torch.zeros(2, 3, 4), 2)
    with pytest.raises(jaxtyping.TypeCheckError, match="rms_norm"):
        norm.rms_norm(torch.zeros(2, 3), torch.ones(4), 1e-6)
    with pytest.raises(jaxtyping.TypeCheckError, match="mask_to_bias"):
        masks.mask_to_bias(torch.ones(2, 2), torch.float32)  # a 0/1 mask is not a boolean one


IDS = tensor([[1, 2, 3], [4, 5, 6]])
ONES = torch.ones(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 3, 8)}, "exactly one of input_ids and inputs"),
        ({"input_ids": IDS + 5}, r"token ids run from 6 to 11; this model knows 0 to 10"),
        ({"input_ids": IDS - 2}, r"token ids run from -1 to 4"),
        ({"input_ids": IDS, "attention_mask": ONES[:, :2]}, r"attention_mask is \(2, 2\).*= \(2, 3\)"),
        ({"input_ids": IDS, "attention_mask": ONES[:1]}, r"attention_mask is \(1, 3\)"),
        ({"input_ids": IDS, "attention_mask": ONES[:, None]}, r"attention_mask is \(2, 1, 3\)"),
        ({"input_ids": IDS, "attention_mask": torch.zeros(2, 1, 3, 3)}, "4-D boolean mask"),
        ({"input_ids": IDS, "attention_mask": ONES[:, None, None].bool().expand(2, 1, 3, 3)[..., :2]},
         r"attention_mask is \(2, 1, 3, 2\)"),
        ({"input_ids": IDS, "output_attentions": True}, "'sdpa' does not keep attention weights.*'eager'"),
        ({"input_ids": IDS, "logits_to_keep": -1}, "logits_to_keep is -1"),
        ({"input_ids": IDS, "labels": IDS, "logits_to_keep": 1}, "leave logits_to_keep at 0 with labels"),
    ],
)  # fmt: skip
def test_the_model_names_what_is_wrong(inputs, message):
    """An error at the boundary, in words, before anything is computed."""
    with pytest.raises(ValueError, match=message):
        CausalLM(small_config())(**inputs)


def test_the_mask_covers_cached_tokens_too():
    model = CausalLM(small_config())
    cache = DynamicCache(model.config)
    model(IDS, cache=cache)
    with pytest.raises(ValueError, match=r"\(2, 4\) with 1 = real token \(3 cached and 1 new\)"):
        model(IDS[:, :1], attention_mask=ONES[:, :1], cache=cache)


def test_learned_positions_end():
    """A model with a table of positions refuses the first one beyond it, counted, cached or given."""
    model = CausalLM(small_config(rope=None, max_positions=4))
    ids = IDS[:1].repeat(1, 2)
    model(ids[:, :4])
    with pytest.raises(
        ValueError, match="position 4 was asked for; this model has learned 4 positions, 0 to 3"
    ):
        model(ids[:, :5])
    with pytest.raises(ValueError, match="position 9 was asked for"):
        model(ids[:, :2], position_ids=tensor([[0, 9]]))
    cache = DynamicCache(model.config)
    model(ids[:, :4], cache=cache)
    with pytest.raises(ValueError, match="position 4 was asked for"):
        model(ids[:, 4:5], cache=cache)
    # Padding does not count: five places, four of them real.
    model(ids[:, :5], attention_mask=tensor([[0, 1, 1, 1, 1]]))


def test_rotary_positions_do_not_end():
    assert torch.isfinite(CausalLM(small_config(max_positions=4))(IDS.repeat(1, 5)).logits).all()


def test_a_cache_of_another_model_is_refused():
    model = CausalLM(small_config())
    with pytest.raises(ValueError, match="the cache has 3 layers and the model 2"):
        model(IDS, cache=DynamicCache(small_config(num_layers=3)))


def test_unknown_backend_is_refused():
    model = CausalLM(small_config())
    for make in (lambda: setattr(model, "backend", "magic"), lambda: CausalLM(small_config(), "magic")):
        with pytest.raises(ValueError, match="'magic' does not exist; choose one of eager, sdpa"):
            make()
    assert model.backend == "sdpa"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backend_can_be_changed_at_any_time(family):
    """Setting model.backend is enough: the same model then keeps its attention weights."""
    model = CausalLM(FAMILIES[family].read_config(FAMILIES[family].tiny))
    model.backend = "eager"
    assert len(model(IDS, output_attentions=True).attentions) == model.config.num_layers
