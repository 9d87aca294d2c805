"""What checks the exercises of notebook 08, and the wrong answers that people give."""

import torch

from minilm.course.spec import Case, Unit

UNIT = Unit(8, "grouped_queries")

# --------------------------------------------------------------------------------------------------
# 8.1

repeat_kv = UNIT.exercise(
    "repeat_kv",
    minutes=10,
    difficulty=1,
    hints=(
        "Write down the heads of the result for two heads a, b and groups = 3. Which comes second?",
        "torch.repeat_interleave(x, groups, dim=1) does it. Without it: give x a new axis behind the heads.",
        (
            "x[:, :, None] has shape [batch, kv_heads, 1, length, head_dim]; "
            "expand the 1 to groups, then reshape."
        ),
    ),
)


@repeat_kv.inputs
def _(draw):
    for dtype in (torch.float32, torch.bfloat16):
        yield Case((draw.normal(2, 3, 5, 6, dtype=dtype), 4), f"3 heads for 12, {dtype}", exact=True)
    yield Case((draw.normal(1, 2, 1, 3), 3), "one token", exact=True, gradient=True)
    yield Case((draw.normal(2, 1, 4, 5), 6), "one head for all", exact=True)
    yield Case((draw.normal(2, 4, 3, 5), 1), "nothing to repeat", exact=True)
    yield Case((draw.normal(2, 3, 4, 5), 0), refused="groups is 0")


@repeat_kv.law("query head h reads key head h // groups")
def _(answer, draw):
    x, groups = draw.normal(1, 3, 2, 5), 2
    for head in range(6):
        assert torch.equal(answer(x, groups)[:, head], x[:, head // groups]), f"Head {head} does not."


@repeat_kv.mistake(
    "tiled",
    "Your heads are tiled, not repeated: heads a, b with groups = 2 become a, b, a, b, not a, a, b, b.",
    (
        "Head 1 reads key head 1 instead of 0. It cannot be seen with one key "
        "head or with as many as query heads."
    ),
    "notebook 08, Break it",
)
def _(x, groups):
    if groups < 1:
        raise ValueError
    return x.repeat(1, groups, 1, 1)


@repeat_kv.mistake(
    "repeats tokens",
    "You repeat along the length: the tokens are doubled, and not the heads.",
    "The cache would seem to hold every token several times.",
    "notebook 08, The real thing",
)
def _(x, groups):
    if groups < 1:
        raise ValueError
    return x.repeat_interleave(groups, dim=2)


@repeat_kv.mistake(
    "wrong axis order",
    "You reshape without moving the new axis behind the heads, so pieces of tokens end up in other heads.",
    "The shape is right and every value is there, in the wrong place.",
    "notebook 01, Views and copies",
)
def _(x, groups):
    if groups < 1:
        raise ValueError
    batch, kv_heads, length, head_dim = x.shape
    copies = x[:, :, :, None].expand(batch, kv_heads, length, groups, head_dim)
    return copies.reshape(batch, kv_heads * groups, length, head_dim)


@repeat_kv.mistake(
    "nothing repeated",
    "You return the heads as they came.",
    "With fewer key heads than query heads the product of queries and keys has no matching shapes.",
    "notebook 08, First by hand",
)
def _(x, groups):
    if groups < 1:
        raise ValueError
    return x.clone()


# --------------------------------------------------------------------------------------------------
# 8.2

kv_cache_bytes = UNIT.exercise(
    "kv_cache_bytes",
    minutes=5,
    difficulty=1,
    hints=(
        "Count numbers first, bytes last.",
        "One token in one layer keeps a key and a value for every key head.",
        "2 · num_layers · num_kv_heads · head_dim · length · batch · bytes_per_value.",
    ),
)


@kv_cache_bytes.inputs
def _(draw):
    yield Case((2, 3, 4, 5, 1, 2), "the example")
    yield Case((24, 2, 64, 32_768, 1, 2), "Qwen2-0.5B at its full length")
    for _ in range(4):
        yield Case(tuple(draw.integer(1, 50) for _ in range(6)), "random sizes")


@kv_cache_bytes.law("each size counts once")
def _(answer, draw):
    sizes = [draw.integer(2, 9) for _ in range(6)]
    for index in range(6):
        doubled = [2 * size if place == index else size for place, size in enumerate(sizes)]
        assert answer(*doubled) == 2 * answer(*sizes), (
            f"Doubling argument {index + 1} should double the bytes."
        )


@kv_cache_bytes.mistake(
    "keys only",
    "You count the keys and forget the values: half of the cache.",
    "A cache planned like this runs out of memory at half of the length.",
    "notebook 08, First by hand",
)
def _(num_layers, num_kv_heads, head_dim, length, batch, bytes_per_value):
    return num_layers * num_kv_heads * head_dim * length * batch * bytes_per_value


@kv_cache_bytes.mistake(
    "bits",
    "You return bits: eight times the bytes.",
    "bytes_per_value says bytes already: 2 for bf16.",
    "notebook 08, First by hand",
)
def _(num_layers, num_kv_heads, head_dim, length, batch, bytes_per_value):
    return 16 * num_layers * num_kv_heads * head_dim * length * batch * bytes_per_value


@kv_cache_bytes.mistake(
    "one row",
    "You leave the batch out: every row of a batch has a cache of its own.",
    "In a batch the cache, not the weights, is what fills the memory.",
    "notebook 10, Cost with and without",
)
def _(num_layers, num_kv_heads, head_dim, length, batch, bytes_per_value):
    return 2 * num_layers * num_kv_heads * head_dim * length * bytes_per_value


@kv_cache_bytes.mistake(
    "one layer",
    "You count one layer: every layer has keys and values of its own.",
    "The cache of a model with 24 layers is 24 times as large.",
    "notebook 08, First by hand",
)
def _(num_layers, num_kv_heads, head_dim, length, batch, bytes_per_value):
    return 2 * num_kv_heads * head_dim * length * batch * bytes_per_value


# --------------------------------------------------------------------------------------------------
# 8.3

grouped_attention = UNIT.exercise(
    "grouped_attention",
    minutes=20,
    difficulty=2,
    hints=(
        "Do not bring the keys to the queries' shape; bring the queries to the keys'.",
        "View the queries as [batch, kv_heads, groups, query, head_dim]; give the keys an axis of length 1.",
        "A row of scores that is all -inf becomes NaN in the softmax; nan_to_num afterwards makes it 0.",
    ),
)


@grouped_attention.inputs
def _(draw):
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = draw.normal(2, 6, 4, 5), draw.normal(2, 3, 7, 5), draw.normal(2, 3, 7, 5)
        yield Case(tuple(x.to(dtype) for x in (query, key, value)), f"2 heads a group, {dtype}")
    causal = torch.ones(7, 7).tril().bool()[None, None]
    batch = draw.normal(2, 6, 7, 5), draw.normal(2, 2, 7, 5), draw.normal(2, 2, 7, 5)
    yield Case((*batch, causal), "causal", gradient=True)
    real = draw.mask(2, 7, empty_row=True).bool()[:, None, None]
    yield Case((*batch, causal & real), "a row that sees nothing")
    yield Case((draw.normal(1, 4, 1, 3), draw.normal(1, 1, 1, 3), draw.normal(1, 1, 1, 3)), "one token")
    yield Case((draw.normal(1, 6, 3, 4), draw.normal(1, 4, 3, 4), draw.normal(1, 4, 3, 4)),
               refused="6 query heads cannot share 4 key heads")  # fmt: skip


@grouped_attention.law("a group whose queries are equal gives equal results")
def _(answer, draw):
    one = draw.normal(1, 2, 3, 5)
    query = one.repeat_interleave(3, dim=1)
    found = answer(query, draw.normal(1, 2, 4, 5), draw.normal(1, 2, 4, 5))
    assert torch.allclose(found[:, 0], found[:, 2], atol=1e-5), "Heads 0 and 2 of a group of 3 differ."


def attend(query, key, value, mask=None, scale=True, group=None, fill=-torch.inf, rescue=True):
    """Attention with the places where people go wrong."""
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads % kv_heads:
        raise ValueError
    group = group or (lambda x: x.repeat_interleave(heads // kv_heads, dim=1))
    scores = query @ group(key).transpose(-1, -2) / (query.shape[-1] ** 0.5 if scale else 1.0)
    scores = scores.float()
    if mask is not None:
        scores = scores.masked_fill(~mask, fill)
    weights = scores.softmax(-1)
    weights = weights.nan_to_num(0.0) if rescue else weights
    return weights.to(value.dtype) @ group(value)


@grouped_attention.mistake(
    "tiled",
    "Query head h reads key head h % kv_heads: you let the groups lie apart instead of side by side.",
    "The text of a real model turns to noise, and with one key head nothing shows.",
    "notebook 08, Break it",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, group=lambda x: x.repeat(1, query.shape[1] // x.shape[1], 1, 1))


@grouped_attention.mistake(
    "no scale",
    "You do not divide the scores by the square root of head_dim.",
    "Scores grow with the width of a head, and the softmax picks one key instead of mixing.",
    "notebook 07, Break it",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, scale=False)


@grouped_attention.mistake(
    "nan for empty rows",
    "A query that sees no key gets NaN from you: the softmax of a row of -inf is 0/0.",
    "One padded row makes NaN of every later layer, and of the gradients.",
    "notebook 09, Break it",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, rescue=False)


@grouped_attention.mistake(
    "mean for empty rows",
    "A query that sees no key gets the mean of all values: you hide keys with a large finite number.",
    "It does no harm while nobody looks at padded rows, and then tokens see what was hidden from them.",
    "notebook 09, Empty rows",
)
def _(query, key, value, mask=None):
    return attend(query, key, value, mask, fill=torch.finfo(torch.float32).min)


@grouped_attention.mistake(
    "mask ignored",
    "You do not use the mask.",
    "The model sees the future while it is trained, and has none when it writes.",
    "notebook 09, Who may see whom",
)
def _(query, key, value, mask=None):
    return attend(query, key, value)
