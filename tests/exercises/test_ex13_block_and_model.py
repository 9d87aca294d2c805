"""What checks the exercises of notebook 13, and the wrong answers that people give."""

import math

import torch

from minilm.config import ModelConfig, RopeConfig
from minilm.course.spec import Case, Unit
from minilm.families import FAMILIES
from minilm.heads import CausalLM

UNIT = Unit(13, "block_and_model")


def in_a_block(answer, x, mixing, up, down, weight_1, weight_2):
    """Call a block with small branches of random weights: tokens mixed causally, an MLP, two RMS norms."""

    def norm(weight):
        return lambda y: weight * y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)

    def attention(y):
        return mixing.tril() @ y

    def mlp(y):
        return torch.tanh(y @ up) @ down

    return answer(x, attention, mlp, norm(weight_1), norm(weight_2))


def parts(draw, batch, length, hidden, dtype=torch.float32):
    """A stream, and what in_a_block needs beside it."""
    x, mixing = draw.normal(batch, length, hidden, scale=2.0), draw.normal(length, length)
    up, down = draw.normal(hidden, 7), draw.normal(7, hidden)
    weights = 1 + 0.3 * draw.normal(hidden), 1 + 0.3 * draw.normal(hidden)
    return tuple(each.to(dtype) for each in (x, mixing, up, down, *weights))


def blocks(draw):
    """The cases of both kinds of block."""
    yield Case(parts(draw, 2, 5, 6), "fp32", use=in_a_block, gradient=True)
    yield Case(parts(draw, 2, 3, 5, torch.bfloat16), "bf16", use=in_a_block)
    yield Case(parts(draw, 1, 1, 3), "one token", use=in_a_block)


def changes_nothing(answer, draw):
    """Branches that add nothing leave the stream as it was."""
    x = draw.normal(2, 3, 5)
    found = answer(x, torch.zeros_like, torch.zeros_like, lambda y: 3.0 * y, lambda y: y - 1.0)
    assert torch.equal(found, x), "The stream itself must not pass through a norm, and is added once."


def runs_once(answer, draw):
    """Neither branch is computed twice."""
    calls = []

    def branch(name):
        return lambda y: calls.append(name) or 2.0 * y

    answer(draw.normal(1, 2, 3), branch("attention"), branch("mlp"), branch("norm_1"), branch("norm_2"))
    for name in ("attention", "mlp"):
        assert calls.count(name) == 1, f"{name} runs {calls.count(name)} times."


# --------------------------------------------------------------------------------------------------
# 13.1

sequential_block = UNIT.exercise(
    "sequential_block",
    minutes=10,
    difficulty=1,
    hints=(
        "Draw the stream as a straight line. Each branch leaves it through a norm, and comes back by a sum.",
        "Give the stream after attention a name of its own; the MLP's half uses that name and never x.",
        "h = x + attention(norm_1(x)); the second line is the same with mlp, norm_2 and h.",
    ),
)
sequential_block.inputs(blocks)
sequential_block.law("branches that give 0 leave the stream as it is")(changes_nothing)
sequential_block.law("each branch runs once")(runs_once)


@sequential_block.mistake(
    "parallel",
    "Your MLP reads x, the stream before attention: you built the parallel block of GPT-NeoX.",
    "The MLP cannot work on what attention has just fetched. The shapes are right and the text is not.",
    "notebook 13, Break it",
)
def _(x, attention, mlp, norm_1, norm_2):
    return x + attention(norm_1(x)) + mlp(norm_2(x))


@sequential_block.mistake(
    "post-norm",
    (
        "You normalise the stream after each addition: the block of the first "
        "transformer, not of a decoder today."
    ),
    "The stream is no longer a plain sum, so gradients change in size from block to block, and weights "
    "trained with pre-norm give noise.",
    "notebook 13, The residual stream",
)
def _(x, attention, mlp, norm_1, norm_2):
    h = norm_1(x + attention(x))
    return norm_2(h + mlp(h))


@sequential_block.mistake(
    "stream normalised",
    "You add each branch to the normalised copy that it read, not to the stream.",
    (
        "What the earlier layers wrote loses its size at every block. It comes "
        "from reusing one name: x = norm(x)."
    ),
    "notebook 13, Break it",
)
def _(x, attention, mlp, norm_1, norm_2):
    y = norm_1(x)
    h = y + attention(y)
    y = norm_2(h)
    return y + mlp(y)


@sequential_block.mistake(
    "attention forgotten",
    "You add the MLP to x and not to the stream after attention: what attention found is lost.",
    "Only the MLP of the same block has read it; no later block and not the head can.",
    "notebook 13, The residual stream",
)
def _(x, attention, mlp, norm_1, norm_2):
    return x + mlp(norm_2(x + attention(norm_1(x))))


@sequential_block.mistake(
    "no second residual",
    "You return the MLP alone, without adding it to the stream.",
    "Every block then overwrites what all blocks before it wrote.",
    "notebook 13, First by hand",
)
def _(x, attention, mlp, norm_1, norm_2):
    return mlp(norm_2(x + attention(norm_1(x))))


@sequential_block.mistake(
    "norms swapped",
    "Attention reads through norm_2 and the MLP through norm_1.",
    "In a new model all norms are alike and nothing shows; with a checkpoint's weights the logits are wrong.",
    "notebook 03, Break it",
)
def _(x, attention, mlp, norm_1, norm_2):
    h = x + attention(norm_2(x))
    return h + mlp(norm_1(h))


@sequential_block.mistake(
    "mlp without norm",
    "Your MLP reads the stream as it is, without norm_2.",
    "The stream grows with depth, and an MLP trained on normalised vectors meets ever larger ones.",
    "notebook 13, First by hand",
)
def _(x, attention, mlp, norm_1, norm_2):
    h = x + attention(norm_1(x))
    return h + mlp(h)


@sequential_block.mistake(
    "one norm for both",
    "Your MLP reads through norm_1 as well; it has norm_2.",
    "In a new model all norms are alike and nothing shows; with a checkpoint's weights the logits are wrong.",
    "notebook 13, Break it",
)
def _(x, attention, mlp, norm_1, norm_2):
    h = x + attention(norm_1(x))
    return h + mlp(norm_1(h))


@sequential_block.mistake(
    "written into x",
    "You write into x: x += … changes the caller's tensor and makes no new one.",
    "hidden_states would hold the last stream several times, and autograd refuses what it still needs.",
    "notebook 01, Views and copies",
)
def _(x, attention, mlp, norm_1, norm_2):
    x += attention(norm_1(x))
    return x + mlp(norm_2(x))


# --------------------------------------------------------------------------------------------------
# 13.2

parallel_block = UNIT.exercise(
    "parallel_block",
    minutes=5,
    difficulty=1,
    hints=(
        "How many different tensors does a norm read in this block?",
        "Both norms read x. The result is a sum of three terms.",
        "x + attention(norm_1(x)) + mlp(…): what is in the brackets does not hold attention's result.",
    ),
)
parallel_block.inputs(blocks)
parallel_block.law("branches that give 0 leave the stream as it is")(changes_nothing)
parallel_block.law("each branch runs once")(runs_once)


@parallel_block.law("the MLP does not see what attention found")
def _(answer, draw):
    x, other, seen = draw.normal(1, 3, 5), draw.normal(1, 3, 5), []
    for attention in (torch.zeros_like, lambda y: other):
        answer(x, attention, lambda y: seen.append(y) or y, lambda y: 2.0 * y, lambda y: 3.0 * y)
    assert torch.equal(*seen), "Its input changes when attention gives something else."


@parallel_block.mistake(
    "sequential",
    "Your MLP reads the stream after attention: that is the sequential block.",
    "With the weights of Pythia or GPT-NeoX the shapes are right and the logits are those of another model.",
    "notebook 13, Break it",
)
def _(x, attention, mlp, norm_1, norm_2):
    h = x + attention(norm_1(x))
    return h + mlp(norm_2(h))


@parallel_block.mistake(
    "one norm for both",
    "Both of your branches read norm_1(x); the MLP has norm_2.",
    "GPT-J shares one norm, GPT-NeoX does not. A new model hides it, since all its norms are alike.",
    "notebook 13, Break it",
)
def _(x, attention, mlp, norm_1, norm_2):
    y = norm_1(x)
    return x + attention(y) + mlp(y)


@parallel_block.mistake(
    "norms swapped",
    "Attention reads through norm_2 and the MLP through norm_1.",
    "A new model hides it, since all its norms are alike; a checkpoint does not.",
    "notebook 03, Break it",
)
def _(x, attention, mlp, norm_1, norm_2):
    return x + attention(norm_2(x)) + mlp(norm_1(x))


@parallel_block.mistake(
    "stream twice",
    "You add x with each branch, so the stream doubles in every block.",
    (
        "After 24 layers the embedding is 2²⁴ times too large, and the final "
        "norm hides the size, not the damage."
    ),
    "notebook 13, The residual stream",
)
def _(x, attention, mlp, norm_1, norm_2):
    return (x + attention(norm_1(x))) + (x + mlp(norm_2(x)))


@parallel_block.mistake(
    "no residual",
    "You return the two branches without the stream.",
    "Every block then overwrites what all blocks before it wrote, and gradients have no straight way back.",
    "notebook 13, First by hand",
)
def _(x, attention, mlp, norm_1, norm_2):
    return attention(norm_1(x)) + mlp(norm_2(x))


@parallel_block.mistake(
    "written into x",
    "You write into x: x += … changes the caller's tensor, and a second line then reads the changed one.",
    "The block turns sequential unnoticed, and autograd refuses what it still needs.",
    "notebook 01, Views and copies",
)
def _(x, attention, mlp, norm_1, norm_2):
    x += attention(norm_1(x))
    x += mlp(norm_2(x))
    return x


# --------------------------------------------------------------------------------------------------
# 13.3

residual_init_std = UNIT.exercise(
    "residual_init_std",
    minutes=5,
    difficulty=1,
    hints=(
        "How many vectors are added to the stream on its way through num_layers layers?",
        "There are two additions per layer. A sum of n independent vectors of std s has the std s · √n.",
        "Divide std by the square root of 2 · num_layers.",
    ),
)


@residual_init_std.inputs
def _(draw):
    yield Case((0.02, 8), "the example")
    yield Case((0.02, 1), "one layer")
    yield Case((0.02, 48), "GPT-2 XL")
    for _ in range(3):
        yield Case((draw.integer(1, 60) / 1000, draw.integer(2, 90)), "random")
    yield Case((0.02, 0), refused="num_layers is 0")


@residual_init_std.law("the variances of all additions sum to std²")
def _(answer, draw):
    std, layers = draw.integer(1, 60) / 1000, draw.integer(1, 90)
    total = sum(answer(std, layers) ** 2 for _ in range(2 * layers))
    assert math.isclose(total, std**2, rel_tol=1e-6), (
        f"With {layers} layers they sum to {total / std**2:.4g} times std²."
    )


@residual_init_std.mistake(
    "one addition per layer",
    (
        "You divide by √num_layers: a layer adds to the stream twice, once after "
        "attention and once after the MLP."
    ),
    "The stream of a new model then comes out √2 times as large as planned.",
    "notebook 13, Initialisation and depth",
)
def _(std, num_layers):
    if num_layers < 1:
        raise ValueError
    return std / math.sqrt(num_layers)


@residual_init_std.mistake(
    "no root",
    "You divide by 2 · num_layers, without the square root, as if the additions all pointed the same way.",
    "Random directions partly cancel. Divided like this, the layers of a deep new model add next to nothing.",
    "notebook 13, Initialisation and depth",
)
def _(std, num_layers):
    if num_layers < 1:
        raise ValueError
    return std / (2 * num_layers)


@residual_init_std.mistake(
    "multiplied",
    "You multiply by √(2 · num_layers) where you should divide.",
    "The deeper the model, the larger its stream becomes at the start: the opposite of what is wanted.",
    "notebook 13, Initialisation and depth",
)
def _(std, num_layers):
    if num_layers < 1:
        raise ValueError
    return std * math.sqrt(2 * num_layers)


@residual_init_std.mistake(
    "variance",
    "You return the variance, std² / (2 · num_layers); the std is its square root.",
    "nn.init.normal_ takes a std. With 0.02 and 8 layers these matrices would start 200 times too small.",
    "notebook 13, Initialisation and depth",
)
def _(std, num_layers):
    if num_layers < 1:
        raise ValueError
    return std**2 / (2 * num_layers)


@residual_init_std.mistake(
    "not scaled",
    "You return std as it is.",
    "The stream of a new model then grows with √(2 · num_layers). Shallow models do not mind; deep ones do.",
    "notebook 13, Initialisation and depth",
)
def _(std, num_layers):
    if num_layers < 1:
        raise ValueError
    return std


# --------------------------------------------------------------------------------------------------
# 13.4

count_parameters = UNIT.exercise(
    "count_parameters",
    minutes=25,
    difficulty=2,
    hints=(
        "Write two small helpers first: the size of a matrix with or without bias, and that of a norm.",
        "Count one layer, part by part as in the list above; multiply; add what stands outside the layers.",
        "num_layers · (2 norms + q + k + v + back + MLP + what qk_norm and cross_attention bring) + the "
        "table(s) + the final norm + the head, unless it is tied. k and v are num_kv_heads · head_dim wide.",
    ),
)

EXAMPLE = ModelConfig(
    vocab_size=10, hidden_size=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2, intermediate_size=8,
    max_positions=16,
)  # fmt: skip
SMOLLM2 = ModelConfig(
    vocab_size=49_152, hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
    intermediate_size=1536, max_positions=8192, tie_embeddings=True,
)  # fmt: skip
QWEN2_72B = ModelConfig(
    vocab_size=152_064, hidden_size=8192, num_layers=80, num_heads=64, num_kv_heads=8, head_dim=128,
    intermediate_size=29_568, max_positions=131_072, qkv_bias=True,
)  # fmt: skip
GEMMA_7B = ModelConfig(
    vocab_size=256_000, hidden_size=3072, num_layers=28, num_heads=16, num_kv_heads=16, head_dim=256,
    intermediate_size=24_576, max_positions=8192, norm="offset_rms", activation="gelu_tanh",
    scale_embeddings=True, tie_embeddings=True,
)  # fmt: skip
STARCODER = ModelConfig(
    vocab_size=49_152, hidden_size=6144, num_layers=40, num_heads=48, num_kv_heads=1, head_dim=128,
    intermediate_size=24_576, max_positions=8192, rope=None, norm="layer", qkv_layout="blocks", qkv_bias=True,
    out_bias=True, mlp="plain", mlp_bias=True, activation="gelu", tie_embeddings=True,
)  # fmt: skip
# As their authors publish them.
PUBLISHED = {
    "SmolLM2-135M": (SMOLLM2, 134_515_008),
    "Qwen2-72B": (QWEN2_72B, 72_706_203_648),
    "Gemma-7B": (GEMMA_7B, 8_537_680_896),
    "StarCoderBase": (STARCODER, 15_517_456_384),
}


def structure(draw) -> ModelConfig:
    """A random small structure: every switch that a parameter depends on is thrown."""

    def flag() -> bool:
        return draw.random.random() < 0.5

    layout = draw.random.choice(["separate", "blocks", "per_head"])
    kv_heads = draw.integer(1, 3)
    return ModelConfig(
        vocab_size=draw.integer(20, 40),
        hidden_size=draw.integer(10, 30),
        num_layers=draw.integer(1, 3),
        num_heads=kv_heads * (1 if layout == "per_head" else draw.integer(2, 3)),
        num_kv_heads=kv_heads,
        head_dim=2 * draw.integer(2, 6),
        intermediate_size=draw.integer(20, 50),
        max_positions=draw.integer(8, 20),
        rope=RopeConfig() if flag() else None,
        norm=draw.random.choice(["layer", "rms", "offset_rms"]),
        qkv_layout=layout,
        qkv_bias=flag(),
        out_bias=flag(),
        qk_norm=flag(),
        mlp="gated" if flag() else "plain",
        mlp_bias=flag(),
        cross_attention=flag(),
        tie_embeddings=flag(),
    )


def in_words(config: ModelConfig) -> str:
    """The switches of a structure that differ from ModelConfig's defaults."""
    switches = "rope norm qkv_layout qkv_bias out_bias qk_norm mlp mlp_bias cross_attention tie_embeddings"
    named = ((name, getattr(config, name)) for name in switches.split())
    differing = [f"{name}={value!r}" for name, value in named if value != getattr(EXAMPLE, name)]
    return ", ".join(differing) or "ModelConfig's defaults"


@count_parameters.inputs
def _(draw):
    yield Case((EXAMPLE,), "the example")
    for name, family in FAMILIES.items():
        yield Case((family.read_config(family.tiny),), f"a small {name}")
    for name, (config, _) in PUBLISHED.items():
        yield Case((config,), name)
    everything = structure(draw).replace(
        rope=None, norm="layer", qkv_bias=True, out_bias=True, qk_norm=True, mlp="gated", mlp_bias=True,
        cross_attention=True, tie_embeddings=False,
    )  # fmt: skip
    yield Case((everything,), "everything switched on")
    for _ in range(4):
        config = structure(draw)
        yield Case((config,), f"a model with {in_words(config)}")


@count_parameters.law("it is the number of parameters of the model that is built")
def _(answer, draw):
    families = (family.read_config(family.tiny) for family in FAMILIES.values())
    for config in [*families, *(structure(draw) for _ in range(3))]:
        with torch.device("meta"):  # shapes without numbers: nothing is allocated
            built = sum(parameter.numel() for parameter in CausalLM(config).parameters())
        assert answer(config) == built, f"You count {answer(config)} and it has {built}: {in_words(config)}."


@count_parameters.law("it is what the authors of real models publish")
def _(answer, draw):
    for name, (config, published) in PUBLISHED.items():
        assert answer(config) == published, (
            f"{name} has {published} parameters, and you count {answer(config)}."
        )


def count(config, *, tied=True, kv_heads=None, head_dim=None, biases=True, gate=True, norms=True,
          norm_bias=True, positions=True, qk_norm=True, cross=True, final=True):  # fmt: skip
    """Parameters, with the places where people go wrong."""
    hidden, width = config.hidden_size, config.intermediate_size
    head_dim = head_dim or config.head_dim
    query, kv = config.num_heads * head_dim, (kv_heads or config.num_kv_heads) * head_dim
    per_norm = (2 if norm_bias and config.norm == "layer" else 1) * norms
    attention = hidden * (2 * query + 2 * kv)
    mlp = hidden * width * (3 if gate and config.mlp == "gated" else 2)
    if biases:
        attention += config.qkv_bias * (query + 2 * kv) + config.out_bias * hidden
        mlp += config.mlp_bias * (width * (2 if gate and config.mlp == "gated" else 1) + hidden)
    layer = attention + mlp + 2 * per_norm * hidden
    layer += 2 * per_norm * head_dim * (config.qk_norm and qk_norm)
    layer += (attention + per_norm * hidden) * (config.cross_attention and cross)
    tables = config.vocab_size * (1 if config.tie_embeddings and tied else 2)
    tables += config.max_positions * (config.rope is None and positions)
    return config.num_layers * layer + tables * hidden + per_norm * hidden * final


@count_parameters.mistake(
    "tied table twice",
    "You count the output head of models whose head is the embedding table itself.",
    (
        "In a small model the table is large: SmolLM2-135M would seem to have "
        "162.8 million parameters, not 134.5."
    ),
    "notebook 13, Parameters counted",
)
def _(config):
    return count(config, tied=False)


@count_parameters.mistake(
    "as many key heads as query heads",
    "Your key and value matrices are as wide as the queries; they are num_kv_heads · head_dim wide.",
    "It is right for models that share no keys, and wrong for most models today.",
    "notebook 08, See it",
)
def _(config):
    return count(config, kv_heads=config.num_heads)


@count_parameters.mistake(
    "head_dim from the hidden size",
    "You take hidden_size // num_heads for the width of a head; config.head_dim says what it is.",
    (
        "It is right for most models. Gemma-7B has heads of 256 where the "
        "quotient is 192, and Qwen3 differs too."
    ),
    "notebook 13, Four models",
)
def _(config):
    return count(config, head_dim=config.hidden_size // config.num_heads)


@count_parameters.mistake(
    "no biases",
    "You count the matrices without their biases.",
    "They are few numbers, but a loader that forgets Qwen2's qkv bias writes other text.",
    "notebook 13, Four models",
)
def _(config):
    return count(config, biases=False)


@count_parameters.mistake(
    "no gate",
    "You count two matrices in every MLP; a gated one has three: gate, up and down.",
    "The MLP holds most of a model's parameters, and a third of it would be missing.",
    "notebook 04, First by hand",
)
def _(config):
    return count(config, gate=False)


@count_parameters.mistake(
    "no norms",
    "You leave the weights of the norms out.",
    "They are few among millions, but a checkpoint without them does not load.",
    "notebook 13, Parameters counted",
)
def _(config):
    return count(config, norms=False)


@count_parameters.mistake(
    "norms without bias",
    "You count one weight per dimension in every norm; a LayerNorm has a bias as well.",
    "Llama, Qwen2 and Gemma come out right; GPT-NeoX and GPT-BigCode do not.",
    "notebook 03, First by hand",
)
def _(config):
    return count(config, norm_bias=False)


@count_parameters.mistake(
    "no final norm",
    "You count the norms in the layers, and not the one after the last layer.",
    "A model that leaves it out hands its head vectors of the wrong size.",
    "notebook 13, The real thing",
)
def _(config):
    return count(config, final=False)


@count_parameters.mistake(
    "no learned positions",
    "You leave out the table of positions; where rope is None it is learned.",
    "StarCoderBase has 50 million parameters there.",
    "notebook 02, Four models",
)
def _(config):
    return count(config, positions=False)


@count_parameters.mistake(
    "no cross-attention",
    "You leave out what cross_attention brings to every layer: a norm and four matrices.",
    "They make each of its layers about as much larger as self-attention does.",
    "notebook 18, First by hand",
)
def _(config):
    return count(config, cross=False)
