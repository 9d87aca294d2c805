"""What checks the exercises of notebook 19, and the wrong answers that people give."""

from minilm.config import ModelConfig
from minilm.course.spec import Case, Unit

UNIT = Unit(19, "speed_lab")

SMALL = ModelConfig(
    vocab_size=10, hidden_size=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2, intermediate_size=8,
    max_positions=64,
)  # fmt: skip
QWEN2_HALF = ModelConfig(
    vocab_size=151_936, hidden_size=896, num_layers=24, num_heads=14, num_kv_heads=2, head_dim=64,
    intermediate_size=4864, max_positions=32_768, tie_embeddings=True,
)  # fmt: skip


def structure(draw, **changes):
    """A model with sizes that all differ, and whose heads together are not as wide as its residual stream."""
    kv_heads, head_dim = draw.integer(2, 4), 2 * draw.integer(3, 6)
    heads = kv_heads * draw.integer(2, 4)
    sizes = dict(
        vocab_size=draw.integer(70, 99), hidden_size=heads * head_dim + 2 * draw.integer(1, 9),
        num_layers=draw.integer(3, 6), num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim,
        intermediate_size=draw.integer(100, 200), max_positions=512,
    )  # fmt: skip
    return ModelConfig(**sizes | changes)


def structures(draw):
    """Models of every kind that the two counts have to tell apart, with a length for each."""
    yield SMALL, 5, "the example"
    yield QWEN2_HALF, 1000, "the sizes of Qwen2-0.5B"
    yield structure(draw), draw.integer(20, 60), "a gated MLP and a head of its own"
    yield structure(draw, tie_embeddings=True), draw.integer(20, 60), "a tied head"
    yield structure(draw, mlp="plain"), draw.integer(20, 60), "a plain MLP"
    windows = (None, draw.integer(4, 9), draw.integer(10, 15), 500)
    yield (
        structure(draw, num_layers=4, layer_windows=windows),
        draw.integer(20, 60),
        "windows in three layers",
    )
    yield structure(draw), 1, "one token"


def weights(config, *, layers=None, mlp=None, head=True, table=False, heads=None, kv_heads=None, width=None):
    """The weights of all matrices, with the places where people go wrong. Arguments replace what is right."""
    heads, kv_heads = heads or config.num_heads, kv_heads or config.num_kv_heads
    width = width or config.head_dim
    attention = config.hidden_size * width * (2 * heads + 2 * kv_heads)
    mlp = mlp or (3 if config.mlp == "gated" else 2)
    blocks = (layers or config.num_layers) * (attention + mlp * config.hidden_size * config.intermediate_size)
    return blocks + (head + table) * config.vocab_size * config.hidden_size


# --------------------------------------------------------------------------------------------------
# 19.1

decode_bytes_per_token = UNIT.exercise(
    "decode_bytes_per_token",
    minutes=20,
    difficulty=2,
    hints=(
        (
            "Count values first and multiply by bytes_per_value last. Which "
            "matrices does one token pass through?"
        ),
        "A block: hidden × (query width + 2 key widths), query width × hidden, and the MLP. Then the head.",
        (
            "Per layer, the cache is 2 · num_kv_heads · head_dim · min(length, "
            "window); weights do not know length."
        ),
    ),
)


@decode_bytes_per_token.inputs
def _(draw):
    for config, length, label in structures(draw):
        yield Case((config, length, 2 if config in (SMALL, QWEN2_HALF) else draw.integer(1, 4)), label)
    yield Case((structure(draw), 0, 2), refused="length is 0")


@decode_bytes_per_token.law("each token more in the text costs a key and a value per layer and key head")
def _(answer, draw):
    config = structure(draw)
    more = answer(config, 31, 2) - answer(config, 30, 2)
    right = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
    assert more == right, f"From 30 to 31 tokens there are {more} bytes more, and it should be {right}."


def cache(config, length, *, kv_heads=None, windowed=True, pair=2):
    """The values that a token reads from the cache, with the places where people go wrong."""
    windows = [config.window(layer) if windowed else None for layer in range(config.num_layers)]
    visible = sum(min(length, window or length) for window in windows)
    return pair * visible * (kv_heads or config.num_kv_heads) * config.head_dim


@decode_bytes_per_token.mistake(
    "no cache",
    "You count the weights and forget the keys and values.",
    "With short texts the difference is small. In a batch with long ones the cache is most of what is read.",
    "notebook 19, FLOPs and bytes",
)
def _(config, length, bytes_per_value):
    return weights(config) * bytes_per_value


@decode_bytes_per_token.mistake(
    "query heads in the cache",
    "You count keys and values for every query head; only key heads have them.",
    "What grouped queries save is not seen, and long texts look several times as dear as they are.",
    "notebook 08, First by hand",
)
def _(config, length, bytes_per_value):
    return (weights(config) + cache(config, length, kv_heads=config.num_heads)) * bytes_per_value


@decode_bytes_per_token.mistake(
    "all heads alike",
    "You give every query head a key head of its own, in the matrices and in the cache.",
    "That is multi-head attention. With grouped queries the key and value matrices are narrower.",
    "notebook 08, First by hand",
)
def _(config, length, bytes_per_value):
    heads = config.num_heads
    return (weights(config, kv_heads=heads) + cache(config, length, kv_heads=heads)) * bytes_per_value


@decode_bytes_per_token.mistake(
    "keys only",
    "You count the cached keys and forget the values.",
    "Half of the cache is missing, and nothing shows while the text is short.",
    "notebook 08, First by hand",
)
def _(config, length, bytes_per_value):
    return (weights(config) + cache(config, length, pair=1)) * bytes_per_value


@decode_bytes_per_token.mistake(
    "window ignored",
    "You let every layer read the whole cache, and some of them have a window.",
    "A model with windows looks as slow on long texts as one without.",
    "notebook 09, Who may see whom",
)
def _(config, length, bytes_per_value):
    return (weights(config) + cache(config, length, windowed=False)) * bytes_per_value


@decode_bytes_per_token.mistake(
    "weights for each token",
    "You count the weights once for every token of the text.",
    "Without a cache it would be so. With one, only the new token passes through the matrices.",
    "notebook 10, Cost with and without",
)
def _(config, length, bytes_per_value):
    return (weights(config) * length + cache(config, length)) * bytes_per_value


@decode_bytes_per_token.mistake(
    "tied head forgotten",
    "You leave the head out where it is tied: it has no weights of its own, but the table is read for it.",
    "In Qwen2-0.5B the table has 136 million of the 494 million weights.",
    "notebook 02, Tied tables",
)
def _(config, length, bytes_per_value):
    return (weights(config, head=not config.tie_embeddings) + cache(config, length)) * bytes_per_value


@decode_bytes_per_token.mistake(
    "head forgotten",
    "You count the blocks and forget the output head.",
    "In a small model with a large vocabulary the head is a good part of the time.",
    "notebook 19, FLOPs and bytes",
)
def _(config, length, bytes_per_value):
    return (weights(config, head=False) + cache(config, length)) * bytes_per_value


@decode_bytes_per_token.mistake(
    "table read whole",
    "You count the embedding table beside a head of its own: of the table one token reads one row.",
    "The number of parameters is not the number of bytes that a token costs.",
    "notebook 19, FLOPs and bytes",
)
def _(config, length, bytes_per_value):
    return (weights(config, table=not config.tie_embeddings) + cache(config, length)) * bytes_per_value


@decode_bytes_per_token.mistake(
    "one token too many",
    "You add the new token's own key and value to the cache, and length counts them already.",
    "A difference of one token is small; off by one at the end of a window or of a cache is not.",
    "notebook 10, First by hand",
)
def _(config, length, bytes_per_value):
    return (weights(config) + cache(config, length + 1)) * bytes_per_value


@decode_bytes_per_token.mistake(
    "always a gated MLP",
    "You count three matrices for the MLP, and a plain one has two.",
    "For a model of the GPT kind the prediction is too slow.",
    "notebook 04, First by hand",
)
def _(config, length, bytes_per_value):
    return (weights(config, mlp=3) + cache(config, length)) * bytes_per_value


@decode_bytes_per_token.mistake(
    "never a gated MLP",
    "You count two matrices for the MLP, and a gated one has three.",
    "For most of today's models a third of the largest part is missing.",
    "notebook 04, First by hand",
)
def _(config, length, bytes_per_value):
    return (weights(config, mlp=2) + cache(config, length)) * bytes_per_value


@decode_bytes_per_token.mistake(
    "hidden size for the heads",
    "You take hidden_size for the width of all query heads; config has its own head_dim.",
    "For most models the two are equal. Gemma and many newer ones break it.",
    "notebook 07, First by hand",
)
def _(config, length, bytes_per_value):
    square = 2 * config.num_layers * config.hidden_size * config.hidden_size
    mine = 2 * config.num_layers * config.hidden_size * config.num_heads * config.head_dim
    return (weights(config) + square - mine + cache(config, length)) * bytes_per_value


# --------------------------------------------------------------------------------------------------
# 19.2

forward_flops = UNIT.exercise(
    "forward_flops",
    minutes=20,
    difficulty=2,
    hints=(
        "Two parts: the matrices, which every token passes once, and attention, where pairs of tokens meet.",
        (
            "A matrix of n weights takes 2·n operations per token. How many pairs "
            "are there in a causal text of 5?"
        ),
        (
            "2 · weights · length + 4 · num_heads · head_dim · the sum of "
            "min(place, window) over places and layers."
        ),
    ),
)


@forward_flops.inputs
def _(draw):
    for config, length, label in structures(draw):
        yield Case((config, length), label)
    yield Case((structure(draw), 0), refused="length is 0")


@forward_flops.law("the second token costs the weights as the first did, and one more pair")
def _(answer, draw):
    config = structure(draw)
    first, second = answer(config, 1), answer(config, 2) - answer(config, 1)
    pair = 4 * config.num_layers * config.num_heads * config.head_dim
    assert second - first == pair, f"It costs {second - first} more than the first, and it should be {pair}."


def pairs(config, length, *, windowed=True, causal=True):
    """How many pairs of tokens meet in all layers together, with the places where people go wrong."""
    total = 0
    for layer in range(config.num_layers):
        window = (config.window(layer) if windowed else None) or length
        places = range(1, length + 1) if causal else [length] * length
        total += sum(min(place, window) for place in places)
    return total


def flops(config, length, *, per_weight=2, per_pair=4, heads=None, matrices=None, met=None):
    """The count, with the places where people go wrong."""
    met = pairs(config, length) if met is None else met
    matrices = weights(config) if matrices is None else matrices
    attention = per_pair * (heads or config.num_heads) * config.head_dim * met
    return per_weight * matrices * length + attention


@forward_flops.mistake(
    "additions forgotten",
    "You count a multiplication and an addition as one operation.",
    "Data sheets count them as two. Compared with those, a program would seem half as good as it is.",
    "notebook 19, FLOPs and bytes",
)
def _(config, length):
    return flops(config, length, per_weight=1, per_pair=2)


@forward_flops.mistake(
    "whole square",
    "You count all pairs of tokens, also those of which the second comes later and is hidden.",
    "It is what a program does that masks after computing: twice the work in attention.",
    "notebook 11, First by hand",
)
def _(config, length):
    return flops(config, length, met=pairs(config, length, causal=False))


@forward_flops.mistake(
    "not itself",
    "You let a token see those before it, and not itself.",
    "The first token would have nothing to look at, and its softmax would be 0/0.",
    "notebook 09, Who may see whom",
)
def _(config, length):
    windows = [config.window(layer) or length for layer in range(config.num_layers)]
    return flops(config, length, met=sum(min(place, w) for w in windows for place in range(length)))


@forward_flops.mistake(
    "logits of the last token only",
    "You count the output head once; here every token of the text gets logits.",
    "Once is what generate needs. Training, and scoring a text, need all of them.",
    "notebook 19, FLOPs and bytes",
)
def _(config, length):
    return flops(config, length) - 2 * config.vocab_size * config.hidden_size * (length - 1)


@forward_flops.mistake(
    "one place",
    "You count attention for the last token only; each token of the text has its own.",
    "Then it grows with the length, where it really grows with its square.",
    "notebook 19, FLOPs and bytes",
)
def _(config, length):
    return flops(config, length, met=sum(min(length, config.window(index) or length)
                                         for index in range(config.num_layers)))  # fmt: skip


@forward_flops.mistake(
    "attention left out",
    "You count 2 operations per weight and token, and leave attention out.",
    "That is the usual rule of thumb. It fits short texts and fails long ones.",
    "notebook 19, FLOPs and bytes",
)
def _(config, length):
    return flops(config, length, met=0)


@forward_flops.mistake(
    "scores only",
    "You count the scores and forget that the values are mixed.",
    "Attention is two products: queries with keys, and weights with values.",
    "notebook 07, First by hand",
)
def _(config, length):
    return flops(config, length, per_pair=2)


@forward_flops.mistake(
    "key heads count",
    "You count a score per key head. Query heads that share a key still have one each.",
    "Grouped queries save memory and bandwidth; in attention's own arithmetic they save nothing.",
    "notebook 08, The real thing",
)
def _(config, length):
    return flops(config, length, heads=config.num_kv_heads)


@forward_flops.mistake(
    "window ignored",
    "You let every token see all before it, and some layers have a window.",
    "The gain of windows, which is all on long texts, is not seen.",
    "notebook 09, Who may see whom",
)
def _(config, length):
    return flops(config, length, met=pairs(config, length, windowed=False))


@forward_flops.mistake(
    "training counted",
    "You count three times as much: that is a step of training, with the gradients.",
    "6 operations per weight and token are the rule for training, 2 for reading.",
    "notebook 17, The real thing",
)
def _(config, length):
    return 3 * flops(config, length)


@forward_flops.mistake(
    "table as a product",
    "You count the embedding table as a matrix that tokens are multiplied by. Looking up costs nothing.",
    "The number of parameters is not the number of operations: a small model looks much dearer than it is.",
    "notebook 02, First by hand",
)
def _(config, length):
    return flops(config, length, matrices=weights(config, table=True))


@forward_flops.mistake(
    "tied head forgotten",
    (
        "You leave the head out where it is tied: it has no weights of its own, "
        "but every token is multiplied by it."
    ),
    "In Qwen2-0.5B the head has more than a quarter of the weights that a token is multiplied by.",
    "notebook 02, Tied tables",
)
def _(config, length):
    return flops(config, length, matrices=weights(config, head=not config.tie_embeddings))


@forward_flops.mistake(
    "always a gated MLP",
    "You count three matrices for the MLP, and a plain one has two.",
    "For a model of the GPT kind the prediction is too slow.",
    "notebook 04, First by hand",
)
def _(config, length):
    return flops(config, length, matrices=weights(config, mlp=3))


# --------------------------------------------------------------------------------------------------
# 19.3

roofline_seconds = UNIT.exercise(
    "roofline_seconds",
    minutes=5,
    difficulty=1,
    hints=(
        "How long would the arithmetic take if bytes came for free? And the bytes, if arithmetic were free?",
        "An amount over a rate is a time. You have two times, and the two go on at once.",
        "max(flops / peak_flops, bytes_moved / bandwidth), after refusing rates that are not positive.",
    ),
)


@roofline_seconds.inputs
def _(draw):
    yield Case((6e9, 1e9, 1e12, 5e10), "the example")
    peak, bandwidth = draw.integer(2, 9) * 1e11, draw.integer(2, 9) * 1e9
    yield Case((draw.integer(2, 9) * 1e12, draw.integer(1, 9) * 1e8, peak, bandwidth), "much arithmetic")
    yield Case((draw.integer(2, 9) * 1e8, draw.integer(2, 9) * 1e10, peak, bandwidth), "many bytes")
    yield Case((0.0, 3e9, peak, bandwidth), "a copy")
    yield Case((1e9, 1e9, 1e12, 0.0), refused="bandwidth is 0")


@roofline_seconds.law("where bytes decide, twice the peak changes nothing, and twice the bandwidth halves it")
def _(answer, draw):
    amount = draw.integer(1, 9) * 1e9
    time = answer(amount, amount, 1e12, 1e10)
    assert answer(amount, amount, 2e12, 1e10) == time, "Twice the peak changes it."
    assert abs(answer(amount, amount, 1e12, 2e10) - time / 2) < 1e-12, (
        "Twice the bandwidth does not halve it."
    )


@roofline_seconds.mistake(
    "added",
    "You add the two times, as if the machine fetched everything first and computed then.",
    "The next bytes are on their way while it computes. The sum can be twice too long.",
    "notebook 19, Roofline of this machine",
)
def _(flops, bytes_moved, peak_flops, bandwidth):
    return flops / peak_flops + bytes_moved / bandwidth


@roofline_seconds.mistake(
    "the faster one",
    "You take the shorter of the two times. The slower part is what the other has to wait for.",
    "The prediction can be wrong a hundred times over, and always promises too much.",
    "notebook 19, Roofline of this machine",
)
def _(flops, bytes_moved, peak_flops, bandwidth):
    return min(flops / peak_flops, bytes_moved / bandwidth)


@roofline_seconds.mistake(
    "arithmetic only",
    "You count the arithmetic only.",
    "Writing one token is nearly all reading: the arithmetic units wait for bytes.",
    "notebook 19, Roofline of this machine",
)
def _(flops, bytes_moved, peak_flops, bandwidth):
    return flops / peak_flops


@roofline_seconds.mistake(
    "bytes only",
    "You count the bytes only.",
    "Reading a long prompt uses every weight many times, and the arithmetic decides.",
    "notebook 19, Roofline of this machine",
)
def _(flops, bytes_moved, peak_flops, bandwidth):
    return bytes_moved / bandwidth


@roofline_seconds.mistake(
    "upside down",
    "You divide the rates by the amounts: that is how often a second it can be done, not how long it takes.",
    "Seconds and times a second look alike only near 1.",
    "notebook 19, First by hand",
)
def _(flops, bytes_moved, peak_flops, bandwidth):
    return min(peak_flops / flops, bandwidth / bytes_moved) if flops else bandwidth / bytes_moved


@roofline_seconds.mistake(
    "rates exchanged",
    "You divide the operations by the bandwidth, and the bytes by the operations a second.",
    "Bytes over bytes a second are seconds; look at the units, and the right pairs find each other.",
    "notebook 19, First by hand",
)
def _(flops, bytes_moved, peak_flops, bandwidth):
    return max(flops / bandwidth, bytes_moved / peak_flops)


@roofline_seconds.mistake(
    "bits a second",
    "You take the bandwidth for bits a second, and multiply the bytes by 8.",
    "Networks are sold in bits, memories in bytes: the prediction is eight times too slow.",
    "notebook 19, Roofline of this machine",
)
def _(flops, bytes_moved, peak_flops, bandwidth):
    return max(flops / peak_flops, 8 * bytes_moved / bandwidth)
