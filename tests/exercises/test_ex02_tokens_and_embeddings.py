"""What checks the exercises of notebook 02, and the wrong answers that people give."""

import torch

from minilm.course.spec import Case, Unit

UNIT = Unit(2, "tokens_and_embeddings")

# --------------------------------------------------------------------------------------------------
# 2.1

pad_batch = UNIT.exercise(
    "pad_batch",
    minutes=15,
    difficulty=1,
    hints=(
        "Write down ids and mask for [[5, 6], [7]], once for each side.",
        "Make a rectangle of pad_id and one of zeros, then write every row over them in the right place.",
        "On the left a row starts at length - len(row), on the right at 0. Write 1 in the same places.",
    ),
)


def ragged(draw, lengths, pad_id):
    """Rows of these lengths; each that has a token ends with pad_id, as with a pad that is also the end."""
    rows = [draw.integers(0, 9, length).tolist() for length in lengths]
    return [[*row[:-1], pad_id] if row else row for row in rows]


@pad_batch.inputs
def _(draw):
    for side in ("left", "right"):
        pad_id = draw.integer(10, 99)
        rows = [draw.integers(1, 9, length).tolist() for length in (3, 5, 1, draw.integer(1, 4))]
        yield Case((rows, pad_id, side), f"padding on the {side}")
        yield Case((ragged(draw, (2, 4, 3), pad_id), pad_id, side), f"pad is a real id too, {side}")
    yield Case((ragged(draw, (3, 0, 2), 7), 7, "left"), "a row without a token")
    yield Case((ragged(draw, (3, 3), 0), 0, "right"), "equal lengths")
    yield Case(([[1, 2], [3]], 0, "middle"), refused='side is "middle"')


@pad_batch.law("what the mask keeps is the rows that came in")
def _(answer, draw):
    rows = ragged(draw, (4, 1, 3), 2)
    for side in ("left", "right"):
        ids, mask = answer(rows, 2, side)
        assert [row[real == 1].tolist() for row, real in zip(ids, mask, strict=True)] == rows, (
            f"With padding on the {side}, ids[row][mask[row] == 1] is not the row."
        )


def padded(sequences, pad_id, side, mask_side=None, length=None):
    """Padding with the places where people go wrong."""
    length = length or max(len(tokens) for tokens in sequences)
    ids, mask = [], []
    for tokens in sequences:
        tokens, fill = tokens[:length], length - len(tokens[:length])
        ids.append([pad_id] * fill + tokens if side == "left" else tokens + [pad_id] * fill)
        real = [1] * len(tokens)
        mask.append([0] * fill + real if (mask_side or side) == "left" else real + [0] * fill)
    return torch.tensor(ids, dtype=torch.long), torch.tensor(mask, dtype=torch.long)


def other(side):
    return "right" if side == "left" else "left"


@pad_batch.mistake(
    "sides exchanged",
    "You take the side for the one where the tokens go: it is the one where the padding goes.",
    "With padding on the right, a generating model continues the padding of every shorter row.",
    "notebook 02, Padding sides",
)
def _(sequences, pad_id, side):
    return padded(sequences, pad_id, other(side))


@pad_batch.mistake(
    "always on the right",
    "You put the padding on the right, whatever side says.",
    "Training works, and generating a batch goes wrong: the next token belongs behind the last real one.",
    "notebook 02, Padding sides",
)
def _(sequences, pad_id, side):
    return padded(sequences, pad_id, "right")


@pad_batch.mistake(
    "mask from the ids",
    "Your mask is 0 wherever an id equals pad_id, where it is a real token too.",
    "Many models pad with their end-of-text id: the end of every text would be masked, and its loss with it.",
    "notebook 02, Masks",
)
def _(sequences, pad_id, side):
    ids, _ = padded(sequences, pad_id, side)
    return ids, (ids != pad_id).long()


@pad_batch.mistake(
    "mask on the other side",
    "Your ids are padded on the left and your mask as if on the right, or the reverse.",
    "Attention sees padding and is blind to the tokens of every shorter row.",
    "notebook 02, Masks",
)
def _(sequences, pad_id, side):
    return padded(sequences, pad_id, side, mask_side=other(side))


@pad_batch.mistake(
    "mask reversed",
    "Your mask is 1 at padding: it is 1 at real tokens.",
    (
        "The model reads nothing but padding. Some libraries do mean True = "
        "padding, so look before you pass one."
    ),
    "notebook 02, Masks",
)
def _(sequences, pad_id, side):
    ids, mask = padded(sequences, pad_id, side)
    return ids, 1 - mask


@pad_batch.mistake(
    "mask of ones",
    "Your mask is 1 everywhere, at padding too.",
    "Every token of a shorter row attends to padding, and the same text gets other logits in another batch.",
    "notebook 02, Masks",
)
def _(sequences, pad_id, side):
    ids, _ = padded(sequences, pad_id, side)
    return ids, torch.ones_like(ids)


@pad_batch.mistake(
    "cut to the shortest",
    "You cut every row to the length of the shortest: tokens are lost, and nothing is padded.",
    "The model never sees how longer texts end.",
    "notebook 02, First by hand",
)
def _(sequences, pad_id, side):
    return padded(sequences, pad_id, side, length=min(len(tokens) for tokens in sequences))


@pad_batch.mistake(
    "pads with 0",
    "You fill up with 0, whatever pad_id says.",
    "Behind the mask it does no harm; in labels or in a count of tokens 0 is a word like any other.",
    "notebook 02, First by hand",
)
def _(sequences, pad_id, side):
    return padded(sequences, 0, side)


# --------------------------------------------------------------------------------------------------
# 2.2

position_ids_from_mask = UNIT.exercise(
    "position_ids_from_mask",
    minutes=10,
    difficulty=1,
    hints=(
        "How many real tokens stand before a token? That is its position.",
        "cumsum along a row counts the real tokens up to each place, that place included.",
        "attention_mask.long().cumsum(-1) - 1, and nothing below 0.",
    ),
)


@position_ids_from_mask.inputs
def _(draw):
    yield Case((torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]]),), "the example")
    yield Case((draw.mask(4, 7),), "padding on the left")
    yield Case((draw.mask(4, 6, side="right"),), "padding on the right")
    both = torch.ones(3, 9, dtype=torch.long)
    for row in both:
        row[: draw.integer(1, 3)] = 0
        row[-draw.integer(1, 3) :] = 0
    yield Case((both,), "padding on both sides")
    yield Case((torch.tensor([[1, 0, 0, 1, 1, 0]]),), "padding in between")
    yield Case((draw.mask(3, 5, empty_row=True),), "a row of padding alone")
    yield Case((draw.mask(3, 5).bool(),), "a mask of booleans")
    yield Case((torch.ones(1, 1, dtype=torch.long),), "one token")


@position_ids_from_mask.law("padding on the left does not move a text")
def _(answer, draw):
    length, padding = draw.integer(2, 6), draw.integer(1, 4)
    alone = answer(torch.ones(1, length, dtype=torch.long))
    mask = torch.cat([torch.zeros(1, padding), torch.ones(1, length)], dim=1).long()
    assert torch.equal(answer(mask)[:, padding:], alone), "The same text has other positions with padding."


@position_ids_from_mask.mistake(
    "places for positions",
    "You number the places of the row: 0, 1, 2 …, padding counted like tokens.",
    "With rotary embeddings it changes nothing, since only distances count. A model with learned positions "
    "reads every left-padded row with wrong ones, and writes other text.",
    "notebook 02, Break it",
)
def _(attention_mask):
    return torch.arange(attention_mask.shape[1]).expand(attention_mask.shape).clone()


@position_ids_from_mask.mistake(
    "counted from 1",
    "Your first real token has position 1: it has position 0.",
    "The first learned position is never used, and a text of full length reaches past the end of the table.",
    "notebook 02, Positions from the mask",
)
def _(attention_mask):
    return attention_mask.long().cumsum(-1)


@position_ids_from_mask.mistake(
    "negative at padding",
    "Padding on the left gets position -1 from you.",
    (
        "A table of learned positions raises an error for -1, or gives its last "
        "row where it is indexed directly."
    ),
    "notebook 02, Positions from the mask",
)
def _(attention_mask):
    return attention_mask.long().cumsum(-1) - 1


@position_ids_from_mask.mistake(
    "zero at padding",
    "You set the position to 0 at all padding, as transformers' generate "
    "does; here padding behind real tokens "
    "keeps the position of the last of them.",
    "No output of a real token changes. The two conventions differ only when positions are compared.",
    "notebook 02, Four models",
)
def _(attention_mask):
    return (attention_mask.long().cumsum(-1) - 1) * attention_mask.long()


@position_ids_from_mask.mistake(
    "one at padding",
    "You set the position to 1 at padding, as much published code does; here "
    "padding keeps the position of the "
    "last real token before it, or 0.",
    "No output of a real token changes. The conventions differ only when positions are compared.",
    "notebook 02, Positions from the mask",
)
def _(attention_mask):
    return (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)


@position_ids_from_mask.mistake(
    "padding counted on the left only",
    "You subtract the number of all padding places of a row from 0, 1, 2 …: right only where all of them "
    "stand on the left.",
    "With padding on the right the first tokens of a text all get position 0.",
    "notebook 02, Padding sides",
)
def _(attention_mask):
    padding = (attention_mask.long() == 0).sum(-1, keepdim=True)
    return (torch.arange(attention_mask.shape[1]) - padding).clamp(min=0)


# --------------------------------------------------------------------------------------------------
# 2.3

embed = UNIT.exercise(
    "embed",
    minutes=10,
    difficulty=1,
    hints=(
        "A table indexed with a tensor of ids gives one row for every id.",
        "A Python float is not rounded before a product with a bf16 tensor; a tensor of that dtype is.",
        (
            "table[input_ids] * torch.tensor(scale, dtype=table.dtype), after a "
            "look at the smallest and largest id."
        ),
    ),
)


@embed.inputs
def _(draw):
    ids = draw.integers(0, 7, 2, 5)
    for dtype in (torch.float32, torch.bfloat16):
        yield Case((ids, draw.normal(7, 4, dtype=dtype)), f"no scale, {dtype}", exact=True)
    for dtype, hidden in ((torch.float32, 3072), (torch.bfloat16, 3072), (torch.float16, 1536)):
        # The square root stands for a model that is wider than this table.
        table = draw.normal(9, 8, dtype=dtype)
        yield Case((draw.integers(0, 9, 3, 4), table, hidden**0.5), f"√{hidden}, {dtype}", exact=True)
    yield Case((torch.tensor([[0, 1, 1, 2, 0]]), draw.normal(4, 3), 1.5), "an id twice", gradient=True)
    yield Case((draw.integers(0, 5, 1, 1), draw.normal(5, 3)), "one token", exact=True)
    yield Case((torch.tensor([[1, 5]]), draw.normal(5, 3)), refused="the id 5 in a table of 5 rows")
    yield Case((torch.tensor([[1, -1]]), draw.normal(5, 3)), refused="the id -1")


@embed.law("the same id gives the same vector in every place")
def _(answer, draw):
    found = answer(torch.tensor([[3, 1, 3]]), draw.normal(5, 4), 2.5)
    assert torch.equal(found[:, 0], found[:, 2]), "An id has two vectors."


@embed.mistake(
    "scale not rounded",
    "You multiply by the scale with all its digits and round the product only.",
    (
        "In bf16 Gemma's vectors are off by a part in a thousand from the first "
        "step on, and its logits with them."
    ),
    "notebook 02, Four models",
)
def _(input_ids, table, scale=None):
    embedded = table[input_ids]
    wide = torch.promote_types(table.dtype, torch.float32)
    return embedded if scale is None else (embedded.to(wide) * scale).to(table.dtype)


@embed.mistake(
    "scale ignored",
    "You do not use the scale.",
    "Gemma reads embeddings that are too small by √hidden, and its text is noise.",
    "notebook 02, Four models",
)
def _(input_ids, table, scale=None):
    return table[input_ids]


@embed.mistake(
    "scale from the table",
    "You multiply by the square root of the table's width, and not by the scale that is given, if any.",
    "Only Gemma scales. Every other model gets embeddings that are too large.",
    "notebook 02, Four models",
)
def _(input_ids, table, scale=None):
    return table[input_ids] * torch.tensor(table.shape[1] ** 0.5, dtype=table.dtype)


@embed.mistake(
    "divided",
    "You divide by the scale.",
    "That is what attention does with its scores. Embeddings are to grow: the table was trained for it.",
    "notebook 02, Four models",
)
def _(input_ids, table, scale=None):
    return table[input_ids] if scale is None else table[input_ids] / torch.tensor(scale, dtype=table.dtype)


@embed.mistake(
    "nothing for id 0",
    "The id 0 gets a vector of zeros from you, as if it were padding.",
    "Which id pads differs from model to model, and padding is hidden by the mask. Here 0 is a word.",
    "notebook 02, Masks",
)
def _(input_ids, table, scale=None):
    embedded = table[input_ids] * (input_ids != 0)[..., None].to(table.dtype)
    return embedded if scale is None else embedded * torch.tensor(scale, dtype=table.dtype)


@embed.mistake(
    "no gradient",
    "Your values are right, and no gradient reaches the table: detach, .data, "
    ".tolist() or a new tensor made of "
    "its numbers cuts the way back.",
    "The table would keep its first random vectors for the whole of training.",
    "notebook 02, The real thing",
)
def _(input_ids, table, scale=None):
    embedded = table.detach()[input_ids]
    return embedded if scale is None else embedded * torch.tensor(scale, dtype=table.dtype)
