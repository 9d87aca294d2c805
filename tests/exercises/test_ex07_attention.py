"""What checks the exercises of notebook 07, and the wrong answers that people give."""

import math

import torch

from minilm.course.spec import Case, Unit

UNIT = Unit(7, "attention")

# --------------------------------------------------------------------------------------------------
# 7.1

stable_softmax = UNIT.exercise(
    "stable_softmax",
    minutes=10,
    difficulty=1,
    hints=(
        (
            "What happens to the weights when you add 5 to every score of a row? "
            "So which number may you subtract?"
        ),
        (
            "Subtract each row's own maximum (keepdim=True keeps the axis to "
            "broadcast along), then exp, then divide."
        ),
        (
            "scores = scores.float(); e = (scores - scores.amax(-1, "
            "keepdim=True)).exp(); e / e.sum(-1, keepdim=True)."
        ),
    ),
)


def coarsely(answer, scores):
    """Compared as bf16, because exp(score - ln Σ exp) is right too, and less exact for large scores."""
    return answer(scores).bfloat16()


@stable_softmax.inputs
def _(draw):
    yield Case((torch.tensor([[0.0, math.log(3)]]),), "the example")
    yield Case((draw.normal(5, 7, scale=2.0),), "random scores", gradient=True)
    for dtype in (torch.bfloat16, torch.float16):
        yield Case((draw.normal(3, 40, scale=2.0).to(dtype),), f"40 keys, {dtype}")
    yield Case((draw.normal(4, 5) + 1000,), "scores near 1000", coarsely)
    yield Case((draw.normal(3, 5) + torch.tensor([[0.0], [300.0], [-300.0]]),), "rows far apart", coarsely)
    hidden = torch.tensor([[True, False, False, False], [False, True, True, False], [False] * 4])
    yield Case((draw.normal(3, 4).masked_fill(hidden, -torch.inf),), "some scores are -inf")
    yield Case((draw.normal(3, 1),), "a single key")


@stable_softmax.law("every row sums to 1, and no weight is negative")
def _(answer, draw):
    weights = answer(draw.normal(4, 9, scale=3.0))
    assert torch.allclose(weights.sum(-1), torch.ones(4), atol=1e-5), (
        f"The sums are {weights.sum(-1).tolist()}."
    )
    assert (weights >= 0).all(), "There is a negative weight."


@stable_softmax.law("a row's weights depend on this row alone, whatever axes stand before it")
def _(answer, draw):
    scores = draw.normal(2, 3, 4, 5)
    found = answer(scores)[1, 2, 3]
    assert torch.allclose(found, answer(scores[1, 2, 3]), atol=1e-5), "Alone, a row gets other weights."


@stable_softmax.law("adding one number to all scores of a row changes nothing")
def _(answer, draw):
    scores, shift = draw.normal(3, 6), float(draw.integer(200, 900))
    apart = (answer(scores) - answer(scores + shift)).abs().max()
    assert apart < 1e-3, f"With {shift:g} added, weights change by up to {apart:.2g}."


def softmax(scores, dim=-1, maximum=lambda scores: scores.amax(-1, keepdim=True), dtype=torch.float32):
    """Softmax with the places where people go wrong."""
    scores = scores.to(dtype)
    exponentials = (scores - maximum(scores)).exp()
    return exponentials / exponentials.sum(dim, keepdim=True)


@stable_softmax.mistake(
    "no maximum",
    (
        "You take exp of the scores as they are: beyond 88 it is infinite in "
        "fp32, and infinity / infinity is NaN."
    ),
    "All is well until one query matches a key too well. Then its row is NaN, and soon everything is.",
    "notebook 07, Softmax in fp32",
)
def _(scores):
    return softmax(scores, maximum=torch.zeros_like)


@stable_softmax.mistake(
    "one maximum for all rows",
    "You subtract the largest score of the whole tensor: a row that lies far below it becomes 0/0.",
    "Which row is NaN depends on the other rows of the batch, so it cannot be repeated with one of them.",
    "notebook 07, Softmax in fp32",
)
def _(scores):
    return softmax(scores, maximum=torch.amax)


@stable_softmax.mistake(
    "the wrong axis",
    "You normalise along another axis; the keys stand on the last one.",
    (
        "Rows of a batch, heads or queries then share out one key among them, and "
        "what a token reads does not sum to 1."
    ),
    "notebook 07, First by hand",
)
def _(scores):
    exponentials = (scores.float() - scores.float().amax(0, keepdim=True)).exp()
    return exponentials / exponentials.sum(0, keepdim=True)


@stable_softmax.mistake(
    "over all queries",
    "You divide by the sum over the whole tensor: all rows together sum to 1, and not each of them.",
    "Every token gets a small part of what it should read, and the smaller, the longer the text is.",
    "notebook 07, First by hand",
)
def _(scores):
    exponentials = (scores.float() - scores.float().amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum()


@stable_softmax.mistake(
    "not normalised",
    "You do not divide by the sum.",
    "The best key has the weight 1, whatever the others have: outputs grow with the number of keys.",
    "notebook 07, First by hand",
)
def _(scores):
    return (scores.float() - scores.float().amax(-1, keepdim=True)).exp()


@stable_softmax.mistake(
    "in the scores' dtype",
    "You compute in the dtype of the scores, and return it: bf16 for bf16.",
    "Every step rounds to 8 bits. Over a long text the small weights are lost; nothing shows in fp32.",
    "notebook 07, Softmax in fp32",
)
def _(scores):
    return softmax(scores, dtype=scores.dtype)


@stable_softmax.mistake(
    "cast too late",
    "You compute in the dtype of the scores, and cast to fp32 at the end: by then the bits are gone.",
    "The dtype looks right, and the weights of a bf16 model are those of bf16.",
    "notebook 07, Softmax in fp32",
)
def _(scores):
    return softmax(scores, dtype=scores.dtype).float()


# --------------------------------------------------------------------------------------------------
# 7.2

attention = UNIT.exercise(
    "attention",
    minutes=20,
    difficulty=2,
    hints=(
        "For one query: compare it with every key, make weights of the scores, "
        "add up the weighted values. Which "
        "product of matrices does the first step for all queries?",
        "query @ key.transpose(-1, -2) / √head_dim; where the mask is False, -inf; softmax; @ value.",
        "scores.masked_fill(~mask, -torch.inf), "
        "stable_softmax(scores).nan_to_num(0.0).to(query.dtype), and return "
        "weights @ value, weights.",
    ),
)


@attention.inputs
def _(draw):
    example = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]]), torch.tensor([[0.0], [4.0]])
    yield Case(tuple(x[None, None] for x in example), "the example")
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = draw.normal(2, 3, 4, 5), draw.normal(2, 3, 7, 5), draw.normal(2, 3, 7, 5)
        yield Case(tuple(x.to(dtype) for x in (query, key, value)), f"no mask, {dtype}")
    batch = draw.normal(2, 3, 6, 5), draw.normal(2, 3, 6, 5), draw.normal(2, 3, 6, 5)
    causal = torch.ones(6, 6).tril().bool()[None, None]
    yield Case((*batch, causal), "causal")
    real = draw.mask(2, 6, empty_row=True).bool()[:, None, None]
    yield Case((*batch, causal & real), "queries that see nothing")
    yield Case(batch, "gradients", lambda answer, *each: answer(*each, causal & real), gradient=True)
    per_head = draw.integers(0, 2, 1, 2, 3, 4).bool() | torch.eye(3, 4).bool()
    yield Case((draw.normal(1, 2, 3, 3), draw.normal(1, 2, 4, 3), draw.normal(1, 2, 4, 3), per_head),
               "a mask for each head")  # fmt: skip
    yield Case(tuple(draw.normal(1, 2, 1, 3) for _ in range(3)), "one token")
    yield Case((*batch, causal.float()), refused="mask is torch.float32")


@attention.law("equal keys give the mean of the values")
def _(answer, draw):
    value = draw.normal(1, 2, 6, 3)
    output, weights = answer(draw.normal(1, 2, 4, 3), draw.normal(1, 2, 1, 3).expand(1, 2, 6, 3), value)
    assert torch.allclose(weights, torch.tensor(1 / 6), atol=1e-5), "The weights should be equal."
    assert torch.allclose(output, value.mean(2, keepdim=True), atol=1e-5), "The output is not the mean."


@attention.law("with a causal mask no token looks ahead")
def _(answer, draw):
    causal = torch.ones(5, 5).tril().bool()[None, None]
    x = draw.normal(1, 2, 5, 3)
    other = torch.cat((x[:, :, :2], draw.normal(1, 2, 3, 3)), dim=2)
    here, there = answer(x, x, x, causal)[0][:, :, :2], answer(other, other, other, causal)[0][:, :, :2]
    assert torch.allclose(here, there, atol=1e-5), "Tokens 0 and 1 change with the tokens after them."


@attention.law("keys and values may come in any order")
def _(answer, draw):
    query, key, value = draw.normal(1, 2, 3, 5), draw.normal(1, 2, 6, 5), draw.normal(1, 2, 6, 5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    here, there = answer(query, key, value)[0], answer(query, key[:, :, order], value[:, :, order])[0]
    assert torch.allclose(here, there, atol=1e-5), "Without a mask the order of the keys should not matter."


def attend(query, key, value, mask=None, scale=0.5, dim=-1, hide=None, after=None, rescue=True):
    """Attention with the places where people go wrong."""
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** scale
    if mask is not None:
        scores = hide(scores, mask) if hide else scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim, dtype=torch.float32)
    weights = (weights.nan_to_num(0.0) if rescue else weights).to(query.dtype)
    if after is not None and mask is not None:
        weights = after(weights, mask)
    return weights @ value, weights


def as_it_is(scores, mask):
    """Hides nothing."""
    return scores


@attention.mistake(
    "no scale",
    "You do not divide the scores by the square root of head_dim.",
    "Scores grow with the width of a head, and the softmax picks one key instead of mixing.",
    "notebook 07, Break it",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, scale=0.0)


@attention.mistake(
    "divided by head_dim",
    "You divide the scores by head_dim, and not by its square root.",
    "All weights come close to the mean: the wider a head, the less it can choose.",
    "notebook 07, The scale",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, scale=1.0)


@attention.mistake(
    "softmax over the queries",
    "Your weights sum to 1 over the queries of a key; they should over the keys of a query.",
    "A token reads more or less than one value in all, depending on who else looks at the same keys.",
    "notebook 07, First by hand",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, dim=-2)


@attention.mistake(
    "mask reversed",
    "You hide the keys where mask is True; True means visible.",
    (
        "A token sees the future alone, and the last one sees nothing. torch's "
        "own modules disagree on this sign."
    ),
    "notebook 09, Break it",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, hide=lambda scores, mask: scores.masked_fill(mask, -torch.inf))


@attention.mistake(
    "mask ignored",
    "You do not use the mask.",
    "The model sees the future while it is trained, and has none when it writes.",
    "notebook 09, Who may see whom",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, hide=as_it_is)


@attention.mistake(
    "mask after the softmax",
    "You set the weights of hidden keys to 0 after the softmax: the others no longer sum to 1.",
    "Hidden keys still take their share, so early tokens, which see few keys, read too little.",
    "notebook 09, Break it",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, hide=as_it_is, after=lambda weights, mask: weights * mask)


@attention.mistake(
    "mask added as 0 and 1",
    "You add the mask to the scores: a hidden key gets a score that is 1 lower, and stays visible.",
    "There is no error. The model looks ahead, a little less than without a mask.",
    "notebook 09, Boolean and additive",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, hide=lambda scores, mask: scores + mask)


@attention.mistake(
    "nan for empty rows",
    "A query that sees no key gets NaN from you: the softmax of a row of -inf is 0/0.",
    "One padded row makes NaN of every later layer, and of the gradients.",
    "notebook 09, Break it",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, rescue=False)


@attention.mistake(
    "mean for empty rows",
    "A query that sees no key gets the mean of all values: you hide keys with a large finite number.",
    "It does no harm while nobody looks at padded rows, and then tokens see what was hidden from them.",
    "notebook 09, Empty rows",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, hide=lambda scores, mask: scores.masked_fill(~mask, -1e9))


@attention.mistake(
    "nan in the gradients",
    "Your results are right, and the gradients are NaN: a query that sees nothing passes its 0/0 back.",
    "The loss looks healthy, and after one step of training every weight is NaN. Fill with masked_fill.",
    "notebook 09, Empty rows",
)
def _(query, key, value, mask=None):
    def hide(scores, mask):
        return scores + torch.zeros_like(scores).masked_fill(~mask, -torch.inf)

    return attend(query, key, value, mask, hide=hide)


# --------------------------------------------------------------------------------------------------
# 7.3

split_qkv_per_head = UNIT.exercise(
    "split_qkv_per_head",
    minutes=10,
    difficulty=2,
    hints=(
        "Write down the features of two heads of width 2, with a name such as k1 for each. Where is k1?",
        "First the heads: view the features as [num_heads, 3 · head_dim]. Each "
        "piece is then a query, a key and a "
        "value.",
        "qkv.view(batch, length, num_heads, -1).transpose(1, 2).chunk(3, "
        "dim=-1), after refusing what does not "
        "divide.",
    ),
)


@split_qkv_per_head.inputs
def _(draw):
    yield Case((torch.arange(6.0).view(1, 1, 6), 2), "the example", exact=True)
    for dtype in (torch.float32, torch.bfloat16):
        yield Case((draw.normal(2, 4, 36, dtype=dtype), 4), f"4 heads of 3, {dtype}", exact=True)
    yield Case((draw.normal(2, 3, 30), 2), "2 heads of 5", gradient=True)
    yield Case((draw.normal(2, 3, 15), 1), "one head", exact=True)
    yield Case((draw.normal(1, 2, 32), 4), refused="32 features are not 3 parts for 4 heads")


@split_qkv_per_head.law("head h is made of the features from 3 · head_dim · h on")
def _(answer, draw):
    qkv, heads, head_dim = draw.normal(1, 3, 36), 3, 4
    for number, part in enumerate(answer(qkv, heads)):
        for head in range(heads):
            start = (3 * head + number) * head_dim
            expected = qkv[:, :, start : start + head_dim]
            assert torch.equal(part[:, head], expected), f"Head {head} of value {number + 1} is not."


def per_head(qkv, num_heads, pattern=(0, 1, 2)):
    """The three parts, in this order."""
    if qkv.shape[-1] % (3 * num_heads):
        raise ValueError
    batch, length, features = qkv.shape
    parts = qkv.view(batch, length, num_heads, 3, features // (3 * num_heads)).permute(3, 0, 2, 1, 4)
    return tuple(parts[index] for index in pattern)


@split_qkv_per_head.mistake(
    "in blocks",
    "You cut the features into three blocks, all queries, all keys, all values; here they go head by head.",
    "All shapes are right, and with one head all values. The loss of tiny-gpt-neox rises by more than a nat.",
    "notebook 07, Break it",
)
def _(qkv, num_heads):
    if qkv.shape[-1] % (3 * num_heads):
        raise ValueError
    batch, length, _ = qkv.shape
    return tuple(part.view(batch, length, num_heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))


@split_qkv_per_head.mistake(
    "every third feature",
    "You take every third feature: the dimensions of query, key and value alternate in your order.",
    "Within a head, the whole query comes first, then the whole key, then the whole value.",
    "notebook 07, Three fused layouts",
)
def _(qkv, num_heads):
    if qkv.shape[-1] % (3 * num_heads):
        raise ValueError
    batch, length, features = qkv.shape
    parts = qkv.view(batch, length, num_heads, features // (3 * num_heads), 3).permute(4, 0, 2, 1, 3)
    return tuple(parts)


@split_qkv_per_head.mistake(
    "heads without a transpose",
    "You bring the heads before the length with a view alone: pieces of tokens end up in other heads.",
    "The shape is right and every number is there, in the wrong place. With one token nothing shows.",
    "notebook 01, Views and copies",
)
def _(qkv, num_heads):
    if qkv.shape[-1] % (3 * num_heads):
        raise ValueError
    batch, length, _ = qkv.shape
    return qkv.view(batch, num_heads, length, -1).chunk(3, dim=-1)


@split_qkv_per_head.mistake(
    "length before heads",
    "You return [batch, length, heads, head_dim]; attention wants the heads before the length.",
    "The heads of one token would attend to each other, instead of the tokens of one head.",
    "notebook 01, Heads split and merged",
)
def _(qkv, num_heads):
    return tuple(part.transpose(1, 2) for part in per_head(qkv, num_heads))


@split_qkv_per_head.mistake(
    "key and value exchanged",
    "You return query, value, key: the last two are exchanged.",
    "Both have the same shape, so nothing complains. The model compares with values and mixes keys.",
    "notebook 07, Three fused layouts",
)
def _(qkv, num_heads):
    return per_head(qkv, num_heads, pattern=(0, 2, 1))


# --------------------------------------------------------------------------------------------------
# 7.4

split_qkv_blocks = UNIT.exercise(
    "split_qkv_blocks",
    minutes=10,
    difficulty=2,
    hints=(
        "How wide are all query heads together, and how wide is what remains?",
        "Tensor.split takes a tuple of widths. Each block is then split into heads of head_dim.",
        "rest = features - num_heads * head_dim; split into (num_heads * head_dim, "
        "rest // 2, rest // 2); each block "
        ".view(batch, length, -1, head_dim).transpose(1, 2).",
    ),
)


@split_qkv_blocks.inputs
def _(draw):
    yield Case((torch.arange(4.0).view(1, 1, 4), 2, 1), "the example", exact=True)
    for dtype in (torch.float32, torch.bfloat16):
        # 4 heads of 3 and one key head of 3: 12 + 3 + 3, which three equal blocks would divide as well.
        yield Case((draw.normal(2, 5, 18, dtype=dtype), 4, 3), f"one key head, {dtype}", exact=True)
    yield Case((draw.normal(2, 3, 40), 4, 5), "2 key heads for 4", gradient=True)
    yield Case((draw.normal(2, 4, 36), 4, 3), "as many key heads as query heads", exact=True)
    yield Case((draw.normal(1, 2, 12), 4, 3), refused="the queries leave nothing for keys and values")
    yield Case((draw.normal(1, 2, 21), 4, 3), refused="9 features are not as many key heads as value heads")


@split_qkv_blocks.law("queries, keys and values one behind the other are the features again")
def _(answer, draw):
    qkv = draw.normal(2, 3, 30)
    parts = (part.transpose(1, 2).flatten(2) for part in answer(qkv, 4, 5))
    assert torch.equal(torch.cat(tuple(parts), dim=-1), qkv), "They are other numbers, or in another order."


def blocks(qkv, num_heads, head_dim):
    """The three blocks, not yet split into heads."""
    rest = qkv.shape[-1] - num_heads * head_dim
    if rest <= 0 or rest % (2 * head_dim):
        raise ValueError
    return qkv.split((num_heads * head_dim, rest // 2, rest // 2), dim=-1)


def heads(block, head_dim):
    """A block split into its heads."""
    return block.unflatten(-1, (-1, head_dim)).transpose(1, 2)


@split_qkv_blocks.mistake(
    "three equal blocks",
    "You cut the features into three equal blocks; the keys and values of fewer heads are narrower.",
    "With as many key heads as query heads it is right, and with one key head the shapes do not fit.",
    "notebook 07, Three fused layouts",
)
def _(qkv, num_heads, head_dim):
    blocks(qkv, num_heads, head_dim)
    batch, length, _ = qkv.shape
    query, key, value = qkv.chunk(3, dim=-1)
    return tuple(part.reshape(batch, length, -1, head_dim).transpose(1, 2) for part in (query, key, value))


@split_qkv_blocks.mistake(
    "no axis for the key heads",
    "You return keys and values without an axis for their heads; a single head has one too, of length 1.",
    "The batch axis of the keys would meet the head axis of the queries.",
    "notebook 07, Three fused layouts",
)
def _(qkv, num_heads, head_dim):
    query, key, value = blocks(qkv, num_heads, head_dim)
    return heads(query, head_dim), key, value


@split_qkv_blocks.mistake(
    "only one key head",
    "You take one key and one value head, whatever the width is; the rest of the features is lost.",
    "It is right for GPT-BigCode with a single key head, and for no other number.",
    "notebook 08, First by hand",
)
def _(qkv, num_heads, head_dim):
    blocks(qkv, num_heads, head_dim)
    width = num_heads * head_dim
    query, key, value = qkv[..., :width], qkv[..., width : width + head_dim], qkv[..., width + head_dim :]
    return tuple(heads(part, head_dim) for part in (query, key, value[..., :head_dim]))


@split_qkv_blocks.mistake(
    "key and value exchanged",
    "You return query, value, key: the last two are exchanged.",
    "Both have the same shape, so nothing complains. The model compares with values and mixes keys.",
    "notebook 07, Three fused layouts",
)
def _(qkv, num_heads, head_dim):
    query, key, value = (heads(part, head_dim) for part in blocks(qkv, num_heads, head_dim))
    return query, value, key


@split_qkv_blocks.mistake(
    "keys and values by turns",
    "You read key 0, value 0, key 1, value 1, …; in blocks, all keys come before all values.",
    "With a single key head both orders are the same.",
    "notebook 07, Three fused layouts",
)
def _(qkv, num_heads, head_dim):
    query, key, value = blocks(qkv, num_heads, head_dim)
    pairs = torch.cat((key, value), dim=-1).unflatten(-1, (-1, 2, head_dim)).permute(3, 0, 2, 1, 4)
    return heads(query, head_dim), pairs[0], pairs[1]


@split_qkv_blocks.mistake(
    "heads without a transpose",
    "You bring the heads before the length with a view alone: pieces of tokens end up in other heads.",
    "The shape is right and every number is there, in the wrong place. With one token nothing shows.",
    "notebook 01, Views and copies",
)
def _(qkv, num_heads, head_dim):
    batch, length, _ = qkv.shape
    return tuple(part.reshape(batch, -1, length, head_dim) for part in blocks(qkv, num_heads, head_dim))
