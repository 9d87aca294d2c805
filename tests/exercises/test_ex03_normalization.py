"""What checks the exercises of notebook 03, and the wrong answers that people give."""

import torch

from minilm.course.probes import settled
from minilm.course.spec import Case, Unit

UNIT = Unit(3, "normalization")


def draw_settled(draw, rounded, means):
    """x, parameters around these means, and eps, all in bf16, such that what is rounded first, rounded(x,
    *parameters, eps), has the same bits in whichever order it is computed.
    """
    dtype = torch.bfloat16
    while True:
        args = [draw.normal(5, 9, dtype=dtype), *((m + draw.normal(9, scale=0.3)).to(dtype) for m in means)]
        if settled(rounded(*(arg.double() for arg in args), 1e-6), dtype).all():
            return *args, 1e-6


def normalised(x, eps, subtract=False, count=None, outside=False, root=True, in_fp32=True):
    """The first half of all three norms, with the places where people go wrong."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)) if in_fp32 else x
    x = x - x.mean(dim=-1, keepdim=True) if subtract else x
    power = x.pow(2).mean(dim=-1, keepdim=True)
    power = power * (x.shape[-1] / count) if count else power
    if not root:
        return x / (power + eps)
    return x / (power.sqrt() + eps) if outside else x * torch.rsqrt(power + eps)


# --------------------------------------------------------------------------------------------------
# 3.1

layer_norm = UNIT.exercise(
    "layer_norm",
    minutes=15,
    difficulty=1,
    hints=(
        "Four steps: subtract the mean, divide by the standard deviation, scale, shift. In which dtype?",
        (
            "x.float() first. keepdim=True keeps the axis of a mean, so that it can "
            "be subtracted from every number."
        ),
        "With c = x - mean: (c * rsqrt(c.pow(2).mean(-1, keepdim=True) + eps) * weight + bias), all in fp32.",
    ),
)


def layer(x, weight, bias, eps, **wrong):
    """LayerNorm, rounded once; see normalised."""
    found = normalised(x, eps, **{"subtract": True, **wrong})
    return (found * weight.to(found.dtype) + bias.to(found.dtype)).to(x.dtype)


@layer_norm.inputs
def _(draw):
    def parameters(hidden, dtype=torch.float32):
        return (1 + draw.normal(hidden, scale=0.3)).to(dtype), draw.normal(hidden, scale=0.3, dtype=dtype)

    yield Case((draw.normal(2, 3, 7), *parameters(7), 1e-5), "float32", gradient=True)
    yield Case((draw.normal(5), *parameters(5), 1e-6), "one vector")
    yield Case((draw.normal(3, 6, scale=1e-3), *parameters(6), 1e-6), "tiny numbers: eps counts")
    equal = torch.full((2, 6), float(draw.integer(1, 9)))
    yield Case((equal, *parameters(6), 1e-5), "all numbers of a vector equal")
    yield Case(draw_settled(draw, layer, (1.0, 0.0)), "bfloat16: to the bit", exact=True)
    large = draw.normal(3, 6, scale=500.0, dtype=torch.float16)
    yield Case((large, *parameters(6, torch.float16), 1e-5), "float16: numbers around 500")


@layer_norm.law("with weight 1 and bias 0 each vector has mean 0 and variance 1")
def _(answer, draw):
    found = answer(3 + 2 * draw.normal(4, 8), torch.ones(8), torch.zeros(8), 1e-6)
    assert found.mean(-1).abs().max() < 1e-4, "The mean is not 0."
    assert (found.pow(2).mean(-1) - 1).abs().max() < 1e-3, "The mean of the squares is not 1."


@layer_norm.law("adding one number to a whole vector changes nothing")
def _(answer, draw):
    x = draw.integers(-99, 99, 3, 8) / 64  # on a grid, so that x + 1000 is exact
    weight, bias = 1 + draw.normal(8, scale=0.3), draw.normal(8, scale=0.3)
    there, back = answer(x, weight, bias, 1e-5), answer(x + 1000, weight, bias, 1e-5)
    assert torch.allclose(there, back, atol=1e-3), (
        "With 1000 added the result differs. The mean of the squares minus the square of the mean loses its "
        "digits there: subtract the mean first, then square."
    )


@layer_norm.mistake(
    "divided by N - 1",
    "Your variance divides by hidden - 1, as torch.var and torch.std do unless told otherwise.",
    "In a vector of 4096 numbers it is hardly seen, and no logit is right to the bit.",
    "notebook 03, First by hand",
)
def _(x, weight, bias, eps):
    return layer(x, weight, bias, eps, count=x.shape[-1] - 1)


@layer_norm.mistake(
    "mean not subtracted",
    "You do not subtract the mean: you divide by the root mean square.",
    "That is RMSNorm with a bias. A checkpoint works with the norm that it was trained with, and no other.",
    "notebook 03, First by hand",
)
def _(x, weight, bias, eps):
    return layer(x, weight, bias, eps, subtract=False)


@layer_norm.mistake(
    "eps outside the root",
    "You add eps to the standard deviation, not to the variance under the root.",
    "1e-6 under the root keeps numbers below 0.001 small; outside it they are blown up to full size.",
    "notebook 03, What eps is for",
)
def _(x, weight, bias, eps):
    return layer(x, weight, bias, eps, outside=True)


@layer_norm.mistake(
    "x.std() + eps",
    "You divide by torch.std plus eps. Two things are off: torch.std divides by hidden - 1, and eps belongs "
    "under the root.",
    (
        "So LayerNorm stands in many tutorials. A small model trained with it "
        "works; a checkpoint does not fit it."
    ),
    "notebook 03, First by hand",
)
def _(x, weight, bias, eps):
    return layer(x, weight, bias, eps, count=x.shape[-1] - 1, outside=True)


@layer_norm.mistake(
    "no root",
    "You divide by the variance itself: the square root is missing.",
    (
        "Vectors of small numbers become huge and those of large numbers tiny, "
        "the reverse of what a norm is for."
    ),
    "notebook 03, First by hand",
)
def _(x, weight, bias, eps):
    return layer(x, weight, bias, eps, root=False)


@layer_norm.mistake(
    "eps left at 1e-5",
    "You compute with eps 1e-5, whatever eps says: the default of torch's own layer_norm.",
    "Parameters of a checkpoint are learned with one eps. Only small vectors show the difference.",
    "notebook 03, What eps is for",
)
def _(x, weight, bias, eps):
    return layer(x, weight, bias, 1e-5)


@layer_norm.mistake(
    "weight left out",
    "You do not multiply by the weight.",
    "A new model has weights of 1 and hides it; a trained one has lost part of what it learned.",
    "notebook 03, Break it",
)
def _(x, weight, bias, eps):
    return layer(x, torch.ones_like(weight), bias, eps)


@layer_norm.mistake(
    "bias left out",
    "You do not add the bias.",
    "A new model has biases of 0 and hides it. Tests need parameters that are neither 1 nor 0.",
    "notebook 03, Break it",
)
def _(x, weight, bias, eps):
    return layer(x, weight, torch.zeros_like(bias), eps)


@layer_norm.mistake(
    "all in x's dtype",
    "You compute in the dtype of x. In fp16 the squares of large numbers "
    "become inf, and the normalised vector "
    "0; in bf16 every step is rounded.",
    "A model in fp16 goes on with the bias alone, and nothing fails.",
    "notebook 03, Rounding order",
)
def _(x, weight, bias, eps):
    return layer(x, weight, bias, eps, in_fp32=False)


# --------------------------------------------------------------------------------------------------
# 3.2

rms_norm = UNIT.exercise(
    "rms_norm",
    minutes=15,
    difficulty=1,
    hints=(
        "Root mean square, read backwards: square, take the mean, add eps, take the root.",
        "x.float() before the squares, and back to x's dtype before the weight, not after it.",
        "weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype).",
    ),
)


def rms(x, weight, eps, **wrong):
    """RMSNorm, rounded before the weight; see normalised."""
    return weight * normalised(x, eps, **wrong).to(x.dtype)


def rms_inputs(draw, mean, rounded):
    """The inputs of both RMS norms: weights around a mean, and what of them is rounded first."""

    def weight(hidden, dtype=torch.float32):
        return (mean + draw.normal(hidden, scale=0.3)).to(dtype)

    yield Case((draw.normal(2, 3, 7), weight(7), 1e-5), "float32", gradient=True)
    yield Case((2 + draw.normal(5), weight(5), 1e-6), "one vector")
    yield Case((draw.normal(3, 6, scale=1e-3), weight(6), 1e-6), "tiny numbers: eps counts")
    yield Case((torch.zeros(2, 6), weight(6), 1e-5), "a vector of zeros")
    yield Case(draw_settled(draw, rounded, (mean,)), "bfloat16: to the bit", exact=True)
    large = torch.where(draw.normal(3, 6) < 0, -300, 300) + draw.normal(3, 6)
    yield Case((large.half(), weight(6, torch.float16), 1e-6), "float16: numbers of ±300")


@rms_norm.inputs
def _(draw):
    yield from rms_inputs(draw, 1.0, lambda x, weight, eps: normalised(x, eps))


@rms_norm.law("a vector three times as long gives the same")
def _(answer, draw):
    x, weight = draw.normal(4, 7), 1 + draw.normal(7, scale=0.3)
    assert torch.allclose(answer(x, weight, 1e-9), answer(3 * x, weight, 1e-9), atol=1e-5), (
        "x and 3 x give different vectors, with an eps that is nearly 0."
    )


@rms_norm.mistake(
    "all in x's dtype",
    "You compute in the dtype of x. In fp16 the square of 300 is inf, and "
    "the vector becomes 0; in bf16 every "
    "step is rounded.",
    "A model in fp16 goes on with zeros, and nothing fails.",
    "notebook 03, Break it",
)
def _(x, weight, eps):
    return rms(x, weight, eps, in_fp32=False)


@rms_norm.mistake(
    "rounded after the weight",
    "You multiply by the weight in fp32 and round last. That is Gemma's order: Llama and Qwen2 round before.",
    "In bf16 about a quarter of all outputs differ in the last bit, and greedy text may part ways.",
    "notebook 03, Rounding order",
)
def _(x, weight, eps):
    found = normalised(x, eps)
    return (weight.to(found.dtype) * found).to(x.dtype)


@rms_norm.mistake(
    "mean subtracted",
    "You subtract the mean first, as LayerNorm does.",
    "The direction in which all numbers are equal is lost, and a Llama checkpoint uses it.",
    "notebook 03, First by hand",
)
def _(x, weight, eps):
    return rms(x, weight, eps, subtract=True)


@rms_norm.mistake(
    "no root",
    "You divide by the mean of the squares itself: the square root is missing.",
    (
        "Vectors of small numbers become huge and those of large numbers tiny, "
        "the reverse of what a norm is for."
    ),
    "notebook 03, First by hand",
)
def _(x, weight, eps):
    return rms(x, weight, eps, root=False)


@rms_norm.mistake(
    "sum for mean",
    "You divide by the root of the sum of squares: your vectors have length 1, not √hidden.",
    "Everything is too small by √hidden, the more so the wider the model.",
    "notebook 03, First by hand",
)
def _(x, weight, eps):
    return rms(x, weight, eps, count=1)


@rms_norm.mistake(
    "eps outside the root",
    "You add eps to the root, not to the mean of the squares under it.",
    "1e-6 under the root keeps numbers below 0.001 small; outside it they are blown up to full size.",
    "notebook 03, What eps is for",
)
def _(x, weight, eps):
    return rms(x, weight, eps, outside=True)


@rms_norm.mistake(
    "no eps",
    "You leave eps out: a vector of zeros gives NaN, and small vectors are blown up to full size.",
    "One token whose vector is 0, such as padding, makes NaN of the gradients of the whole batch.",
    "notebook 03, What eps is for",
)
def _(x, weight, eps):
    return rms(x, weight, 0.0)


@rms_norm.mistake(
    "weight left out",
    "You do not multiply by the weight.",
    "A new model has weights of 1 and hides it; a trained one has lost part of what it learned.",
    "notebook 03, Break it",
)
def _(x, weight, eps):
    return rms(x, torch.ones_like(weight), eps)


@rms_norm.mistake(
    "1 + weight",
    "You multiply by 1 + weight: that is Gemma's way to store weights.",
    "A Llama checkpoint holds weights around 1, and every norm would double its vectors.",
    "notebook 03, Four models",
)
def _(x, weight, eps):
    return rms(x, 1 + weight, eps)


# --------------------------------------------------------------------------------------------------
# 3.3

gemma_rms_norm = UNIT.exercise(
    "gemma_rms_norm",
    minutes=10,
    difficulty=1,
    hints=(
        "Two things differ from rms_norm: what the vector is multiplied by, and when it is rounded.",
        "Convert the weight to fp32 before you add 1, and nothing back before the very end.",
        "(normalised * (1.0 + weight.float())).to(x.dtype), with normalised still in fp32.",
    ),
)


def gemma(x, weight, eps, **wrong):
    """Gemma's norm, rounded last; see normalised."""
    found = normalised(x, eps, **wrong)
    return (found * (1.0 + weight.to(found.dtype))).to(x.dtype)


@gemma_rms_norm.inputs
def _(draw):
    yield from rms_inputs(draw, 0.0, gemma)


@gemma_rms_norm.law("with weight 0 the squares of each vector have the mean 1")
def _(answer, draw):
    found = answer(3 + draw.normal(4, 7), torch.zeros(7), 1e-9)
    assert (found.pow(2).mean(-1) - 1).abs().max() < 1e-4, "The mean is another."


@gemma_rms_norm.mistake(
    "weight for 1 + weight",
    "You multiply by the weight, and Gemma's weights are distances from 1.",
    "A new Gemma holds zeros, and all of its vectors would be 0; a trained one writes noise.",
    "notebook 03, Four models",
)
def _(x, weight, eps):
    return gemma(x, weight.to(torch.promote_types(x.dtype, torch.float32)) - 1.0, eps)


@gemma_rms_norm.mistake(
    "rms_norm again",
    "You compute Llama's norm: you multiply by the weight, not by 1 + weight, and round before that.",
    "A new Gemma holds zeros, and all of its vectors would be 0; a trained one writes noise.",
    "notebook 03, Four models",
)
def _(x, weight, eps):
    return rms(x, weight, eps)


@gemma_rms_norm.mistake(
    "rounded before the weight",
    (
        "You round the normalised vector before you multiply. That is Llama's "
        "order: Gemma rounds once, at the end."
    ),
    "In bf16 about a quarter of all outputs differ in the last bit, and greedy text may part ways.",
    "notebook 03, Rounding order",
)
def _(x, weight, eps):
    return normalised(x, eps).to(x.dtype) * (1.0 + weight)


@gemma_rms_norm.mistake(
    "1 added before fp32",
    "You add 1 to the weight in bf16 and convert the sum: most digits of a small weight are gone by then.",
    "What fine-tuning learned in small steps around 1 is rounded away.",
    "notebook 01, Rounding",
)
def _(x, weight, eps):
    found = normalised(x, eps)
    return (found * (1.0 + weight).to(found.dtype)).to(x.dtype)


@gemma_rms_norm.mistake(
    "all in x's dtype",
    "You compute in the dtype of x. In fp16 the square of 300 is inf, and "
    "the vector becomes 0; in bf16 every "
    "step is rounded.",
    "A model in fp16 goes on with zeros, and nothing fails.",
    "notebook 03, Break it",
)
def _(x, weight, eps):
    return gemma(x, weight, eps, in_fp32=False)


@gemma_rms_norm.mistake(
    "eps outside the root",
    "You add eps to the root, not to the mean of the squares under it.",
    "1e-6 under the root keeps numbers below 0.001 small; outside it they are blown up to full size.",
    "notebook 03, What eps is for",
)
def _(x, weight, eps):
    return gemma(x, weight, eps, outside=True)


@gemma_rms_norm.mistake(
    "mean subtracted",
    "You subtract the mean first, as LayerNorm does.",
    "The direction in which all numbers are equal is lost, and a Gemma checkpoint uses it.",
    "notebook 03, First by hand",
)
def _(x, weight, eps):
    return gemma(x, weight, eps, subtract=True)
