"""What checks the exercises of notebook 04, and the wrong answers that people give."""

import math

import torch

from minilm.course.probes import settled
from minilm.course.spec import Case, Unit

UNIT = Unit(4, "mlp")


def draw_settled(draw, function, count, dtype):
    """Numbers whose images round to the same bits, however they are computed."""
    x = 2 * draw.normal(8 * count, dtype=dtype)
    return x[settled(function(x.double()), dtype)][:count]


def activation_inputs(draw, function):
    """The inputs of an activation function."""
    yield Case((2 * draw.normal(3, 4, 5),), "float32", gradient=True)
    yield Case((torch.tensor([0.0, 1.0, -1.0]),), "0, 1 and -1")
    for dtype in (torch.bfloat16, torch.float16):
        yield Case((draw_settled(draw, function, 60, dtype),), f"{dtype}: to the bit", exact=True)
    large = torch.tensor([100.0, -100.0, 50.0, -50.0, 300.0, -300.0])
    yield Case((large,), "large numbers", gradient=True)
    yield Case((large.half(),), "large numbers in float16")


def wide(x):
    """x in fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --------------------------------------------------------------------------------------------------
# 4.1

gelu_tanh = UNIT.exercise(
    "gelu_tanh",
    minutes=10,
    difficulty=1,
    hints=(
        "The formula is in the docstring; write it from the inside outwards. In which dtype?",
        "x.float() first, then the cube, then the tanh. Round the product at the very end.",
        "0.5 * wide * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))), to x's dtype.",
    ),
)


ROOT = math.sqrt(2 / math.pi)


def gelu(x, cubic=0.044715, power=3, root=ROOT, half=0.5, in_fp32=True):
    """The tanh GELU with the places where people go wrong."""
    v = wide(x) if in_fp32 else x
    return (half * v * (1 + torch.tanh(root * (v + cubic * v.pow(power))))).to(x.dtype)


@gelu_tanh.inputs
def _(draw):
    yield from activation_inputs(draw, gelu)


@gelu_tanh.law("f(x) - f(-x) = x")
def _(answer, draw):
    x = 3 * draw.normal(20)
    assert torch.allclose(answer(x) - answer(-x), x, atol=1e-5), "The two halves do not add up to x."


@gelu_tanh.mistake(
    "the exact GELU",
    "You compute the exact GELU, with the error function in place of the tanh.",
    "The two differ in the fourth digit. GPT-NeoX uses the exact one unless a "
    "checkpoint says otherwise, Gemma "
    "and BigCode the tanh.",
    "notebook 04, GELU twice",
)
def _(x):
    return torch.nn.functional.gelu(wide(x)).to(x.dtype)


@gelu_tanh.mistake(
    "x · sigmoid(1.702 x)",
    "You compute the quick GELU, x · sigmoid(1.702 x): a third formula, coarser than the tanh.",
    "OpenAI's CLIP uses it. In a model that was trained with another one, every layer is a little off.",
    "notebook 04, GELU twice",
)
def _(x):
    return (wide(x) * torch.sigmoid(1.702 * wide(x))).to(x.dtype)


@gelu_tanh.mistake(
    "no cube",
    "The cube is missing: you take the tanh of √(2/π) · x.",
    "Around 0 it looks the same; the two part from 1 on.",
    "notebook 04, GELU twice",
)
def _(x):
    return gelu(x, cubic=0.0)


@gelu_tanh.mistake(
    "a square for the cube",
    "You square x where the formula has its cube.",
    "The square has lost the sign: negative numbers pass that should be held back.",
    "notebook 04, First by hand",
)
def _(x):
    return gelu(x, power=2)


@gelu_tanh.mistake(
    "√2/π for √(2/π)",
    "Your factor is √2 / π = 0.4502: the root spans the whole fraction, √(2/π) = 0.7979.",
    "The bend is too soft, and every layer adds to the error.",
    "notebook 04, First by hand",
)
def _(x):
    return gelu(x, root=math.sqrt(2) / math.pi)


@gelu_tanh.mistake(
    "not halved",
    "The half is missing: 1 + tanh goes up to 2, and your result is twice as large as it should be.",
    "Every MLP adds twice as much to the residual stream.",
    "notebook 04, First by hand",
)
def _(x):
    return gelu(x, half=1.0)


@gelu_tanh.mistake(
    "all in x's dtype",
    "You compute every step in the dtype of x, and each one is rounded.",
    (
        "1 + tanh is near 0 for negative x: in bf16 most of its digits are gone "
        "there, and the tail of GELU with it."
    ),
    "notebook 04, GELU twice",
)
def _(x):
    return gelu(x, in_fp32=False)


# --------------------------------------------------------------------------------------------------
# 4.2

silu = UNIT.exercise(
    "silu",
    minutes=10,
    difficulty=1,
    hints=(
        "Two factors: x, and a number between 0 and 1 that says how much of it passes.",
        "torch.sigmoid is safe for large numbers; exp written out is not. Which dtype do both factors need?",
        "(x.float() * torch.sigmoid(x.float())).to(x.dtype).",
    ),
)


@silu.inputs
def _(draw):
    yield from activation_inputs(draw, lambda x: x * torch.sigmoid(x))


@silu.law("f(x) - f(-x) = x")
def _(answer, draw):
    x = 3 * draw.normal(20)
    assert torch.allclose(answer(x) - answer(-x), x, atol=1e-5), "The two halves do not add up to x."


@silu.mistake(
    "the gate alone",
    "You return sigmoid(x): it is still to be multiplied by x.",
    "Everything that leaves the activation lies between 0 and 1, and large numbers are lost.",
    "notebook 04, First by hand",
)
def _(x):
    return torch.sigmoid(wide(x)).to(x.dtype)


@silu.mistake(
    "x · sigmoid(1.702 x)",
    "You compute the quick GELU: SiLU has no factor inside the sigmoid.",
    "The curves look alike, and a checkpoint was trained with one of them.",
    "notebook 04, GELU twice",
)
def _(x):
    return (wide(x) * torch.sigmoid(1.702 * wide(x))).to(x.dtype)


@silu.mistake(
    "ReLU",
    "You return max(x, 0): SiLU is smooth, and lets a little pass below 0.",
    "What a trained model says with small negative numbers is cut off.",
    "notebook 04, First by hand",
)
def _(x):
    return torch.relu(x)


@silu.mistake(
    "sign of the exponent",
    "You compute x / (1 + exp(x)), with x where -x belongs: the curve is mirrored.",
    "Large numbers are held back, and negative ones pass.",
    "notebook 04, First by hand",
)
def _(x):
    return (wide(x) * torch.sigmoid(-wide(x))).to(x.dtype)


@silu.mistake(
    "exp overflows",
    "You write the sigmoid as 1 / (1 + exp(-x)). For x below -88 the "
    "exponential is infinite: the value is still "
    "right, and the gradient is NaN.",
    "One such number in training makes NaN of every weight before it, after a forward pass that looks fine.",
    "notebook 04, Break it",
)
def _(x):
    return (wide(x) / (1 + torch.exp(-wide(x)))).to(x.dtype)


@silu.mistake(
    "the formula as it stands",
    "You compute x / (1 + exp(-x)) in the dtype of x. Two things are off: in half precision every step is "
    "rounded, and for large negative x the exponential is infinite and the gradient NaN.",
    "Both stay unseen with small numbers in fp32, and both appear in training in half precision.",
    "notebook 04, Break it",
)
def _(x):
    return x / (1 + torch.exp(-x))


@silu.mistake(
    "inf / inf",
    "You write the sigmoid as exp(x) / (1 + exp(x)): for x above 88 both are infinite, and you return NaN.",
    "It works until the first large number comes along, and every later layer is NaN.",
    "notebook 04, Break it",
)
def _(x):
    e = torch.exp(wide(x))
    return (wide(x) * e / (1 + e)).to(x.dtype)


@silu.mistake(
    "all in x's dtype",
    "You round the sigmoid to the dtype of x before the product, and the product again.",
    "torch's own silu computes in fp32 and rounds once: in bf16 you get other bits than transformers.",
    "notebook 04, The real thing",
)
def _(x):
    return x * torch.sigmoid(x)


# --------------------------------------------------------------------------------------------------
# 4.3

gated_mlp = UNIT.exercise(
    "gated_mlp",
    minutes=15,
    difficulty=1,
    hints=(
        "Three matrix products, one activation, one product place by place. Write the shapes beside each.",
        (
            "A weight [out, in] must be transposed before x can be multiplied by "
            "it; or use nn.functional.linear."
        ),
        "(activation(x @ gate_weight.T) * (x @ up_weight.T)) @ down_weight.T",
    ),
)


def mlp_inputs(draw, hidden, intermediate, *batch):
    """x and three weights, of a size that keeps numbers around 1."""
    gate, up = draw.normal(2, intermediate, hidden, scale=1.5 / hidden**0.5)
    down = draw.normal(hidden, intermediate, scale=1.5 / intermediate**0.5)
    return draw.normal(*batch, hidden), gate, up, down


def soft_sign(x):
    return x / (1 + x.abs())


@gated_mlp.inputs
def _(draw):
    activate = torch.nn.functional
    yield Case((*mlp_inputs(draw, 5, 8, 2, 3), activate.silu), "silu", gradient=True)
    yield Case((*mlp_inputs(draw, 5, 7, 2, 3), soft_sign), "another activation")
    yield Case((*mlp_inputs(draw, 4, 4, 3), activate.gelu), "as wide inside as outside")
    for dtype in (torch.bfloat16, torch.float16):
        narrow = (x.to(dtype) for x in mlp_inputs(draw, 6, 9, 2, 2))
        yield Case((*narrow, activate.silu), f"silu, {dtype}")
    yield Case((*mlp_inputs(draw, 3, 5), activate.relu), "one vector")


@gated_mlp.law("up scaled by 2 gives twice the result")
def _(answer, draw):
    x, gate, up, down = mlp_inputs(draw, 5, 8, 3)
    once, twice = (answer(x, gate, factor * up, down, torch.tanh) for factor in (1, 2))
    assert torch.allclose(2 * once, twice, atol=1e-5), "It does not: up is not a plain factor."


@gated_mlp.law("each token is computed by itself")
def _(answer, draw):
    x, *weights = mlp_inputs(draw, 5, 8, 2, 3)
    found, alone = answer(x, *weights, torch.tanh), answer(x[:, 1:2], *weights, torch.tanh)
    assert torch.allclose(found[:, 1:2], alone, atol=1e-5), "A token by itself gives another result."


@gated_mlp.mistake(
    "gate and up swapped",
    "You apply the activation to up, and multiply by gate as it is.",
    "In a new model both matrices are random, and one is as good as the other. A trained one writes noise.",
    "notebook 04, Break it",
)
def _(x, gate, up, down, activation):
    return (x @ gate.T * activation(x @ up.T)) @ down.T


@gated_mlp.mistake(
    "no activation",
    "You do not apply the activation.",
    "A product of two linear maps can still be trained, and a checkpoint does not survive it.",
    "notebook 04, Gates",
)
def _(x, gate, up, down, activation):
    return (x @ gate.T * (x @ up.T)) @ down.T


@gated_mlp.mistake(
    "activation after the product",
    "You apply the activation to the product of gate and up: it belongs to gate alone.",
    "up is no longer linear, and the gate no longer says how much of it passes.",
    "notebook 04, Gates",
)
def _(x, gate, up, down, activation):
    return activation(x @ gate.T * (x @ up.T)) @ down.T


@gated_mlp.mistake(
    "both bent",
    "You apply the activation to gate and to up.",
    "What passes can hardly be negative any more, and a checkpoint counts on both signs.",
    "notebook 04, Gates",
)
def _(x, gate, up, down, activation):
    return (activation(x @ gate.T) * activation(x @ up.T)) @ down.T


@gated_mlp.mistake(
    "sum for product",
    "You add gate and up: they are to be multiplied.",
    "A sum opens and closes nothing; it is a plain MLP with one more matrix.",
    "notebook 04, Gates",
)
def _(x, gate, up, down, activation):
    return (activation(x @ gate.T) + x @ up.T) @ down.T


@gated_mlp.mistake(
    "always SiLU",
    "You apply SiLU, whichever activation is given.",
    "Gemma has the same MLP with GELU, and would run through it without an error.",
    "notebook 04, Four models",
)
def _(x, gate, up, down, activation):
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


@gated_mlp.mistake(
    "residual added",
    "You add x to the result: that is the block's work.",
    "In the block x would be counted twice.",
    "notebook 04, The real thing",
)
def _(x, gate, up, down, activation):
    return x + (activation(x @ gate.T) * (x @ up.T)) @ down.T


@gated_mlp.mistake(
    "weights not transposed",
    (
        "You multiply by the weights as they are stored: [out, in], where a "
        "product from the right needs [in, out]."
    ),
    "Square matrices hide it: shapes fit, and every value is wrong.",
    "notebook 04, First by hand",
)
def _(x, gate, up, down, activation):
    return (activation(x @ gate) * (x @ up)) @ down
