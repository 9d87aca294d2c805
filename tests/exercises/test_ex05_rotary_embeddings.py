"""What checks the exercises of notebook 05, and the wrong answers that people give."""

import torch

from minilm.course.spec import Case, Unit

UNIT = Unit(5, "rotary_embeddings")


def slower_and_slower(half, theta):
    """The frequencies of `half` pairs."""
    return theta ** -(torch.arange(half) / half)


def clocks(position_ids, rotary_dim, theta=100.0, dtype=torch.float32):
    """Cosine and sine for positions [batch, length]; the base is small, so that every pair turns visibly."""
    angles = position_ids[..., None] * slower_and_slower(rotary_dim // 2, theta)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


# --------------------------------------------------------------------------------------------------
# 5.1

inverse_frequencies = UNIT.exercise(
    "inverse_frequencies",
    minutes=10,
    difficulty=1,
    hints=(
        "Write down the exponents for rotary_dim = 6: there are three, and the first is 0.",
        "The exponents are 0, 2, 4, … (below rotary_dim), divided by rotary_dim. torch.arange takes a step.",
        "1.0 / theta ** (torch.arange(0, rotary_dim, 2) / rotary_dim), after refusing an odd rotary_dim.",
    ),
)


@inverse_frequencies.inputs
def _(draw):
    yield Case((4, 10_000.0), "the example")
    yield Case((2, 10_000.0), "a single pair")
    yield Case((16, 1_000_000.0), "Qwen2's theta")
    for index in range(3):
        rotary_dim, theta = 2 * draw.integer(3, 12), float(draw.integer(20, 3000))
        yield Case((rotary_dim, theta), f"random sizes {index + 1}")
    yield Case((7, 10_000.0), refused="rotary_dim is 7")


@inverse_frequencies.law("each pair is theta^(2 / rotary_dim) times slower than the one before")
def _(answer, draw):
    rotary_dim, theta = 2 * draw.integer(4, 16), 500_000.0
    found = answer(rotary_dim, theta)
    ratio = found[:-1] / found[1:]
    assert torch.allclose(ratio, torch.tensor(theta ** (2 / rotary_dim)), rtol=1e-4), (
        f"For rotary_dim {rotary_dim} and theta {theta:g}, it is {ratio[0]:.4g} "
        f"times for the first two pairs "
        f"and {ratio[-1]:.4g} times for the last two, expected {theta ** (2 / rotary_dim):.4g}."
    )


@inverse_frequencies.mistake(
    "exponent without its minus",
    "You raise theta to a positive power: the pairs turn faster and faster.",
    "Angles of thousands of radians between neighbours are noise; distant and near tokens look alike.",
    "notebook 05, Many clocks",
)
def _(rotary_dim, theta):
    if rotary_dim % 2:
        raise ValueError
    return theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)


@inverse_frequencies.mistake(
    "i for 2i",
    "Your exponents are i / rotary_dim and reach only 1/2: the factor 2 is missing.",
    "The slowest pair turns about √theta times too fast, so distant tokens get the angles of near ones.",
    "notebook 05, Many clocks",
)
def _(rotary_dim, theta):
    if rotary_dim % 2:
        raise ValueError
    return 1.0 / theta ** (torch.arange(rotary_dim // 2, dtype=torch.float32) / rotary_dim)


@inverse_frequencies.mistake(
    "counts from 1",
    "You count the pairs 1, 2, 3, …: the first one should be pair 0 and turn by 1 radian.",
    "Every pair is slower than the checkpoint was trained with. Papers that count from 1 write 2(i - 1).",
    "notebook 05, First by hand",
)
def _(rotary_dim, theta):
    if rotary_dim % 2:
        raise ValueError
    return 1.0 / theta ** (torch.arange(2, rotary_dim + 1, 2, dtype=torch.float32) / rotary_dim)


@inverse_frequencies.mistake(
    "down to 1/theta",
    "Your exponents run from 0 to 1 with both ends: the last one should stay one step below 1.",
    "All pairs but the first turn a little too slowly. The loss of tiny-qwen2 rises by less than a tenth of "
    "a nat: it is easily overlooked.",
    "notebook 05, First by hand",
)
def _(rotary_dim, theta):
    if rotary_dim % 2:
        raise ValueError
    return 1.0 / theta ** torch.linspace(0, 1, rotary_dim // 2)


@inverse_frequencies.mistake(
    "always 10000",
    "You do not use theta: your frequencies are those of 10000.",
    "The theta of tiny-qwen2 is 1000000: its first tokens hardly suffer, those after 200 lose half a nat.",
    "notebook 05, Four models",
)
def _(rotary_dim, theta):
    if rotary_dim % 2:
        raise ValueError
    return 1.0 / 10_000.0 ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)


@inverse_frequencies.mistake(
    "one per dimension",
    "You give every dimension a frequency of its own; the two dimensions of a pair share one.",
    "Two hands of one clock that turn at different speeds are no rotation: the length of a query changes.",
    "notebook 05, A 2-D rotation",
)
def _(rotary_dim, theta):
    if rotary_dim % 2:
        raise ValueError
    return 1.0 / theta ** (torch.arange(rotary_dim, dtype=torch.float32) / rotary_dim)


# --------------------------------------------------------------------------------------------------
# 5.2

cos_sin = UNIT.exercise(
    "cos_sin",
    minutes=10,
    difficulty=1,
    hints=(
        "Every position meets every frequency: which shapes broadcast to [batch, length, half_rotary]?",
        "position_ids[..., None] * inv_freq are the angles. Join them with themselves along the last axis.",
        "angles = position_ids[..., None].float() * inv_freq, then "
        "torch.cat((angles, angles), dim=-1); cos and "
        "sin of it, and .to(dtype) last.",
    ),
)


@cos_sin.inputs
def _(draw):
    frequencies = slower_and_slower(3, float(draw.integer(20, 2000)))
    yield Case((draw.integers(0, 40, 2, 5), frequencies, torch.float32), "fp32")
    yield Case(
        (draw.integers(0, 900, 1, 1), slower_and_slower(1, 10.0), torch.float32), "one token, one pair"
    )
    # Odd positions in a range where the half precisions hold even numbers only.
    for dtype, start in ((torch.bfloat16, 256), (torch.float16, 2048)):
        positions = start + 1 + 2 * draw.integers(0, 60, 2, 4)
        yield Case((positions, slower_and_slower(4, 50.0), dtype), f"positions beyond {start}, {dtype}")


@cos_sin.law("cos² + sin² = 1, and position 0 has the angle 0")
def _(answer, draw):
    cos, sin = answer(draw.integers(0, 30, 2, 4), slower_and_slower(3, 90.0), torch.float32)
    assert torch.allclose(cos**2 + sin**2, torch.ones(2, 4, 6), atol=1e-5), "cos² + sin² is not 1."
    cos, sin = answer(torch.zeros(1, 1, dtype=torch.long), slower_and_slower(3, 90.0), torch.float32)
    assert (cos == 1).all() and (sin == 0).all(), "At position 0, cos should be 1 and sin 0."


def angles_of(position_ids, inv_freq):
    """All angles, once for each half."""
    angles = position_ids[..., None].float() * inv_freq
    return torch.cat((angles, angles), dim=-1)


@cos_sin.mistake(
    "angles for neighbours",
    "You repeat each angle in place (a, a, b, b); here the list of angles stands twice (a, b, a, b).",
    "That order belongs to pairs of neighbours. With pairs in halves, partners turn by different angles.",
    "notebook 05, Halves and pairs",
)
def _(position_ids, inv_freq, dtype):
    angles = (position_ids[..., None].float() * inv_freq).repeat_interleave(2, dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


@cos_sin.mistake(
    "half as wide",
    "You return each angle once; both dimensions of a pair need it.",
    (
        "The product with a head has no matching shapes, or it turns half of the "
        "head as if it were partial rotary."
    ),
    "notebook 05, Halves and pairs",
)
def _(position_ids, inv_freq, dtype):
    angles = position_ids[..., None].float() * inv_freq
    return angles.cos().to(dtype), angles.sin().to(dtype)


@cos_sin.mistake(
    "positions in half precision",
    "You cast the positions to dtype before you multiply: in bf16, 257 becomes 256.",
    "Neighbours share a position. Nothing shows in fp32, nor within the first 256 tokens.",
    "notebook 05, Break it",
)
def _(position_ids, inv_freq, dtype):
    angles = angles_of(position_ids.to(dtype), inv_freq)
    return angles.cos().to(dtype), angles.sin().to(dtype)


@cos_sin.mistake(
    "angles in half precision",
    "You cast the angles to dtype and take cos and sin then: a bf16 angle of 300 is off by up to 1 radian.",
    "The larger the position, the more noise. Nothing shows in fp32, nor in the first tokens.",
    "notebook 05, Break it",
)
def _(position_ids, inv_freq, dtype):
    angles = angles_of(position_ids, inv_freq).to(dtype)
    return angles.cos(), angles.sin()


@cos_sin.mistake(
    "frequencies in half precision",
    "You cast inv_freq to dtype; the positions multiply its rounding error.",
    "It happens unseen where inv_freq is a buffer of a model that is cast as a whole. Nothing shows in fp32.",
    "notebook 05, Break it",
)
def _(position_ids, inv_freq, dtype):
    angles = angles_of(position_ids, inv_freq.to(dtype))
    return angles.cos().to(dtype), angles.sin().to(dtype)


@cos_sin.mistake(
    "counts from 0",
    "You count 0, 1, 2, … along the row instead of reading position_ids.",
    "One row from its beginning is right; with padding on the left, and at every decoded token, it is wrong.",
    "notebook 02, Positions from the mask",
)
def _(position_ids, inv_freq, dtype):
    angles = angles_of(torch.arange(position_ids.shape[1]).expand_as(position_ids), inv_freq)
    return angles.cos().to(dtype), angles.sin().to(dtype)


@cos_sin.mistake(
    "sin, cos",
    "You return sin first and cos second.",
    "Every pair turns by 90° - φ instead of φ: backwards, so a trained model takes the past for the future.",
    "notebook 05, First by hand",
)
def _(position_ids, inv_freq, dtype):
    angles = angles_of(position_ids, inv_freq)
    return angles.sin().to(dtype), angles.cos().to(dtype)


# --------------------------------------------------------------------------------------------------
# 5.3

rotate_half = UNIT.exercise(
    "rotate_half",
    minutes=5,
    difficulty=1,
    hints=(
        "Draw the arrow (a, b) and turn it by 90° to the left. What are its new coordinates?",
        "Cut the last axis into two halves: the first members of all pairs, and the second members.",
        "first, second = x.chunk(2, dim=-1); the result is -second and first, side by side.",
    ),
)


@rotate_half.inputs
def _(draw):
    yield Case((torch.tensor([1.0, 2.0, 3.0, 4.0]),), "the example", exact=True)
    for dtype in (torch.float32, torch.bfloat16):
        yield Case((draw.normal(2, 4, 3, 6, dtype=dtype),), f"3 pairs, {dtype}", exact=True)
    yield Case((draw.normal(2, 2),), "one pair", exact=True)
    yield Case((draw.normal(4, 10),), "5 pairs", gradient=True)
    yield Case((draw.normal(2, 5),), refused="5 dimensions do not make pairs")


@rotate_half.law("two quarter turns make half a turn")
def _(answer, draw):
    x = draw.normal(3, 6)
    assert torch.equal(answer(answer(x)), -x), "Applied twice, every sign should be reversed."


@rotate_half.law("x and x turned by 90° are at right angles")
def _(answer, draw):
    x = draw.normal(3, 6)
    assert (answer(x) * x).sum(-1).abs().max() < 1e-5, "Their product should be 0."


def quarter_turn(x, first_sign=-1, second_sign=1):
    """Halves exchanged, with a sign for each."""
    if x.shape[-1] % 2:
        raise ValueError
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first_sign * second, second_sign * first), dim=-1)


@rotate_half.mistake(
    "no minus",
    "You exchange the halves and leave out the minus: that mirrors a pair, and does not turn it.",
    "The products of queries and keys no longer depend on the distance of two tokens alone.",
    "notebook 05, A 2-D rotation",
)
def _(x):
    return quarter_turn(x, first_sign=1)


@rotate_half.mistake(
    "the other way round",
    "Your minus stands before the wrong half: you turn by -90°.",
    "It is a rotation, so lengths and distances look right. Only trained weights reveal it: the loss of "
    "tiny-qwen2 rises by more than half a nat.",
    "notebook 05, A 2-D rotation",
)
def _(x):
    return quarter_turn(x, first_sign=1, second_sign=-1)


@rotate_half.mistake(
    "pairs of neighbours",
    "You pair neighbours, (x_0, x_1), (x_2, x_3), …; here x_i is paired with x_{i + half}.",
    "A checkpoint begins its text well and goes on with garbage. With a single pair both are the same.",
    "notebook 05, Break it",
)
def _(x):
    if x.shape[-1] % 2:
        raise ValueError
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


@rotate_half.mistake(
    "first axis",
    "You exchange the halves of the first axis: chunk and cat need dim=-1.",
    "One vector comes out right. In a batch, each row is mixed with another one.",
    "notebook 01, Shapes",
)
def _(x):
    if x.shape[-1] % 2:
        raise ValueError
    first, second = x.chunk(2)
    return torch.cat((-second, first))


@rotate_half.mistake(
    "halves in place",
    "You put the minus in and leave the halves where they are.",
    "Each dimension is scaled by itself and never meets its partner: again no rotation.",
    "notebook 05, First by hand",
)
def _(x):
    if x.shape[-1] % 2:
        raise ValueError
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-first, second), dim=-1)


# --------------------------------------------------------------------------------------------------
# 5.4

apply_rope = UNIT.exercise(
    "apply_rope",
    minutes=20,
    difficulty=2,
    hints=(
        "Multiply out what one pair becomes, and find rotate_half in it. Then: which axis does cos not have?",
        "x * cos + rotate_half(x) * sin, with cos and sin as [batch, 1, length, "
        "rotary], once for the query and "
        "once for the key.",
        "Partial: cut x[..., :cos.shape[-1]], turn only that piece, and join the rest to it unchanged.",
    ),
)


def turned_in_part(answer, query, key):
    """Here only queries and keys need gradients: who reads one half of cos leaves none in the other."""
    return answer(query, key, *clocks(torch.arange(7, 11)[None], 4))


@apply_rope.inputs
def _(draw):
    positions = draw.integers(0, 30, 2, 5)
    for dtype in (torch.float32, torch.bfloat16):
        query, key = draw.normal(2, 4, 5, 6, dtype=dtype), draw.normal(2, 2, 5, 6, dtype=dtype)
        yield Case((query, key, *clocks(positions, 6, dtype=dtype)), f"whole heads, {dtype}")
        query, key = draw.normal(2, 4, 5, 11, dtype=dtype), draw.normal(2, 2, 5, 11, dtype=dtype)
        yield Case((query, key, *clocks(positions, 6, dtype=dtype)), f"6 of 11 dimensions, {dtype}")
    one_row = torch.arange(7, 11)[None]
    batch = draw.normal(3, 2, 4, 8), draw.normal(3, 1, 4, 8)
    yield Case((*batch, *clocks(one_row, 8)), "the same positions in every row")
    yield Case(batch, "4 of 8 dimensions", turned_in_part, gradient=True)
    # As many rows as heads: cos without an axis for the heads would fit, and belong to the wrong axis.
    square = draw.normal(3, 3, 4, 6), draw.normal(3, 3, 4, 6)
    yield Case((*square, *clocks(draw.integers(1, 30, 3, 4), 6)), "as many rows as heads")
    token = draw.normal(1, 3, 1, 6), draw.normal(1, 1, 1, 6)
    yield Case((*token, *clocks(torch.tensor([[37]]), 6)), "one token at position 37")
    narrow = draw.normal(1, 2, 4, 4), draw.normal(1, 2, 4, 4)
    yield Case((*narrow, *clocks(one_row, 6)), refused="cos has 6 dimensions, and a head has 4")


@apply_rope.law("turning keeps the length of every query and key")
def _(answer, draw):
    query, key = draw.normal(2, 4, 5, 10), draw.normal(2, 2, 5, 10)
    for before, after in zip(
        (query, key), answer(query, key, *clocks(draw.integers(0, 50, 2, 5), 6)), strict=True
    ):
        assert torch.allclose(before.norm(dim=-1), after.norm(dim=-1), atol=1e-4), "A length has changed."


@apply_rope.law("a score depends on the distance of two tokens alone")
def _(answer, draw):
    query, key = draw.normal(1, 1, 4, 6), draw.normal(1, 1, 4, 6)
    positions, shift = draw.integers(0, 20, 1, 4), draw.integer(3, 30)
    here, there = (
        turned_query @ turned_key.transpose(-1, -2)
        for turned_query, turned_key in (
            answer(query, key, *clocks(positions, 6)),
            answer(query, key, *clocks(positions + shift, 6)),
        )
    )
    assert torch.allclose(here, there, atol=1e-3), (
        f"With every token {shift} positions later, scores change by up to {(here - there).abs().max():.2g}."
    )


@apply_rope.law("at position 0 nothing turns")
def _(answer, draw):
    query, key = draw.normal(2, 4, 1, 8), draw.normal(2, 2, 1, 8)
    turned = answer(query, key, *clocks(torch.zeros(2, 1, dtype=torch.long), 8))
    assert torch.equal(turned[0], query) and torch.equal(turned[1], key), "A query or key has changed."


def turn_both(query, key, cos, sin, quarter=quarter_turn, sign=1, axis=1):
    """RoPE with the places where people go wrong."""
    width = cos.shape[-1]
    if width > query.shape[-1]:
        raise ValueError
    if axis is not None:
        cos, sin = cos.unsqueeze(axis), sin.unsqueeze(axis)

    def turn(x):
        turning = x[..., :width]
        return torch.cat((turning * cos + sign * quarter(turning) * sin, x[..., width:]), dim=-1)

    return turn(query), turn(key)


def quarter_turn_of_neighbours(x):
    """Every pair (x_0, x_1), (x_2, x_3), … turned by 90°."""
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


@apply_rope.mistake(
    "pairs of neighbours",
    "You turn the pairs (x_0, x_1), (x_2, x_3), … instead of (x_i, x_{i + half}).",
    "It keeps every law of RoPE, and it is another model: the first 8 tokens of tiny-qwen2 hardly suffer, "
    "those after 200 lose almost a nat each.",
    "notebook 05, Break it",
)
def _(query, key, cos, sin):
    half = cos.shape[-1] // 2
    cos, sin = (each[..., :half].repeat_interleave(2, dim=-1) for each in (cos, sin))
    return turn_both(query, key, cos, sin, quarter=quarter_turn_of_neighbours)


@apply_rope.mistake(
    "two layouts mixed",
    "You pair neighbours, and their cos and sin are those of halves: two partners turn by different angles.",
    "That is no rotation. The lengths of queries change with the position, and so do all scores.",
    "notebook 05, Halves and pairs",
)
def _(query, key, cos, sin):
    return turn_both(query, key, cos, sin, quarter=quarter_turn_of_neighbours)


@apply_rope.mistake(
    "no minus",
    "Your pairs become (a cos φ + b sin φ, b cos φ + a sin φ): the minus is missing.",
    "That is no rotation, and the products of queries and keys no longer depend on the distance alone.",
    "notebook 05, A 2-D rotation",
)
def _(query, key, cos, sin):
    return turn_both(query, key, cos, sin, quarter=lambda x: quarter_turn(x, first_sign=1))


@apply_rope.mistake(
    "the other way round",
    "You turn by -φ: x * cos - rotate_half(x) * sin.",
    "Every law of RoPE holds, so nothing shows in a fresh model. A trained one takes the past for the "
    "future: the loss of tiny-qwen2 rises by more than half a nat.",
    "notebook 05, Relative by construction",
)
def _(query, key, cos, sin):
    return turn_both(query, key, cos, sin, sign=-1)


@apply_rope.mistake(
    "key left as it was",
    "You turn the query and not the key.",
    "The score then depends on the query's position, and not on the distance between the two.",
    "notebook 05, Relative by construction",
)
def _(query, key, cos, sin):
    return turn_both(query, key, cos, sin)[0], key.clone()


@apply_rope.mistake(
    "no axis for the heads",
    "You multiply by cos and sin as they come: their batch axis meets the axis of the heads.",
    "With one row it is right. With as many rows as heads, each head takes the positions of another row.",
    "notebook 01, Broadcasting",
)
def _(query, key, cos, sin):
    return turn_both(query, key, cos, sin, axis=None)


@apply_rope.mistake(
    "whole heads only",
    "You multiply whole heads by cos, and their shapes do not match where cos is narrower (partial rotary).",
    "GPT-NeoX turns a quarter of each head. Qwen2 and Gemma turn whole heads, so nothing shows there.",
    "notebook 05, Partial rotary",
)
def _(query, key, cos, sin):
    cos, sin = cos[:, None], sin[:, None]
    return tuple(x * cos + quarter_turn(x) * sin for x in (query, key))


@apply_rope.mistake(
    "the rest dropped",
    "Where cos is narrower than a head, you return the dimensions that turn and drop the others.",
    "Queries still fit the keys, so nothing complains, and the loss of tiny-gpt-neox hardly moves.",
    "notebook 05, Partial rotary",
)
def _(query, key, cos, sin):
    width = cos.shape[-1]
    return turn_both(query[..., :width], key[..., :width], cos, sin)


@apply_rope.mistake(
    "partners across the whole head",
    "Where cos is narrower than a head, you pair i with i + head_dim / 2 instead of i + rotary / 2.",
    "Partners are taken from the dimensions that should stay as they are. Whole heads look right.",
    "notebook 05, Partial rotary",
)
def _(query, key, cos, sin):
    width = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]

    def turn(x):
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        partners = torch.cat((-second, first), dim=-1)[..., :width]
        return torch.cat((x[..., :width] * cos + partners * sin, x[..., width:]), dim=-1)

    return turn(query), turn(key)


# --------------------------------------------------------------------------------------------------
# 5.5

pairs_to_halves = UNIT.exercise(
    "pairs_to_halves",
    minutes=15,
    difficulty=3,
    hints=(
        "Number the rows of one head 0 … 5 and write down the order that you want.",
        "Give the rows three axes, [heads, pairs, 2]. Which two have to change places?",
        "weight.view(num_heads, -1, 2, hidden).transpose(1, "
        "2).reshape(weight.shape), after refusing rows that "
        "do not make whole pairs.",
    ),
)


@pairs_to_halves.inputs
def _(draw):
    # No head of 4 dimensions: there, both directions are the same reordering.
    for dtype in (torch.float32, torch.bfloat16):
        yield Case((draw.normal(18, 12, dtype=dtype), 3), f"3 heads of 6, {dtype}", exact=True)
    yield Case((draw.normal(10, 6), 1), "one head of 10", exact=True)
    yield Case((draw.normal(8, 16), 4), "heads of one pair", exact=True)
    yield Case((draw.normal(24, 24), 2), "as many rows as columns", exact=True)
    yield Case((draw.normal(9, 4), 3), refused="heads of 3 rows have no whole pairs")
    yield Case((draw.normal(10, 4), 4), refused="10 rows do not make 4 heads")


@pairs_to_halves.law("RoPE in halves on the result gives the scores of RoPE in neighbours on the original")
def _(answer, draw):
    heads, head_dim, length = 2, 6, 4
    x = draw.normal(length, 5)
    cos, sin = (each[0] for each in clocks(draw.integers(0, 20, 1, length), head_dim))
    weights = draw.normal(heads * head_dim, 5), draw.normal(heads * head_dim, 5)

    def scores(query_weight, key_weight, order, quarter):
        def project(weight):
            y = (x @ weight.mT).view(length, heads, head_dim).transpose(0, 1)
            return y * cos[:, order] + quarter(y) * sin[:, order]

        return project(query_weight) @ project(key_weight).transpose(-1, -2)

    neighbours = scores(*weights, [0, 0, 1, 1, 2, 2], quarter_turn_of_neighbours)
    halves = scores(*(answer(weight, heads) for weight in weights), [0, 1, 2, 0, 1, 2], quarter_turn)
    apart = (neighbours - halves).abs().max()
    assert apart < 1e-3, f"They differ by up to {apart:.2g}."


@pairs_to_halves.mistake(
    "the other direction",
    "You turn halves into pairs: the inverse of what is asked for.",
    "With a head_dim of 4 both are the same reordering, and with 64 the text is garbage.",
    "notebook 05, Halves and pairs",
)
def _(weight, num_heads):
    if weight.shape[0] % (2 * num_heads):
        raise ValueError
    return weight.view(num_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pairs_to_halves.mistake(
    "across heads",
    "You reorder all rows as if they were one head: the first members of all heads come to the front.",
    "Each head becomes a mixture of others. With one head nothing shows.",
    "notebook 05, Halves and pairs",
)
def _(weight, num_heads):
    if weight.shape[0] % (2 * num_heads):
        raise ValueError
    return torch.cat((weight[0::2], weight[1::2]))


@pairs_to_halves.mistake(
    "columns",
    "You reorder the columns: those say where a number comes from, and the rows where it goes.",
    "The shape is right, and the projection reads the wrong parts of the hidden state.",
    "notebook 05, Halves and pairs",
)
def _(weight, num_heads):
    if weight.shape[0] % (2 * num_heads):
        raise ValueError
    return weight.view(weight.shape[0], num_heads, -1, 2).transpose(-1, -2).reshape(weight.shape)


@pairs_to_halves.mistake(
    "heads exchanged with pairs",
    "You count the rows as pairs of heads: in your reshape the axis of the heads is not the first one.",
    "The rows of a head lie together, head after head; your halves are made of rows of several heads.",
    "notebook 01, Views and copies",
)
def _(weight, num_heads):
    if weight.shape[0] % (2 * num_heads):
        raise ValueError
    return weight.view(-1, 2, num_heads, weight.shape[1]).permute(2, 1, 0, 3).reshape(weight.shape)


@pairs_to_halves.mistake(
    "nothing reordered",
    "You return the rows in the order in which they came.",
    "The checkpoint loads without an error, begins its text well and goes on with garbage.",
    "notebook 05, Break it",
)
def _(weight, num_heads):
    if weight.shape[0] % (2 * num_heads):
        raise ValueError
    return weight.clone()
