"""What checks the exercises of notebook 09, and the wrong answers that people give."""

import torch

from minilm.course.probes import looks_ahead
from minilm.course.spec import Case, Unit

UNIT = Unit(9, "masks")


def compare(query_length, key_length, rule, top_left=False):
    """A mask by a rule for how far a key lies behind a query."""
    if query_length > key_length:
        raise ValueError
    first = 0 if top_left else key_length - query_length
    distance = first + torch.arange(query_length)[:, None] - torch.arange(key_length)
    return rule(distance)[None, None]


def triangle(query_length, key_length):
    """The causal mask."""
    return compare(query_length, key_length, lambda distance: distance >= 0)


# --------------------------------------------------------------------------------------------------
# 9.1

causal_mask = UNIT.exercise(
    "causal_mask",
    minutes=10,
    difficulty=1,
    hints=(
        (
            "Write down the positions of the keys, then those of the queries: with "
            "2 queries and 4 keys, 2 and 3."
        ),
        "Compare a column of query positions with a row of key positions; broadcasting gives all pairs.",
        "Key j is visible to query i if j <= key_length - query_length + i. torch.arange gives both.",
    ),
)


@causal_mask.inputs
def _(draw):
    yield Case((2, 4), "the example")
    yield Case((5, 5), "as many queries as keys")
    yield Case((3, 8), "the second part of a prompt")
    yield Case((1, 6), "one new token")
    yield Case((1, 1), "one token in all")
    queries = draw.integer(2, 6)
    yield Case((queries, queries + draw.integer(1, 6)), "random lengths")
    yield Case((4, 3), refused="4 queries among 3 keys")


@causal_mask.law("no query looks ahead, and each sees its own key")
def _(answer, draw):
    queries = draw.integer(2, 5)
    keys = queries + draw.integer(1, 4)
    mask = answer(queries, keys)[0, 0]
    ahead = looks_ahead(lambda x: mask.to(x.dtype) @ x, draw.normal(keys, 3), shift=keys - queries)
    assert ahead is None, f"Of {queries} queries among {keys} keys, number {ahead[0]} sees key {ahead[1]}."
    for place in range(queries):
        own = keys - queries + place
        assert mask[place, own], f"Of {queries} queries among {keys} keys, number {place} misses key {own}."


@causal_mask.law("a text read in two parts sees what it sees in one")
def _(answer, draw):
    keys = draw.integer(5, 9)
    whole, second = answer(keys, keys), answer(3, keys)
    assert torch.equal(second, whole[:, :, -3:]), (
        f"The mask of 3 queries among {keys} keys is not the last 3 rows of the whole mask."
    )


@causal_mask.mistake(
    "itself hidden",
    "You hide each query's own key: it sees only what stands strictly before it.",
    "The first token sees nothing at all, and with -inf for hidden keys its result is NaN.",
    "notebook 09, Break it",
)
def _(query_length, key_length):
    return compare(query_length, key_length, lambda distance: distance > 0)


@causal_mask.mistake(
    "one key ahead",
    "You let each query see one key too many, the next token's.",
    "In training this is the token to be predicted: the loss falls to almost nothing, and the model cannot "
    "write.",
    "notebook 09, Break it",
)
def _(query_length, key_length):
    return compare(query_length, key_length, lambda distance: distance >= -1)


@causal_mask.mistake(
    "top left",
    "You let query i see the keys 0 … i, as if the queries were the first tokens. They are the last.",
    "A new token after a cache sees the first key alone. With as many queries as keys nothing shows.",
    "notebook 09, Two lengths",
)
def _(query_length, key_length):
    return compare(query_length, key_length, lambda distance: distance >= 0, top_left=True)


@causal_mask.mistake(
    "reversed meaning",
    "You return True where a key is hidden; here True means visible.",
    "Both meanings are in use: torch's MultiheadAttention hides where its mask is True, its "
    "scaled_dot_product_attention shows. Given the wrong one, each query sees exactly the future.",
    "notebook 09, Boolean and additive",
)
def _(query_length, key_length):
    return compare(query_length, key_length, lambda distance: distance < 0)


@causal_mask.mistake(
    "triangle turned over",
    "You keep the upper triangle: each query sees itself and what comes later (triu for tril).",
    "The last token, from which the next one is predicted, sees nothing but itself.",
    "notebook 09, First by hand",
)
def _(query_length, key_length):
    return compare(query_length, key_length, lambda distance: distance <= 0)


@causal_mask.mistake(
    "numbers for booleans",
    "You return numbers, 1 where visible, and not booleans.",
    "A mask of 0 and 1 is taken for something to be added to the scores: it raises visible keys by 1 and "
    "hides none, without an error.",
    "notebook 09, Boolean and additive",
)
def _(query_length, key_length):
    return compare(query_length, key_length, lambda distance: (distance >= 0).float())


# --------------------------------------------------------------------------------------------------
# 9.2

sliding_window_mask = UNIT.exercise(
    "sliding_window_mask",
    minutes=10,
    difficulty=1,
    hints=(
        (
            "For one query, number the keys by how far behind it they lie. Which "
            "numbers does a window of 3 keep?"
        ),
        "Take the causal mask, and find the second condition: a key that lies too far behind is hidden.",
        "distance = query position - key position; visible where distance >= 0 and distance < window.",
    ),
)


@sliding_window_mask.inputs
def _(draw):
    yield Case((2, 4, 2), "the example")
    yield Case((7, 7, 3), "as many queries as keys")
    yield Case((3, 8, 4), "the second part of a prompt")
    yield Case((1, 9, 5), "one new token")
    yield Case((5, 5, 1), "a window of one")
    yield Case((4, 6, 10), "a window longer than the text")
    queries = draw.integer(2, 6)
    yield Case((queries, queries + draw.integer(2, 6), draw.integer(2, 4)), "random lengths")
    yield Case((3, 5, 0), refused="a window of 0")
    yield Case((4, 3, 2), refused="4 queries among 3 keys")


@sliding_window_mask.law("each query sees `window` keys, or all there are at the start of the text")
def _(answer, draw):
    length, window = draw.integer(6, 10), draw.integer(1, 5)
    counts = answer(length, length, window)[0, 0].sum(-1).tolist()
    wanted = [min(place + 1, window) for place in range(length)]
    assert counts == wanted, f"With window {window} the queries see {counts} keys, and should see {wanted}."


def slide(query_length, key_length, window, first=0, end=0, top_left=False):
    """The window from distance `first` to `window + end`, which is not seen any more; None is no bound."""
    if window < 1:
        raise ValueError

    def rule(distance):
        after = torch.ones_like(distance, dtype=torch.bool) if first is None else distance >= first
        return after if end is None else after & (distance < window + end)

    return compare(query_length, key_length, rule, top_left)


@sliding_window_mask.mistake(
    "one key too many",
    "You let window + 1 keys be seen: the query's own key is one of the window's.",
    "flash-attn counts the keys to the left of the query, so its window_size is window - 1; the two ways of "
    "counting are easily confused, and a text shorter than the window hides it.",
    "notebook 09, Sliding windows",
)
def _(query_length, key_length, window):
    return slide(query_length, key_length, window, end=1)


@sliding_window_mask.mistake(
    "one key too few",
    "You let window - 1 keys be seen: the oldest key of the window is missing.",
    "A window of 1 hides everything, and the softmax of such a row is NaN. A window of 4096 seems to work.",
    "notebook 09, Sliding windows",
)
def _(query_length, key_length, window):
    return slide(query_length, key_length, window, end=-1)


@sliding_window_mask.mistake(
    "both sides",
    "You let a query see the keys of its window on both sides, the future included.",
    "This is local attention of an encoder. A decoder that is trained like this copies the next token.",
    "notebook 09, Sliding windows",
)
def _(query_length, key_length, window):
    return slide(query_length, key_length, window, first=1 - window)


@sliding_window_mask.mistake(
    "future visible",
    "You hide what lies too far behind and forget to hide the future.",
    "The window is right, so a look at one row's left end finds nothing wrong.",
    "notebook 09, First by hand",
)
def _(query_length, key_length, window):
    return slide(query_length, key_length, window, first=None)


@sliding_window_mask.mistake(
    "no window",
    "Your mask is the causal mask: the window hides nothing.",
    "The model reads further back than it was trained to. In texts shorter than its window all is well.",
    "notebook 09, Sliding windows",
)
def _(query_length, key_length, window):
    return slide(query_length, key_length, window, end=None)


@sliding_window_mask.mistake(
    "top left",
    "You count as if the queries were the first tokens. With more keys than queries they are the last.",
    "After a cache a new token sees the beginning of the text and not what was just said.",
    "notebook 09, Two lengths",
)
def _(query_length, key_length, window):
    return slide(query_length, key_length, window, top_left=True)


# --------------------------------------------------------------------------------------------------
# 9.3

combine_masks = UNIT.exercise(
    "combine_masks",
    minutes=10,
    difficulty=1,
    hints=(
        "A key is visible if two things are true of it. Which operator says so?",
        "Give attention_mask two more axes, so that its keys lie on the last axis of causal.",
        "causal & attention_mask.bool()[:, None, None, :]; compare the two lengths before.",
    ),
)


@combine_masks.inputs
def _(draw):
    yield Case((triangle(2, 2), torch.tensor([[0, 1]])), "the example")
    yield Case((triangle(6, 6), draw.mask(3, 6)), "padding on the left")
    yield Case((triangle(6, 6), draw.mask(3, 6, side="right").bool()), "padding on the right, as booleans")
    yield Case((triangle(3, 7), draw.mask(2, 7)), "more keys than queries")
    yield Case((triangle(1, 5), draw.mask(2, 5)), "one new token")
    yield Case((triangle(4, 4), draw.mask(3, 4, empty_row=True)), "a row of padding alone")
    yield Case((triangle(1, 6), draw.mask(2, 5)), refused="5 places for 6 keys")
    yield Case((triangle(4, 4), torch.ones(2, 1).long()), refused="1 place for 4 keys")


@combine_masks.law("without padding nothing more is hidden")
def _(answer, draw):
    causal = triangle(3, 5)
    found = answer(causal, torch.ones(2, 5).long())
    assert torch.equal(found, causal.expand(2, 1, 3, 5)), "A batch without padding does not see causally."


@combine_masks.law("padding on the left changes nothing between the tokens")
def _(answer, draw):
    length, pads = draw.integer(3, 6), draw.integer(1, 3)
    total = length + pads
    real = torch.cat((torch.zeros(1, pads), torch.ones(1, length)), dim=1).long()
    found = answer(triangle(total, total), real)[0, 0, pads:]
    alone = answer(triangle(length, length), torch.ones(1, length).long())[0, 0]
    assert torch.equal(found[:, pads:], alone), "With padding the tokens see each other in another way."
    assert not found[:, :pads].any(), "A token sees padding."


def join(causal, attention_mask, how=lambda causal, real: causal & real, real=None):
    """Both masks joined, with the places where people go wrong."""
    if attention_mask.shape[-1] != causal.shape[-1]:
        raise ValueError
    return how(causal, attention_mask.bool()[:, None, None] if real is None else real)


@combine_masks.mistake(
    "queries for keys",
    "You hide the rows of padded queries, and not the columns of padded keys.",
    "Real tokens still see the padding, and it changes their result: this is what the mask was to prevent.",
    "notebook 09, Padding",
)
def _(causal, attention_mask):
    return join(causal, attention_mask, real=attention_mask.bool()[:, None, :, None])


@combine_masks.mistake(
    "padded queries too",
    "You hide everything from padded queries as well; only padded keys are to be hidden.",
    "Such a row is empty, also where padding stands on the right. With -inf it becomes NaN, and a NaN at a "
    "padded place reaches the real ones in the loss or in the next layer's values.",
    "notebook 09, Empty rows",
)
def _(causal, attention_mask):
    queries = causal.shape[2]
    both = join(causal, attention_mask)
    return both & attention_mask.bool()[:, None, -queries:, None]


@combine_masks.mistake(
    "or for and",
    "You let a key be seen if one of the two masks allows it. Both have to.",
    "All real tokens see the future, in every row.",
    "notebook 09, First by hand",
)
def _(causal, attention_mask):
    return join(causal, attention_mask, lambda causal, real: causal | real)


@combine_masks.mistake(
    "padding reversed",
    "You hide the real keys and show the padding: 1 means real.",
    "torch's key_padding_mask has the opposite meaning, so that code taken from there is right only there.",
    "notebook 09, Padding",
)
def _(causal, attention_mask):
    return join(causal, attention_mask, lambda causal, real: causal & ~real)


@combine_masks.mistake(
    "causality lost",
    "Your mask is the padding alone: nothing hides the future any more.",
    "Whoever passes a mask of their own turns the kernel's causal flag off, and has to bring both.",
    "notebook 09, Padding",
)
def _(causal, attention_mask):
    return join(causal, attention_mask, lambda causal, real: real.expand(-1, 1, causal.shape[2], -1))


@combine_masks.mistake(
    "numbers for booleans",
    "You return integers, 1 where visible: joined with integers by & or *, booleans become integers.",
    "~ of 1 is -2 and of 0 is -1, both of which count as True; and added to scores, 0 and 1 hide nothing.",
    "notebook 09, Boolean and additive",
)
def _(causal, attention_mask):
    return join(causal, attention_mask, real=attention_mask[:, None, None])


@combine_masks.mistake(
    "no head axis",
    "Your mask has the shape [batch, query, key]: the axis that the heads share is missing.",
    "Beside scores of [batch, heads, query, key] its batch stands where the heads are. With as many rows as "
    "heads there is no error, and head h hides the padding of row h.",
    "notebook 09, Padding",
)
def _(causal, attention_mask):
    return join(causal, attention_mask)[:, 0]


# --------------------------------------------------------------------------------------------------
# 9.4

mask_to_bias = UNIT.exercise(
    "mask_to_bias",
    minutes=10,
    difficulty=1,
    hints=(
        "Which number, added to a score, changes nothing? And which makes its weight 0 after the softmax?",
        "torch.finfo(dtype).min is the lowest finite number of a dtype. Build the result in that dtype.",
        "torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min).",
    ),
)


@mask_to_bias.inputs
def _(draw):
    yield Case((torch.tensor([True, False]), torch.float16), "the example", exact=True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        mask = triangle(5, 5) & draw.mask(2, 5).bool()[:, None, None]
        yield Case((mask, dtype), f"padding on the left, {dtype}", exact=True)
    yield Case((triangle(1, 4), torch.float32), "everything visible", exact=True)
    yield Case((torch.tensor(False), torch.bfloat16), "a single place", exact=True)
    yield Case((draw.mask(2, 3), torch.float32), refused="a mask of integers")
    yield Case((triangle(2, 2), torch.int64), refused="dtype is torch.int64")


@mask_to_bias.law("a row that sees nothing does not become NaN in the softmax")
def _(answer, draw):
    mask = torch.tensor([[True, False], [False, False]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weights = answer(mask, dtype).float().softmax(-1)
        assert not weights.isnan().any(), f"In {dtype} the weights are {weights.tolist()}."


@mask_to_bias.law("a hidden key has weight 0, however large the scores are")
def _(answer, draw):
    mask = triangle(4, 4)
    scores = draw.normal(1, 1, 4, 4, scale=1e6)
    weight = (scores + answer(mask, torch.float32)).softmax(-1)[~mask].max().item()
    assert weight == 0, f"With scores of about a million a hidden key has weight {weight:.3g}."


def check(mask, dtype):
    """Refuse what mask_to_bias has to refuse."""
    if mask.dtype != torch.bool or not dtype.is_floating_point:
        raise ValueError


@mask_to_bias.mistake(
    "minus infinity",
    "You hide keys with -inf, not with the lowest finite number.",
    "A query that sees no key becomes NaN: its row is -inf alone, and the softmax of it 0/0. One padded row "
    "is enough, and every layer above and every gradient is NaN as well.",
    "notebook 09, Empty rows",
)
def _(mask, dtype):
    check(mask, dtype)
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)


@mask_to_bias.mistake(
    "zeros and ones",
    "You return 1 where visible and 0 where hidden. Added to scores, this hides nothing.",
    "Every key keeps nearly the weight that it had, the future's included, and there is no error.",
    "notebook 09, Break it",
)
def _(mask, dtype):
    check(mask, dtype)
    return mask.to(dtype)


@mask_to_bias.mistake(
    "reversed",
    (
        "You put 0 where the mask is False and the lowest number where it is "
        "True: what should be seen is hidden."
    ),
    "Each token sees exactly the future and the padding.",
    "notebook 09, Boolean and additive",
)
def _(mask, dtype):
    check(mask, dtype)
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(mask, torch.finfo(dtype).min)


@mask_to_bias.mistake(
    "minus ten thousand",
    "You hide keys with -10000, which is a score like any other.",
    "It serves as long as scores are small. Where a visible key lies 10000 below a hidden one, the hidden "
    "one wins.",
    "notebook 09, Boolean and additive",
)
def _(mask, dtype):
    check(mask, dtype)
    return torch.where(mask, 0.0, -1e4).to(dtype)


@mask_to_bias.mistake(
    "minus a billion",
    "You hide keys with -1e9. In fp16, whose lowest number is -65504, it becomes -inf.",
    "In fp32 it works; a model in fp16 gives NaN for a row of padding.",
    "notebook 09, Boolean and additive",
)
def _(mask, dtype):
    check(mask, dtype)
    return torch.where(mask, 0.0, -1e9).to(dtype)


@mask_to_bias.mistake(
    "lowest number of fp32",
    "You take fp32's lowest number whatever the dtype is. In fp16 and in bf16 it rounds to -inf.",
    "In fp32 nothing shows. In half precision a query that sees no key becomes NaN.",
    "notebook 09, Boolean and additive",
)
def _(mask, dtype):
    check(mask, dtype)
    return torch.where(mask, 0.0, torch.finfo(torch.float32).min).to(dtype)


@mask_to_bias.mistake(
    "always fp32",
    "You return fp32 whatever dtype is asked for.",
    "Scores in bf16 become fp32 when it is added to them: the largest tensor of attention takes twice the "
    "memory, and the product with the values in bf16 is refused.",
    "notebook 09, Boolean and additive",
)
def _(mask, dtype):
    check(mask, dtype)
    return torch.where(mask, 0.0, torch.finfo(dtype).min)


# --------------------------------------------------------------------------------------------------
# 9.5

visible = UNIT.exercise(
    "visible",
    minutes=15,
    difficulty=2,
    hints=(
        "Nothing here depends on where in its tensor a key lies: only on its position and its validity.",
        "query_positions[:, :, None] - key_positions[:, None, :] is the distance of every pair, per row.",
        "Join distance >= 0, distance < window (if there is one) and key_valid[:, None, :] with &; then add "
        "the axis of the heads with [:, None].",
    ),
)


@visible.inputs
def _(draw):
    everything = torch.ones(1, 4).bool()
    yield Case((torch.tensor([[5]]), torch.tensor([[4, 5, 6, 3]]), everything, 2), "the example")
    places = torch.arange(6)[None]
    yield Case((places, places, draw.mask(2, 6).bool()), "a prompt, padding on the left")
    yield Case((places[:, 3:], places, draw.mask(3, 6).bool(), 3), "the second part of a prompt, window 3")
    slots = torch.arange(8)[None]
    yield Case((torch.tensor([[3, 4]]), slots, (slots < 5).expand(2, -1)), "a static cache with empty slots")
    written = torch.tensor([[True, True, True, True, True, False], [True, False, True, True, True, False]])
    yield Case((torch.tensor([[7]]), torch.tensor([[6, 7, 2, 3, 5, 0]]), written, 4),
               "a cache filled in a circle, window 4")  # fmt: skip
    queries = torch.tensor([[2, 3], [3, 4], [5, 6]])
    keys = torch.tensor([[3], [1], [0]]) + torch.arange(7)
    yield Case((queries, keys, draw.mask(3, 7, side="right").bool(), 3), "each row elsewhere, window 3")
    yield Case(
        (places, places, draw.mask(2, 6, empty_row=True).bool(), 1), "window 1, a row of padding alone"
    )
    yield Case((places, places, everything.new_ones(1, 6), 0), refused="a window of 0")


@visible.law("the order of the keys does not matter: exchanged keys exchange their columns")
def _(answer, draw):
    queries, keys = torch.arange(4, 7)[None], torch.arange(7)[None]
    valid, order = draw.mask(2, 7).bool(), draw.normal(7).argsort()
    for window in (None, 3):
        found = answer(queries, keys[:, order], valid[:, order], window)
        wanted = answer(queries, keys, valid, window)[..., order]
        assert torch.equal(found, wanted), f"With window {window} a key's visibility depends on its place."


@visible.law("only distances count: all positions moved by the same amount see the same")
def _(answer, draw):
    queries, keys, valid = torch.arange(2, 5)[None], torch.arange(5)[None], torch.ones(1, 5).bool()
    for window in (None, 2):
        moved = answer(queries + 1000, keys + 1000, valid, window)
        assert torch.equal(moved, answer(queries, keys, valid, window)), f"Not so with window {window}."


def see(query_positions, key_positions, key_valid, window, rule=lambda d: d >= 0, near=lambda d, w: d < w):
    """The general rule with the places where people go wrong; a rule of None is left out."""
    if window is not None and window < 1:
        raise ValueError
    distance = query_positions[:, :, None] - key_positions[:, None]
    seen = torch.ones_like(distance, dtype=torch.bool) if rule is None else rule(distance)
    if window is not None and near is not None:
        seen = seen & near(distance, window)
    return (seen & key_valid[:, None])[:, None]


@visible.mistake(
    "places for positions",
    "You number the keys from 0 in the order in which they lie, and do not use key_positions.",
    "As long as a cache grows at its end the two are the same. In a cache that is filled in a circle the "
    "oldest and the newest key are taken for each other.",
    "notebook 09, Static cache",
)
def _(query_positions, key_positions, key_valid, window=None):
    places = torch.arange(key_positions.shape[1])[None]
    return see(query_positions, places, key_valid, window)


@visible.mistake(
    "first row for all",
    "You use the positions of the first row for all rows.",
    "With one text at a time nothing shows. In a batch whose rows have come "
    "to different lengths, all but the "
    "first see the wrong keys.",
    "notebook 09, Static cache",
)
def _(query_positions, key_positions, key_valid, window=None):
    return see(query_positions[:1], key_positions[:1], key_valid, window)


@visible.mistake(
    "invalid keys visible",
    "You do not use key_valid: padding and empty slots can be seen.",
    "Zeros in empty slots take part in the softmax with score 0, and padding changes every real token after "
    "it.",
    "notebook 09, Static cache",
)
def _(query_positions, key_positions, key_valid, window=None):
    return see(query_positions, key_positions, torch.ones_like(key_valid), window)


@visible.mistake(
    "validity alone",
    "You show every valid key, also those after the query.",
    "A chunk of several queries sees its own future. With one new token at a time nothing shows.",
    "notebook 09, Static cache",
)
def _(query_positions, key_positions, key_valid, window=None):
    return see(query_positions, key_positions, key_valid, window, rule=None)


@visible.mistake(
    "distance reversed",
    "You subtract the other way round, key minus query: each query sees itself and what comes later.",
    "The token that the next one is predicted from sees nothing but itself.",
    "notebook 09, First by hand",
)
def _(query_positions, key_positions, key_valid, window=None):
    return see(-query_positions, -key_positions, key_valid, window)


@visible.mistake(
    "itself hidden",
    "You hide each query's own key: distance 0 belongs to what is seen.",
    "The first token sees nothing, and what a token says of itself is lost everywhere.",
    "notebook 09, Break it",
)
def _(query_positions, key_positions, key_valid, window=None):
    return see(query_positions, key_positions, key_valid, window, rule=lambda distance: distance > 0)


@visible.mistake(
    "one key too many",
    "You let a window show window + 1 positions: the query's own is one of them.",
    "A sliding cache keeps only window - 1 keys beside the new one, so that prompt and decoding disagree.",
    "notebook 09, Sliding windows",
)
def _(query_positions, key_positions, key_valid, window=None):
    return see(query_positions, key_positions, key_valid, window, near=lambda d, w: d <= w)


@visible.mistake(
    "window ignored",
    "You do not use window: each query sees everything before it.",
    "A model that was trained with a window reads further back than it ever did.",
    "notebook 09, Sliding windows",
)
def _(query_positions, key_positions, key_valid, window=None):
    return see(query_positions, key_positions, key_valid, window, near=None)
