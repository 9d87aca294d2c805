"""What checks the exercises of notebook 01, and the wrong answers that people give."""

import torch

from minilm.course.probes import settled
from minilm.course.spec import Case, Unit

UNIT = Unit(1, "tensors_and_einops")

# --------------------------------------------------------------------------------------------------
# 1.1

split_heads = UNIT.exercise(
    "split_heads",
    minutes=10,
    difficulty=1,
    hints=(
        "Two steps: cut the last axis in two, then let two axes change places.",
        "After the cut the shape is [batch, length, heads, head_dim]. Which two axes are still exchanged?",
        (
            "x.reshape(batch, length, num_heads, -1).transpose(1, 2), after "
            "looking at the remainder of the width."
        ),
    ),
)


@split_heads.inputs
def _(draw):
    for dtype in (torch.float32, torch.bfloat16):
        yield Case((draw.normal(2, 5, 12, dtype=dtype), 3), f"3 heads of 4, {dtype}", exact=True)
    yield Case((draw.normal(2, 4, 10), 2), "2 heads of 5", exact=True, gradient=True)
    yield Case((draw.normal(2, 6, 5).transpose(1, 2), 3), "not in the order of memory", exact=True)
    yield Case((draw.normal(2, 1, 6), 3), "one token", exact=True)
    yield Case((draw.normal(1, 4, 3), 1), "one head", exact=True)
    yield Case((draw.normal(2, 3, 10), 4), refused="a width of 10 cannot be cut into 4 heads")


@split_heads.law("head h of a token is a slice of its numbers")
def _(answer, draw):
    x = draw.normal(2, 4, 6)
    for head in range(3):
        expected = x[:, :, 2 * head : 2 * head + 2]
        assert torch.equal(answer(x, 3)[:, head], expected), (
            f"Head {head} of 3 is not x[:, :, {2 * head}:{2 * head + 2}]."
        )


@split_heads.mistake(
    "view without a transpose",
    "You read the numbers in the shape [batch, heads, length, head_dim] without exchanging two axes, so that "
    "your head 0 holds the first tokens whole, and not the first slice of every token.",
    "Tokens see parts of later tokens as if these were other heads. Shapes are right and nothing fails.",
    "notebook 01, Break it",
)
def _(x, num_heads):
    batch, length, hidden = x.shape
    return x.reshape(batch, num_heads, length, hidden // num_heads)


@split_heads.mistake(
    "every n-th number",
    "Your head h takes every num_heads-th number of a token, not a slice: "
    "you cut (head_dim heads), and it is "
    "(heads head_dim).",
    "A model trained with your order works as well, but every published checkpoint stores heads as slices.",
    "notebook 01, Heads split and merged",
)
def _(x, num_heads):
    batch, length, hidden = x.shape
    return x.reshape(batch, length, hidden // num_heads, num_heads).permute(0, 3, 1, 2)


@split_heads.mistake(
    "heads behind the tokens",
    "You cut the width, and leave the heads behind the tokens: [batch, length, heads, head_dim].",
    "A matrix product works on the last two axes: it would compare the heads of one token with each other.",
    "notebook 01, Heads split and merged",
)
def _(x, num_heads):
    batch, length, hidden = x.shape
    return x.reshape(batch, length, num_heads, hidden // num_heads)


@split_heads.mistake(
    "columns for tokens",
    "You give [batch, heads, head_dim, length]: the last two axes are exchanged.",
    "That is what the keys look like inside the product of queries and keys, and only there.",
    "notebook 01, Einsum scores",
)
def _(x, num_heads):
    batch, length, hidden = x.shape
    return x.reshape(batch, length, num_heads, hidden // num_heads).permute(0, 2, 3, 1)


@split_heads.mistake(
    "heads and width exchanged",
    "You make heads of num_heads numbers each: the number of heads and their width have changed places.",
    "With as many heads as numbers in a head it cannot be seen.",
    "notebook 01, Heads split and merged",
)
def _(x, num_heads):
    batch, length, hidden = x.shape
    return x.reshape(batch, length, hidden // num_heads, num_heads).transpose(1, 2)


# --------------------------------------------------------------------------------------------------
# 1.2

merge_heads = UNIT.exercise(
    "merge_heads",
    minutes=5,
    difficulty=1,
    hints=(
        "Undo split_heads, step by step and in the reverse order.",
        "First bring the heads behind the tokens, then read the last two axes as one.",
        'x.transpose(1, 2).flatten(2), or rearrange(x, "b heads t dim -> b t (heads dim)").',
    ),
)


@merge_heads.inputs
def _(draw):
    for dtype in (torch.float32, torch.bfloat16):
        yield Case((draw.normal(2, 3, 5, 4, dtype=dtype),), f"3 heads of 4, {dtype}", exact=True)
    yield Case((draw.normal(1, 2, 3, 5),), "2 heads of 5", exact=True, gradient=True)
    yield Case((draw.normal(2, 4, 3, 2).transpose(1, 2),), "as split_heads leaves it", exact=True)
    yield Case((draw.normal(2, 3, 1, 4),), "one token", exact=True)
    yield Case((draw.normal(2, 1, 4, 3),), "one head", exact=True)


@merge_heads.law("heads that were split come together again")
def _(answer, draw):
    x = draw.normal(2, 5, 6)
    heads = torch.stack(x.split(2, dim=-1), dim=1)  # a copy: its memory runs head by head
    assert torch.equal(answer(heads), x), (
        "Cutting a token into 3 slices and merging them gives another token."
    )


@merge_heads.mistake(
    "no transpose",
    "You read the axes heads, length and head_dim as length and hidden, without exchanging two of them: your "
    "token 0 holds head 0 of several tokens.",
    "Every token gets parts of others, later ones too. The shape is right, and training even gets somewhere.",
    "notebook 01, Break it",
)
def _(x):
    batch, heads, length, head_dim = x.shape
    return x.reshape(batch, length, heads * head_dim)


@merge_heads.mistake(
    "view of a transposed tensor",
    "You call view after a transpose: the heads of a token do not lie side by side in memory then, and view "
    "never copies. It does work where they happen to, as with one head.",
    "reshape and rearrange copy where they must. A program with view runs with one head and stops with two.",
    "notebook 01, Views and copies",
)
def _(x):
    batch, heads, length, head_dim = x.shape
    return x.transpose(1, 2).view(batch, length, heads * head_dim)


@merge_heads.mistake(
    "heads interleaved",
    "You take the first number of every head, then the second of every head: (head_dim heads), and it is "
    "(heads head_dim).",
    "The output projection of a checkpoint has its columns head by head, and would mix other numbers.",
    "notebook 01, Heads split and merged",
)
def _(x):
    return x.permute(0, 2, 3, 1).flatten(2)


@merge_heads.mistake(
    "heads as more tokens",
    "You put the heads in line with the tokens: [batch, heads · length, head_dim].",
    "The width of a token must be that of the residual stream again, or nothing can be added to it.",
    "notebook 01, Heads split and merged",
)
def _(x):
    return x.flatten(1, 2)


@merge_heads.mistake(
    "heads averaged",
    "You return the mean over the heads.",
    "Each head says something of its own, and the output projection needs to tell them apart.",
    "notebook 01, Heads split and merged",
)
def _(x):
    return x.mean(dim=1)


# --------------------------------------------------------------------------------------------------
# 1.3

attention_scores = UNIT.exercise(
    "attention_scores",
    minutes=10,
    difficulty=1,
    hints=(
        "One score is a dot product: which axis of query and key disappears?",
        "As a matrix product, the keys must be columns; as an einsum, give each axis a letter of its own.",
        'torch.einsum("bhqd,bhkd->bhqk", query, key), or query @ key.transpose(-1, -2).',
    ),
)


@attention_scores.inputs
def _(draw):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        query, key = draw.normal(2, 3, 4, 5, dtype=dtype), draw.normal(2, 3, 7, 5, dtype=dtype)
        yield Case((query, key), f"4 queries, 7 keys, {dtype}")
    yield Case((draw.normal(2, 3, 4, 5), draw.normal(2, 3, 4, 5)), "as many queries as keys", gradient=True)
    yield Case((draw.normal(1, 2, 3, 3), draw.normal(1, 2, 3, 3)), "three of each and three dims")
    yield Case((draw.normal(2, 3, 1, 5), draw.normal(2, 3, 6, 5)), "one query")


@attention_scores.law("queries and keys in each other's place give the transposed scores")
def _(answer, draw):
    query, key = draw.normal(2, 3, 4, 5), draw.normal(2, 3, 6, 5)
    there, back = answer(query, key), answer(key, query)
    assert torch.allclose(there, back.transpose(-1, -2), atol=1e-5), "Scores [q, k] and [k, q] differ."


@attention_scores.mistake(
    "keys reshaped",
    "You reshape the keys to [head_dim, key] where they should be transposed: the shape is right, and each "
    "column holds numbers of several keys.",
    "Every score mixes several tokens. No shape error says so.",
    "notebook 01, Views and copies",
)
def _(query, key):
    batch, heads, length, head_dim = key.shape
    return query @ key.reshape(batch, heads, head_dim, length)


@attention_scores.mistake(
    "keys before queries",
    "Your scores are [key, query]: row by row, what belongs in a column.",
    "With as many queries as keys the shape does not show it, and the softmax then runs over the queries.",
    "notebook 01, Einsum scores",
)
def _(query, key):
    return key @ query.transpose(-1, -2)


@attention_scores.mistake(
    "already scaled",
    "Your scores are divided by √head_dim already.",
    "Attention does that one step later: a second division makes it look at all tokens nearly alike.",
    "notebook 01, Einsum scores",
)
def _(query, key):
    return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5


@attention_scores.mistake(
    "heads summed",
    "You sum over the heads too: h is missing behind the arrow of your einsum.",
    "Heads are there to look at different things. A sum of their scores is one head that is wider.",
    "notebook 01, Einsum scores",
)
def _(query, key):
    return torch.einsum("bhqd,bhkd->bqk", query, key)


@attention_scores.mistake(
    "already weights",
    "You have taken the softmax of the scores: each row adds up to 1.",
    "A mask must be applied before the softmax; afterwards the hidden tokens have had their share.",
    "notebook 07, First by hand",
)
def _(query, key):
    return (query @ key.transpose(-1, -2)).softmax(dim=-1)


# --------------------------------------------------------------------------------------------------
# 1.4

masked_mean = UNIT.exercise(
    "masked_mean",
    minutes=15,
    difficulty=2,
    hints=(
        "A mean is a sum and a count. Both must leave the padding out.",
        "Give the mask an axis more, so that one factor serves all numbers of a token. Sum in fp32.",
        "(x.float() * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1), then x's dtype.",
    ),
)


def draw_settled(draw, mask):
    """bf16 inputs whose masked mean rounds to the same bits in whichever order it is summed."""
    while True:
        x = draw.normal(*mask.shape, 6, dtype=torch.bfloat16)
        if settled(average(x.double(), mask), torch.bfloat16).all():
            return x


@masked_mean.inputs
def _(draw):
    yield Case((draw.normal(3, 5, 4), draw.mask(3, 5)), "padding on the left", gradient=True)
    yield Case((draw.normal(3, 6, 4), draw.mask(3, 6, side="right")), "padding on the right")
    yield Case((draw.normal(3, 5, 4), draw.mask(3, 5, empty_row=True)), "a row of padding alone")
    mask = draw.mask(4, 7)
    yield Case((draw_settled(draw, mask), mask), "bfloat16: to the bit", exact=True)
    large = (3e4 + draw.normal(2, 5, 4, scale=1e3)).half()
    yield Case((large, draw.mask(2, 5)), "float16: five tokens of 30000")
    yield Case((draw.normal(2, 1, 3), torch.ones(2, 1, dtype=torch.long)), "one token")


@masked_mean.law("what stands at padding does not matter")
def _(answer, draw):
    x, mask = draw.normal(3, 6, 4), draw.mask(3, 6)
    other = torch.where(mask[:, :, None] == 1, x, draw.normal(3, 6, 4))
    assert torch.allclose(answer(x, mask), answer(other, mask), atol=1e-6), (
        "Other numbers at padding change it."
    )


def average(x, mask, tokens=None, count=None, in_fp32=True, rescue=True):
    """The masked mean with the places where people go wrong."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)) if in_fp32 else x
    total = (wide * (mask if tokens is None else tokens)[:, :, None]).sum(dim=1)
    count = mask.sum(dim=1, keepdim=True) if count is None else count
    return (total / (count.clamp(min=1) if rescue else count)).to(x.dtype)


@masked_mean.mistake(
    "divided by the length",
    "You sum the real tokens and divide by all: your mean shrinks with the padding.",
    "The same text gets another vector in another batch, a shorter one the more padding stands beside it.",
    "notebook 01, Break it",
)
def _(x, mask):
    return average(x, mask, count=torch.tensor(x.shape[1]))


@masked_mean.mistake(
    "mask ignored",
    "You take the mean of all places, padding too.",
    "Padding has numbers of its own by the time it has gone through a model, and they pull at every text.",
    "notebook 01, First by hand",
)
def _(x, mask):
    return average(x, torch.ones_like(mask))


@masked_mean.mistake(
    "mask reversed",
    "You take the mean of the padding: your mask says True where it should say False.",
    (
        "Libraries disagree: 1 is a real token here and in transformers, True is "
        "padding in nn.MultiheadAttention."
    ),
    "notebook 02, Masks",
)
def _(x, mask):
    return average(x, 1 - mask)


@masked_mean.mistake(
    "one count for the batch",
    (
        "You divide every row by the number of real tokens in the whole batch: "
        "the sum over the mask lacks dim=1."
    ),
    "The vector of a text depends on the length of its neighbours. With one row nothing shows.",
    "notebook 01, First by hand",
)
def _(x, mask):
    return average(x, mask, count=mask.sum())


@masked_mean.mistake(
    "summed as it comes",
    (
        "You sum in x's dtype: in fp16 the sum leaves the range and becomes inf, "
        "in bf16 it is rounded too early."
    ),
    "A long text in fp16 gives an infinite vector, and everything computed from it is NaN.",
    "notebook 01, Rounding",
)
def _(x, mask):
    return average(x, mask, in_fp32=False)


@masked_mean.mistake(
    "nan for empty rows",
    "A row without a real token gets NaN from you: 0 / 0.",
    "One such row turns the loss of the whole batch into NaN.",
    "notebook 01, Break it",
)
def _(x, mask):
    return average(x, mask, rescue=False)


@masked_mean.mistake(
    "the plain quotient",
    "You divide the sum by the count as they come. Two things are missing: the sum in fp32, and something "
    "other than NaN for a row without a real token.",
    "Both stay unseen in a notebook with full rows and fp32, and both appear in training in half precision.",
    "notebook 01, Rounding",
)
def _(x, mask):
    return average(x, mask, in_fp32=False, rescue=False)
