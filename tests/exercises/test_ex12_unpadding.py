"""What checks the exercises of notebook 12, and the wrong answers that people give."""

import torch

from minilm.course.probes import looks_ahead
from minilm.course.spec import Case, Unit

UNIT = Unit(12, "unpadding")


def boundaries(*lengths):
    """Cumulative lengths of sequences."""
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def places(mask):
    """Where a mask has real tokens, in the batch as one row."""
    return mask.flatten().nonzero().flatten()


def count(bounds):
    """For each token of a packed row its number and that of its sequence; refuses lengths."""
    if bounds[0] != 0:
        raise ValueError
    tokens = torch.arange(int(bounds[-1]))
    return tokens, torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff())


# --------------------------------------------------------------------------------------------------
# 12.1

cu_seqlens = UNIT.exercise(
    "cu_seqlens",
    minutes=15,
    difficulty=1,
    hints=(
        "Three questions, one line each: where are the ones of the flattened mask, how many has each row, "
        "and where does each row end if they are laid end to end?",
        "flatten and nonzero; sum(-1); cumsum. A row begins where the one before it ends, and the first at "
        "0.",
        "torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32) puts the 0 in front; "
        "int(lengths.max()) is a Python int.",
    ),
)


@cu_seqlens.inputs
def _(draw):
    example = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    yield Case((example,), "the example", exact=True)
    yield Case((draw.mask(3, 6, side="right"),), "padding on the right", exact=True)
    yield Case((draw.mask(4, 7),), "padding on the left", exact=True)
    yield Case((draw.mask(3, 5).bool(),), "booleans", exact=True)
    yield Case((draw.mask(4, 5, empty_row=True),), "a row that is all padding", exact=True)
    short = torch.zeros(3, 6, dtype=torch.long)
    short[0, 2:4], short[2, 1:5:3] = 1, 1
    yield Case((short,), "no row is full, and padding stands in the middle", exact=True)
    yield Case((torch.ones(1, 1, dtype=torch.long),), "one token", exact=True)
    yield Case((torch.ones(2, 1, 3, 3, dtype=torch.bool),), refused="the mask has four axes")


@cu_seqlens.law("the boundaries are where the rows begin and end among the indices")
def _(answer, draw):
    mask = draw.mask(4, 9, side="right")
    indices, bounds, longest = answer(mask)
    for row in range(4):
        own = indices[int(bounds[row]) : int(bounds[row + 1])]
        assert torch.equal(own, 9 * row + torch.arange(int(mask[row].sum()))), (
            f"Row {row} has {int(mask[row].sum())} real tokens, and the boundaries cut out {own.tolist()}."
        )
    assert longest == 9, f"The first row has 9 tokens, and the longest is said to have {longest}."


def describe_mask(mask, real=None, lengths=None, integer=torch.int32):
    """The three results, of another mask or with other lengths."""
    if mask.ndim != 2:
        raise ValueError
    real = mask.bool() if real is None else real
    lengths = real.sum(-1) if lengths is None else lengths
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(integer)
    return places(real), bounds, int(lengths.max())


@cu_seqlens.mistake(
    "lengths",
    "You return the lengths of the rows. Boundaries are cumulative lengths, with a 0 in front.",
    "With lengths, a kernel reads the wrong sequences, and the tokens behind the last one stay 0.",
    "notebook 12, Break it",
)
def _(attention_mask):
    lengths = attention_mask.bool().sum(-1)
    return places(attention_mask), lengths.to(torch.int32), int(lengths.max())


@cu_seqlens.mistake(
    "lengths behind a 0",
    "You put a 0 in front of the lengths, and do not add them up.",
    "The shape is right. With two rows of 2 and 3 tokens, the second would be the tokens from 2 up to 3.",
    "notebook 12, Break it",
)
def _(attention_mask):
    indices, bounds, longest = describe_mask(attention_mask)
    return indices, torch.cat([bounds[:1], bounds.diff()]), longest


@cu_seqlens.mistake(
    "no 0 in front",
    "You return where the rows end, without the 0 where the first one begins.",
    "A batch of n rows has n + 1 boundaries; with n of them, the first row is lost.",
    "notebook 12, Cumulative lengths",
)
def _(attention_mask):
    indices, bounds, longest = describe_mask(attention_mask)
    return indices, bounds[1:], longest


@cu_seqlens.mistake(
    "int64",
    "Your boundaries are int64, which cumsum gives; kernels read int32.",
    "flash-attn refuses them. A kernel that does not look would read every second number as 0.",
    "notebook 12, Break it",
)
def _(attention_mask):
    return describe_mask(attention_mask, integer=torch.int64)


@cu_seqlens.mistake(
    "places in the row",
    "Your indices count within each row. They count in the whole batch: row i begins at i · length.",
    "All rows would be taken from the first one.",
    "notebook 12, First by hand",
)
def _(attention_mask):
    _, bounds, longest = describe_mask(attention_mask)
    return attention_mask.nonzero()[:, 1], bounds, longest


@cu_seqlens.mistake(
    "pairs",
    "You return the row and the column of each token. One number says both: row · length + column.",
    "torch.nonzero of a matrix gives pairs; of the flattened mask it gives what unpad can index with.",
    "notebook 12, First by hand",
)
def _(attention_mask):
    _, bounds, longest = describe_mask(attention_mask)
    return attention_mask.nonzero(), bounds, longest


@cu_seqlens.mistake(
    "longest with padding",
    "Your longest row is as long as the padded batch. It is the largest number of real tokens.",
    "A kernel plans its work by it. The results stay right, and the time is that of the padded batch.",
    "notebook 12, Time saved against fill",
)
def _(attention_mask):
    indices, bounds, _ = describe_mask(attention_mask)
    return indices, bounds, attention_mask.shape[1]


@cu_seqlens.mistake(
    "total for longest",
    "You return the number of all real tokens where that of the longest row belongs.",
    "A kernel that plans its work by it starts far too many blocks; the results stay right.",
    "notebook 12, Cumulative lengths",
)
def _(attention_mask):
    indices, bounds, _ = describe_mask(attention_mask)
    return indices, bounds, int(bounds[-1])


@cu_seqlens.mistake(
    "right padding assumed",
    "You take the first tokens of every row, as many as are real, wherever they stand.",
    "For generation, batches are padded on the left: you would compute padding and leave out the end of the "
    "text.",
    "notebook 02, Padding sides",
)
def _(attention_mask):
    lengths = attention_mask.bool().sum(-1, keepdim=True)
    return describe_mask(attention_mask, torch.arange(attention_mask.shape[1]) < lengths)


# --------------------------------------------------------------------------------------------------
# 12.2

unpad = UNIT.exercise(
    "unpad",
    minutes=5,
    difficulty=1,
    hints=(
        "indices count in the batch as one row of batch·length tokens. Give x that shape first.",
        "x.flatten(0, 1) makes one axis of the first two, and keeps all others.",
        "x.flatten(0, 1)[indices].",
    ),
)


@unpad.inputs
def _(draw):
    for side in ("left", "right"):
        mask = draw.mask(3, 5, side=side)
        yield Case((draw.normal(3, 5, 4), places(mask)), f"padding on the {side}", exact=True)
    mask = draw.mask(3, 4)
    heads = draw.normal(3, 4, 2, 3, dtype=torch.bfloat16)
    yield Case((heads, places(mask)), "heads, torch.bfloat16", exact=True)
    yield Case((draw.integers(0, 99, 3, 4), places(mask)), "ids", exact=True)
    mask = draw.mask(4, 3, empty_row=True)
    yield Case((draw.normal(4, 3, 2), places(mask)), "a row that is all padding", exact=True, gradient=True)
    yield Case((draw.normal(2, 3, 4), torch.arange(6)), "no padding", exact=True)
    yield Case((draw.normal(2, 3, 4), torch.arange(0)), "nothing but padding", exact=True)
    yield Case((draw.normal(5), torch.arange(2)), refused="x has one axis")


@unpad.law("token t of row i stands at i · length + t")
def _(answer, draw):
    x = torch.arange(20).view(4, 5)
    chosen = draw.integers(0, 2, 20).nonzero().flatten()
    found = answer(x, chosen)
    assert torch.equal(found, chosen), (
        f"The tokens numbered {chosen.tolist()} are wanted, and {found.tolist()} come."
    )


def two_axes(x):
    """Refuses what is no batch."""
    if x.ndim < 2:
        raise ValueError
    return x


@unpad.mistake(
    "columns first",
    "You count down the columns: your place 1 is the first token of row 1. indices count along the rows.",
    "Tokens of different texts are mixed. Transposing before or after flattening does this.",
    "notebook 01, Views and copies",
)
def _(x, indices):
    return two_axes(x).transpose(0, 1).flatten(0, 1)[indices]


@unpad.mistake(
    "the first places",
    "You take the first tokens of the flattened batch, as many as there are indices.",
    "It is right without padding, and else padding comes along and the end is lost.",
    "notebook 12, First by hand",
)
def _(x, indices):
    return two_axes(x).flatten(0, 1)[: len(indices)].clone()


@unpad.mistake(
    "rows taken",
    "You use the indices for the rows of the batch. They number the tokens of all rows, batch and length as "
    "one.",
    "Beyond the number of rows there is nothing to take: an IndexError, or whole rows where tokens belong.",
    "notebook 12, First by hand",
)
def _(x, indices):
    return two_axes(x)[indices]


@unpad.mistake(
    "features merged",
    "You put all axes behind the length into one; heads lose their axis.",
    "With hidden states nothing shows. With heads, attention gets one long vector per token.",
    "notebook 12, The real thing",
)
def _(x, indices):
    return two_axes(x).reshape(x.shape[0] * x.shape[1], -1)[indices]


@unpad.mistake(
    "zeros kept",
    "You set the padding to 0 and keep it. It is to be left out: [batch, length, …] becomes [total, …].",
    "Zeros take as much time to compute as tokens.",
    "notebook 12, Time saved against fill",
)
def _(x, indices):
    flat = torch.zeros_like(two_axes(x).flatten(0, 1))
    return flat.index_copy(0, indices, x.flatten(0, 1)[indices]).view(x.shape)


@unpad.mistake(
    "everything flattened",
    "You flatten x as a whole, so that an index picks one number and not the features of a token.",
    "It is right for ids, which have no features.",
    "notebook 12, First by hand",
)
def _(x, indices):
    return two_axes(x).flatten()[indices]


# --------------------------------------------------------------------------------------------------
# 12.3

pad = UNIT.exercise(
    "pad",
    minutes=10,
    difficulty=1,
    hints=(
        "Begin with zeros for every place of the batch, as one row of batch·length.",
        "x.new_zeros(…) has the dtype of x. Then write the tokens to their places.",
        "flat[indices] = x, and flat.view(batch, length, *x.shape[1:]).",
    ),
)


@pad.inputs
def _(draw):
    for side in ("left", "right"):
        indices = places(draw.mask(3, 5, side=side))
        yield Case((draw.normal(len(indices), 4), indices, 3, 5), f"padding on the {side}", exact=True)
    indices = places(draw.mask(3, 4))
    heads = draw.normal(len(indices), 2, 3, dtype=torch.bfloat16)
    yield Case((heads, indices, 3, 4), "heads, torch.bfloat16", exact=True)
    yield Case((draw.integers(1, 99, len(indices)), indices, 3, 4), "ids", exact=True)
    indices = places(draw.mask(4, 3, empty_row=True))
    yield Case((draw.normal(len(indices), 2), indices, 4, 3), "a row that is all padding",
               exact=True, gradient=True)  # fmt: skip
    yield Case((draw.normal(6, 4), torch.arange(6), 2, 3), "no padding", exact=True)
    yield Case((draw.normal(0, 4), torch.arange(0), 2, 3), "nothing but padding", exact=True)
    yield Case((draw.normal(4, 2), torch.arange(3), 2, 3), refused="4 tokens and 3 indices")


@pad.law("taking the same places out again gives the tokens, and all others are 0")
def _(answer, draw):
    mask = draw.mask(4, 6)
    indices = places(mask)
    x = draw.normal(len(indices), 3)
    found = answer(x, indices, 4, 6)
    assert torch.equal(found[mask.bool()], x), "The tokens are not at their places."
    assert not found[~mask.bool()].any(), "Something other than 0 stands where the padding was."


def put(x, indices, batch, length, dtype=None):
    """Tokens written to places of a batch."""
    flat = torch.zeros(batch * length, *x.shape[1:], dtype=dtype or x.dtype)
    return flat.index_copy(0, indices, x).unflatten(0, (batch, length))


@pad.mistake(
    "filled from the front",
    "You fill the batch from its beginning, one token after the other, and all zeros come at the end.",
    "Every row behind the first gap holds tokens of another text.",
    "notebook 12, First by hand",
)
def _(x, indices, batch, length):
    if len(x) != len(indices):
        raise ValueError
    return put(x, torch.arange(len(x)), batch, length)


@pad.mistake(
    "padding on the right",
    "You put every row's tokens at its beginning, wherever they stood.",
    "It is right for batches padded on the right. On the left, the last place of a row holds no last token.",
    "notebook 02, Padding sides",
)
def _(x, indices, batch, length):
    if len(x) != len(indices):
        raise ValueError
    rows = torch.zeros(batch * length, dtype=torch.bool).index_fill(0, indices, True).view(batch, length)
    return put(x, places(torch.arange(length) < rows.sum(-1, keepdim=True)), batch, length)


@pad.mistake(
    "columns first",
    "You read the row of batch·length places as columns: place 1 becomes the first token of row 1.",
    "Tokens of different texts are mixed. It comes from viewing as [length, batch] and transposing.",
    "notebook 01, Views and copies",
)
def _(x, indices, batch, length):
    if len(x) != len(indices):
        raise ValueError
    return put(x, indices, length, batch).transpose(0, 1).contiguous()


@pad.mistake(
    "zeros in fp32",
    "Your zeros are fp32, whatever x is: torch.zeros takes no dtype from x, and x.new_zeros does.",
    "A model in bf16 stops here, or goes on in fp32.",
    "notebook 12, The real thing",
)
def _(x, indices, batch, length):
    if len(x) != len(indices):
        raise ValueError
    flat = torch.zeros(batch * length, *x.shape[1:])
    flat[indices] = x
    return flat.view(batch, length, *x.shape[1:])


@pad.mistake(
    "result in fp32",
    "Your result is fp32, whatever x is: the values are right, and their dtype is not.",
    "The next matrix product meets two dtypes, or everything behind it takes twice the memory.",
    "notebook 12, The real thing",
)
def _(x, indices, batch, length):
    if len(x) != len(indices):
        raise ValueError
    return put(x.float(), indices, batch, length)


@pad.mistake(
    "not cut into rows",
    "You return the batch as one row of batch·length tokens.",
    "What comes next takes it for a batch of other sizes.",
    "notebook 12, First by hand",
)
def _(x, indices, batch, length):
    if len(x) != len(indices):
        raise ValueError
    return put(x, indices, batch, length).flatten(0, 1)


# --------------------------------------------------------------------------------------------------
# 12.4

varlen_attention = UNIT.exercise(
    "varlen_attention",
    minutes=30,
    difficulty=3,
    hints=(
        "Cut the queries at cu_seqlens_q and the keys at cu_seqlens_k, and attend piece by piece.",
        "x.split(cu_seqlens.diff().tolist()) cuts. Within a piece the heads come to the front: transpose(0, "
        "1).",
        "Query i of a piece sees keys up to i + keys - queries. Where a row is hidden as a whole the "
        "softmax gives NaN: weights.masked_fill(hidden, 0). Put the pieces end to end with torch.cat.",
    ),
)


@varlen_attention.inputs
def _(draw):
    def packed(queries, keys, heads=6, kv_heads=2, dtype=torch.float32):
        shapes = (sum(queries), heads, 5), (sum(keys), kv_heads, 5), (sum(keys), kv_heads, 5)
        return *(draw.normal(*s, dtype=dtype) for s in shapes), boundaries(*queries), boundaries(*keys)

    some = [draw.integer(1, 4) for _ in range(3)]
    yield Case((*packed((2, *some), (2, *some)), True), "causal, as many keys as queries")
    yield Case((*packed((3, 1, 2), (3, 1, 2)), False), "not causal", gradient=True)
    yield Case(
        (*packed((1, 1, 2), (3, 4, 5), dtype=torch.bfloat16), True),
        "new tokens, with a cache, torch.bfloat16",
    )
    yield Case((*packed((1, 2, 3), (4, 2, 6)), True), "causal, more keys than queries")
    yield Case((*packed((2, 3, 1), (5, 2, 4)), False), "not causal, other numbers of keys")
    yield Case((*packed((2, 0, 1, 3), (2, 3, 0, 3)), True), "a sequence without queries and one without keys")
    yield Case((*packed((1, 4), (3, 2)), True), "more queries than keys: two of them see nothing")
    yield Case((*packed((1,), (1,), heads=3, kv_heads=3), True), "one token")
    q, k, v, bounds, _ = packed((2, 3), (2, 3))
    yield Case((q, k, v, bounds.long(), bounds.long(), True), refused="cu_seqlens are int64")
    lengths = torch.tensor([2, 3], dtype=torch.int32)
    yield Case((q, k, v, lengths, lengths, True), refused="cu_seqlens are lengths")
    yield Case((q, k, v, bounds, boundaries(2, 0, 3), True), refused="2 sequences of queries and 3 of keys")


@varlen_attention.law("each sequence gives what it gives alone")
def _(answer, draw):
    x, bounds = draw.normal(9, 2, 4), boundaries(4, 3, 2)
    for causal in (True, False):
        packed = answer(x, x, x, bounds, bounds, causal)
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            one = x[start:stop]
            alone = answer(one, one, one, boundaries(len(one)), boundaries(len(one)), causal)
            assert (packed[start:stop] - alone).abs().max() < 1e-5, (
                f"The sequence of tokens {start} … {stop - 1} gives something else when it is packed with "
                "others."
            )


@varlen_attention.law("with causal, no token looks ahead")
def _(answer, draw):
    query, key, bounds = draw.normal(7, 2, 3), draw.normal(7, 2, 3), boundaries(3, 4)
    found = looks_ahead(
        lambda value: answer(query, key, value, bounds, bounds, True), draw.normal(7, 2, 3), axis=0
    )
    assert found is None, f"Token {found[0]} looks at token {found[1]}."


def varlen(
    query, key, value, bounds_q, bounds_k, causal, top_left=False, rescue=True, scale=True, group=None
):
    """Attention sequence by sequence with the places where people go wrong."""
    groups = query.shape[1] // key.shape[1]
    group = group or (lambda x: x.repeat_interleave(groups, dim=1))
    key, value = group(key), group(value)
    pieces = []
    for i in range(len(bounds_q) - 1):
        q = query[bounds_q[i] : bounds_q[i + 1]]
        k, v = (x[bounds_k[i] : bounds_k[i + 1]] for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", q, k).float() / (q.shape[-1] ** 0.5 if scale else 1.0)
        offset = 0 if top_left else len(k) - len(q)
        hidden = torch.arange(len(k)) > torch.arange(len(q))[:, None] + offset
        if causal:
            scores = scores.masked_fill(hidden, -torch.inf)
        weights = scores.softmax(-1)
        if causal and rescue:
            weights = weights.masked_fill(hidden, 0.0)
        pieces.append(torch.einsum("hqk,khd->qhd", weights.to(v.dtype), v))
    return torch.cat(pieces)


def block_diagonal(query, key, value, bounds_q, bounds_k, causal):
    """Attention with one mask for all: the same sequence, and one diagonal from the top left."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    sequence_q, sequence_k = count(bounds_q)[1], count(bounds_k)[1]
    hidden = sequence_q[:, None] != sequence_k
    if causal:
        hidden |= torch.arange(len(key)) > torch.arange(len(query))[:, None]
    scores = torch.einsum("qhd,khd->hqk", query, key).float() / query.shape[-1] ** 0.5
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0.0)
    return torch.einsum("hqk,khd->qhd", weights.to(value.dtype), value)


@varlen_attention.mistake(
    "no boundaries",
    "You do not use the boundaries: every query sees the keys of all sequences.",
    "Texts read each other. Generated text stays fluent, and answers draw on what another user wrote.",
    "notebook 12, Break it",
)
def _(query, key, value, cu_seqlens_q, cu_seqlens_k, causal):
    return varlen(query, key, value, boundaries(len(query)), boundaries(len(key)), causal)


@varlen_attention.mistake(
    "top-left",
    "Your queries are the first of their sequence's keys. They are the last: of 2 queries and 5 keys, the "
    "first sees 4.",
    "With a cache, a new token sees the first key alone. With as many keys as queries nothing shows.",
    "notebook 11, Both alignments",
)
def _(query, key, value, cu_seqlens_q, cu_seqlens_k, causal):
    return varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, causal, top_left=True)


@varlen_attention.mistake(
    "one diagonal for the packed row",
    "You keep the sequences apart, but make one causal mask for the whole packed row, from its top-left "
    "corner.",
    "Right while every sequence has as many keys as queries. With a cache, tokens lose keys of their own "
    "text.",
    "notebook 12, Break it",
)
def _(query, key, value, cu_seqlens_q, cu_seqlens_k, causal):
    return block_diagonal(query, key, value, cu_seqlens_q, cu_seqlens_k, causal)


@varlen_attention.mistake(
    "the queries' boundaries for the keys",
    "You cut the keys where the queries are cut. They have boundaries of their own, cu_seqlens_k.",
    "As long as nothing is cached both are the same; then a text reads the keys of others.",
    "notebook 12, Cumulative lengths",
)
def _(query, key, value, cu_seqlens_q, cu_seqlens_k, causal):
    return varlen(query, key, value, cu_seqlens_q, cu_seqlens_q, causal)


@varlen_attention.mistake(
    "last sequence left out",
    "You leave out the last sequence: n + 1 boundaries are those of n sequences.",
    "Its tokens stay 0, as with lengths in the place of cumulative lengths.",
    "notebook 12, Break it",
)
def _(query, key, value, cu_seqlens_q, cu_seqlens_k, causal):
    out = query * 0
    done = (
        varlen(query, key, value, cu_seqlens_q[:-1], cu_seqlens_k[:-1], causal)
        if len(cu_seqlens_q) > 2
        else ()
    )
    if len(done):
        out = torch.cat([done, out[len(done) :]])
    return out


@varlen_attention.mistake(
    "causal ignored",
    "You do not use causal: a query sees all keys of its sequence.",
    "The model sees the future while it is trained, and has none when it writes.",
    "notebook 09, Who may see whom",
)
def _(query, key, value, cu_seqlens_q, cu_seqlens_k, causal):
    return varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, False)


@varlen_attention.mistake(
    "nan for empty rows",
    "A query that sees no key gets NaN from you: the softmax of a row of -inf is 0/0.",
    "One such row makes NaN of every later layer, and of the gradients.",
    "notebook 09, Break it",
)
def _(query, key, value, cu_seqlens_q, cu_seqlens_k, causal):
    return varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, causal, rescue=False)


@varlen_attention.mistake(
    "no scale",
    "You do not divide the scores by the square root of head_dim.",
    "Scores grow with the width of a head, and the softmax picks one key instead of mixing.",
    "notebook 07, Break it",
)
def _(query, key, value, cu_seqlens_q, cu_seqlens_k, causal):
    return varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, causal, scale=False)


@varlen_attention.mistake(
    "tiled heads",
    "Query head h reads key head h % kv_heads: you let the groups lie apart instead of side by side.",
    "The text of a real model turns to noise, and with one key head nothing shows.",
    "notebook 08, Break it",
)
def _(query, key, value, cu_seqlens_q, cu_seqlens_k, causal):
    def tile(x):
        return x.repeat(1, query.shape[1] // x.shape[1], 1)

    return varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, causal, group=tile)


# --------------------------------------------------------------------------------------------------
# 12.5

packed_position_ids = UNIT.exercise(
    "packed_position_ids",
    minutes=10,
    difficulty=1,
    hints=(
        "Number the tokens of the whole row 0, 1, 2, …. What must be taken away from each?",
        "The place where its sequence begins: cu_seqlens[i], once for every token of sequence i.",
        "cu_seqlens[:-1].repeat_interleave(cu_seqlens.diff()) are these places; torch.arange minus them.",
    ),
)


@packed_position_ids.inputs
def _(draw):
    yield Case((boundaries(2, 0, 3),), "the example", exact=True)
    yield Case((boundaries(*(draw.integer(1, 6) for _ in range(4))),), "four sequences", exact=True)
    yield Case((boundaries(0, 0, 4, 1, 0),), "empty sequences at both ends", exact=True)
    yield Case((boundaries(5),), "one sequence", exact=True)
    yield Case((boundaries(1, 1, 1),), "sequences of one token", exact=True)
    yield Case((boundaries(0, 0),), "no token at all", exact=True)
    yield Case((torch.tensor([2, 3], dtype=torch.int32),), refused="cu_seqlens are lengths")


@packed_position_ids.law("a sequence of n tokens has the positions 0 … n - 1, whatever stands before it")
def _(answer, draw):
    length = draw.integer(2, 6)
    found = answer(boundaries(draw.integer(1, 5), draw.integer(1, 5), length))[-length:].tolist()
    assert found == list(range(length)), f"The last {length} tokens have the positions {found}."


@packed_position_ids.mistake(
    "never restarts",
    "You count through the whole row: the second sequence goes on where the first one ends.",
    "With RoPE only distances count, and nothing shows. With learned positions every text but the first is "
    "ruined.",
    "notebook 12, Break it",
)
def _(cu_seqlens):
    return count(cu_seqlens)[0]


@packed_position_ids.mistake(
    "counts from 1",
    "Your positions begin with 1.",
    "With learned positions every token gets the entry of its neighbour; with RoPE nothing shows.",
    "notebook 02, Positions from the mask",
)
def _(cu_seqlens):
    tokens, sequence = count(cu_seqlens)
    return tokens - cu_seqlens[sequence] + 1


@packed_position_ids.mistake(
    "boundary one late",
    "Your count begins anew one token late: the first token of a sequence still belongs to the one before.",
    "cu_seqlens[i] is the first token of sequence i, and not the last one before it.",
    "notebook 12, Cumulative lengths",
)
def _(cu_seqlens):
    tokens, _ = count(cu_seqlens)
    starts = cu_seqlens[:-1].long()
    before = (tokens[:, None] > starts).long()
    latest = torch.where(before.bool(), starts, 0).amax(-1) if len(tokens) else tokens
    return tokens - latest


@packed_position_ids.mistake(
    "sequence numbers",
    "You say which sequence each token belongs to, and not where it stands in it.",
    "Some kernels want such sequence ids as well. As positions they put a whole text on one place.",
    "notebook 12, Cumulative lengths",
)
def _(cu_seqlens):
    return count(cu_seqlens)[1]


@packed_position_ids.mistake(
    "where the sequence begins",
    "You return for each token the place where its sequence begins. It has to be taken from the token's own "
    "place.",
    "All tokens of a text get one position, and their order is lost.",
    "notebook 12, Cumulative lengths",
)
def _(cu_seqlens):
    return cu_seqlens[count(cu_seqlens)[1]].long()


@packed_position_ids.mistake(
    "cumulative lengths as lengths",
    "You count up to every boundary, as if cu_seqlens held lengths. A length is the difference of two of "
    "them.",
    "There are more positions than tokens, and the model stops at the shapes.",
    "notebook 12, Break it",
)
def _(cu_seqlens):
    count(cu_seqlens)
    return torch.cat([torch.arange(end) for end in cu_seqlens.tolist()])


@packed_position_ids.mistake(
    "int32",
    "Your positions are int32, as cu_seqlens is; they are to be int64.",
    "torch's embedding takes both. Some operations, such as gather, take int64 only.",
    "notebook 12, The real thing",
)
def _(cu_seqlens):
    tokens, sequence = count(cu_seqlens)
    return (tokens - cu_seqlens[sequence]).int()
