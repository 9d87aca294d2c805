"""What checks the exercise of notebook 18, and the wrong answers that people give."""

import torch

from minilm.course.spec import Case, Unit

UNIT = Unit(18, "cross_attention")

# --------------------------------------------------------------------------------------------------
# 18.1

cross_attention = UNIT.exercise(
    "cross_attention",
    minutes=25,
    difficulty=2,
    hints=(
        "It is attention as in notebook 07. Which of query, key and value are made of the memory?",
        "(memory @ kv_weight.T).chunk(2, dim=-1) are keys and values; unflatten(-1, (-1, head_dim)) and "
        "transpose(1, 2) make heads of them. The mask has to become [batch, 1, 1, memory].",
        "Repeat the key heads with repeat_interleave. Hide with masked_fill(~mask, -inf), and set the "
        "weights there to 0 after the softmax, for the rows without any memory. transpose(1, 2).flatten(2) "
        "merges the heads.",
    ),
)


def parts(draw, length, places, heads=4, kv_heads=2, batch=2, dtype=torch.float32):
    """A text, a memory and the three matrices, for heads of 3 dimensions and a hidden width of 10."""
    shapes = (3 * heads, 10), (6 * kv_heads, 10), (10, 3 * heads)
    matrices = (draw.normal(*shape, dtype=dtype, scale=0.6) for shape in shapes)
    states = (draw.normal(batch, size, 10, dtype=dtype) for size in (length, places))
    return *states, *matrices, heads


@cross_attention.inputs
def _(draw):
    yield Case(parts(draw, 4, 6), "two query heads to a key head, no mask")
    yield Case((*parts(draw, 3, 5, batch=3), draw.mask(3, 5, side="right")), "memory padded on the right",
               gradient=True)  # fmt: skip
    yield Case((*parts(draw, 5, 7, batch=3), draw.mask(3, 7).bool()), "memory padded on the left, booleans")
    yield Case(
        (*parts(draw, 4, 5, batch=3), draw.mask(3, 5, empty_row=True)), "a row whose memory is all padding"
    )
    yield Case(
        (*parts(draw, 5, 5, kv_heads=4), draw.mask(2, 5)), "a memory as long as the text, a key head each"
    )
    half = parts(draw, 4, 6, heads=6, kv_heads=2, dtype=torch.bfloat16)
    yield Case((*half, draw.mask(2, 6, side="right")), "torch.bfloat16")
    yield Case(parts(draw, 7, 3, heads=3, kv_heads=1), "one key head, a text longer than its memory")
    yield Case(parts(draw, 1, 1, batch=1), "one token, one place")
    yield Case((*parts(draw, 4, 6), draw.mask(2, 4)), refused="memory_mask is the mask of the text")
    yield Case((*parts(draw, 4, 6)[:5], 5), refused="12 rows of q_weight for 5 heads")


@cross_attention.law("the order of the memory's places does not matter")
def _(answer, draw):
    hidden, memory, *rest = parts(draw, 3, 5)
    mask, order = draw.mask(2, 5, side="right"), torch.tensor([3, 0, 4, 1, 2])
    apart = (
        answer(hidden, memory, *rest, mask) - answer(hidden, memory[:, order], *rest, mask[:, order])
    ).abs()
    assert apart.max() < 1e-4, f"In another order the result differs by up to {apart.max():.2g}."


@cross_attention.law("padding in the memory does not matter")
def _(answer, draw):
    hidden, memory, *rest = parts(draw, 3, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    other = torch.where(mask.bool()[..., None], memory, draw.normal(2, 5, 10))
    apart = (answer(hidden, memory, *rest, mask) - answer(hidden, other, *rest, mask)).abs().max()
    assert apart < 1e-4, f"With other numbers in the padding the result differs by up to {apart:.2g}."


@cross_attention.law("each token reads the memory on its own")
def _(answer, draw):
    hidden, *rest = parts(draw, 4, 5)
    apart = (answer(hidden, *rest)[:, 1:3] - answer(hidden[:, 1:3], *rest)).abs().max()
    assert apart < 1e-4, f"Without tokens 0 and 3, the result of 1 and 2 differs by up to {apart:.2g}."


def cross(
    hidden,
    memory,
    q_weight,
    kv_weight,
    out_weight,
    num_heads,
    memory_mask=None,
    source=None,
    blocks=lambda kv, head_dim: kv.chunk(2, dim=-1),
    group=lambda x, groups: x.repeat_interleave(groups, dim=1),
    hide=lambda scores, real: scores.masked_fill(~real, -torch.inf).softmax(-1).nan_to_num(0.0),
    scale=None,
    turn_back=True,
):
    """Cross-attention with the places where people go wrong."""
    head_dim = q_weight.shape[0] // num_heads
    query, *keys = (
        x.unflatten(-1, (-1, head_dim)).transpose(1, 2)
        for x in (
            hidden @ q_weight.T,
            *blocks((memory if source is None else source) @ kv_weight.T, head_dim),
        )
    )
    key, value = (group(x, num_heads // x.shape[1]) for x in keys)
    scores = query @ key.transpose(-1, -2) / (scale or head_dim**0.5)
    mask = memory.new_ones(memory.shape[:2]) if memory_mask is None else memory_mask
    weights = hide(scores.float(), mask.bool()[:, None, None])
    context = weights.to(value.dtype) @ value
    context = context.transpose(1, 2).flatten(2) if turn_back else context.reshape(*hidden.shape[:2], -1)
    return context @ out_weight.T


@cross_attention.mistake(
    "causal on the memory",
    "Token t sees the memory's places 0 … t only: you keep the causal mask of self-attention.",
    "The first word of a translation sees one word of its source. A memory has no future to hide.",
    "notebook 18, Break it",
)
def _(*args):
    def hide(scores, real):
        causal = torch.ones(scores.shape[-2:]).tril().bool()
        return scores.masked_fill(~(real & causal), -torch.inf).softmax(-1).nan_to_num(0.0)

    return cross(*args, hide=hide)


@cross_attention.mistake(
    "keys from the text",
    "Your keys and values are made of the text: that is self-attention, and the memory is never read.",
    "Loss still falls in training, for the text alone explains much of itself.",
    "notebook 18, First by hand",
)
def _(*args):
    return cross(*args, source=args[0])


@cross_attention.mistake(
    "values first",
    "You take the first block of kv_weight for the values and the second for the keys.",
    "All shapes are right, and a loaded checkpoint reads nonsense.",
    "notebook 18, The real thing",
)
def _(*args):
    return cross(*args, blocks=lambda kv, head_dim: kv.chunk(2, dim=-1)[::-1])


@cross_attention.mistake(
    "key and value by heads",
    "You read the rows of kv_weight head by head: key and value of head 0, then those of head 1. They are "
    "two blocks.",
    "With one key head both are the same. BigCode's multi-head self-attention stores its rows by heads, its "
    "cross-attention does not.",
    "notebook 18, The real thing",
)
def _(*args):
    def blocks(kv, head_dim):
        return (x.flatten(-2) for x in kv.unflatten(-1, (-1, 2, head_dim)).unbind(-2))

    return cross(*args, blocks=blocks)


@cross_attention.mistake(
    "mask ignored",
    "You do not use memory_mask: the padding is read as well.",
    "A row's result depends on how long the other memories of its batch are.",
    "notebook 18, Break it",
)
def _(*args):
    return cross(*args[:6])


@cross_attention.mistake(
    "mask reversed",
    "You hide the real places and read the padding: 1 means real.",
    "Some of torch's modules have it the other way round: key_padding_mask is True where it hides.",
    "notebook 09, Break it",
)
def _(*args):
    if len(args) < 7:
        return cross(*args)
    return cross(*args[:6], 1 - args[6].long())


@cross_attention.mistake(
    "0/1 mask added",
    "You add the mask of zeros and ones to the scores: padding loses 1 and is not hidden.",
    "Nothing fails. Beside a real place, padding keeps 1/e of its weight, about a third.",
    "notebook 09, Break it",
)
def _(*args):
    return cross(*args, hide=lambda scores, real: (scores + real.to(scores.dtype)).softmax(-1))


@cross_attention.mistake(
    "mask after the softmax",
    "You set the weights of padding to 0 after the softmax; the rest of them no longer adds up to 1.",
    "Rows with more padding read less, all the way through the model.",
    "notebook 09, Break it",
)
def _(*args):
    return cross(*args, hide=lambda scores, real: scores.softmax(-1) * real)


@cross_attention.mistake(
    "nan without a memory",
    "A row whose memory is all padding gets NaN from you: the softmax of a row of -inf is 0/0.",
    "One such row makes NaN of the loss of the whole batch.",
    "notebook 09, Break it",
)
def _(*args):
    return cross(*args, hide=lambda scores, real: scores.masked_fill(~real, -torch.inf).softmax(-1))


@cross_attention.mistake(
    "mean without a memory",
    "A row whose memory is all padding reads the mean of the padding: you hide with a large finite number.",
    "Nothing fails, and the row reads what was hidden from it.",
    "notebook 09, Empty rows",
)
def _(*args):
    lowest = torch.finfo(torch.float32).min
    return cross(*args, hide=lambda scores, real: scores.masked_fill(~real, lowest).softmax(-1))


@cross_attention.mistake(
    "no scale",
    "You do not divide the scores by the square root of head_dim.",
    "Scores grow with the width of a head, and the softmax picks one place instead of mixing.",
    "notebook 07, Break it",
)
def _(*args):
    return cross(*args, scale=1.0)


@cross_attention.mistake(
    "scaled by the hidden width",
    "You divide the scores by the square root of the hidden width; a score is a sum over head_dim products.",
    "Scores are too small, by √heads in most models, and every token reads nearly the mean of the memory.",
    "notebook 07, Scale",
)
def _(*args):
    return cross(*args, scale=args[0].shape[-1] ** 0.5)


@cross_attention.mistake(
    "residual added",
    "You add hidden to the result. Here the contribution alone is wanted; the block adds it to the stream.",
    "In the model the stream would be added twice.",
    "notebook 13, The residual stream",
)
def _(*args):
    return args[0] + cross(*args)


@cross_attention.mistake(
    "tiled heads",
    "Query head h reads key head h % kv_heads: you let the groups lie apart instead of side by side.",
    "With one key head, or as many as query heads, nothing shows.",
    "notebook 08, Break it",
)
def _(*args):
    return cross(*args, group=lambda x, groups: x.repeat(1, groups, 1, 1))


@cross_attention.mistake(
    "heads merged without the transpose",
    "You reshape [batch, heads, length, head_dim] to rows of a token at once; the heads have to come back "
    "behind the length first.",
    "The shape is right, and pieces of different tokens stand in one row.",
    "notebook 01, Views and copies",
)
def _(*args):
    return cross(*args, turn_back=False)
