"""What a model is made to do, so that every swapped part is at work in it.

A trial runs a model and gives its results. The same trial without a swap says what they should be, and the
same in a wider dtype how far rounding alone moves them.
"""

import functools
import random
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilm import checkpoint, data, gguf_reader, heads, initialize, parity, train
from minilm.cache import DynamicCache, StaticCache
from minilm.config import ModelConfig, RopeConfig
from minilm.families import FAMILIES, get_family
from minilm.generate import generate
from minilm.heads import CausalLM
from minilm.task import TaskModel

LENGTH = 17  # tokens of a row; windows and trained lengths of the small models are shorter
ROWS = 3
NEW = 6  # tokens that are generated
ROOM = (
    8  # a right part may be so many times as far off as the package's own rounding: its sums may be ordered
)
# otherwise

Results = list[Tensor]  # floats are compared within the tolerance, integers exactly


@dataclass(frozen=True)
class Trial:
    """One thing that a model does.

    what:   for the report.
    run:    the model -> results.
    models: the small random models that it is tried on (see `random_model`), or None: on every model.
    dtypes: whether it is tried in half precision as well.
    """

    what: str
    run: Callable[[TaskModel], Results]
    models: tuple[str, ...] | None = None
    task: str = "causal-lm"
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)


TRIALS: dict[str, Trial] = {}


def trial(name: str, what: str, **settings: Any) -> Callable:
    """Decorates a function that runs a model."""

    def add(run: Callable[[TaskModel], Results]) -> Callable:
        TRIALS[name] = Trial(what, run, **settings)
        return run

    return add


# ------------------------------------------------------------------------------------------------------------
# The small random models

PLAIN = ModelConfig(
    vocab_size=199, hidden_size=48, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=8,
    intermediate_size=80, max_positions=64,
)  # fmt: skip
# Structures that no family's small model has.
VARIANTS = {
    "plain": PLAIN,
    "linear scaling": PLAIN.replace(rope=RopeConfig(scaling="linear", factor=2.5)),
    "dynamic scaling": PLAIN.replace(rope=RopeConfig(scaling="dynamic", factor=2.5), max_positions=12),
    # With wavelengths on both sides of the bounds, and between them.
    "graded scaling": PLAIN.replace(
        rope=RopeConfig(
            scaling="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64
        )
    ),
    "fused blocks": PLAIN.replace(qkv_layout="blocks"),
    "with a memory": PLAIN.replace(
        cross_attention=True, rope=None, norm="layer", norm_eps=0.05, mlp="plain", activation="gelu_tanh",
        qkv_bias=True, out_bias=True, mlp_bias=True,
    ),
}  # fmt: skip
TASK_FIELDS = {"label_names": ("no", "yes", "perhaps"), "pad_token_id": 0}


@functools.cache
def structure(name: str) -> ModelConfig:
    """The structure of a small random model, by a family's name or one of VARIANTS."""
    return VARIANTS[name] if name in VARIANTS else get_family(name).read_config(get_family(name).tiny)


def random_model(name: str, dtype: torch.dtype = torch.float32, task: str = "causal-lm") -> TaskModel:
    """A small model with randomised parameters, the same at each call."""
    config = structure(name)
    model = heads.TASKS[task](config if task == "causal-lm" else config.replace(**TASK_FIELDS))
    model.family = None if name in VARIANTS else name
    parity.randomise(model, seed=1)
    return model.to(dtype).eval()


# ------------------------------------------------------------------------------------------------------------
# Logits


def text(model: TaskModel, rows: int = ROWS, length: int = LENGTH) -> Tensor:
    """Random tokens; for a trained model pieces of its `sample`, a text that it can make something of."""
    sample = getattr(model, "sample", None)
    if sample is None:
        return parity.make_batch(model.config.vocab_size, "none", length, rows).input_ids
    return sample.repeat(-(-rows * length // len(sample)))[: rows * length].view(rows, length)


@torch.no_grad()
def logits(backend: str, padding: str, caching: str) -> Callable[[TaskModel], Results]:
    """A way to run a model: parity's, at the real tokens."""

    def run(model: TaskModel) -> Results:
        batch = parity.make_batch(model.config.vocab_size, padding, LENGTH, ROWS)
        batch.input_ids[:] = text(model)
        batch.input_ids[:, -2] = 0  # a token like any other
        before, model.backend = model.backend, backend
        try:
            return [parity.run_ours(model, batch, caching)[batch.mask.bool()]]
        finally:
            model.backend = before

    return run


for backend, prefix in (("eager", ""), ("sdpa", "sdpa "), ("flash", "flash ")):
    names = {"none": prefix.strip() or "eager", "padded": f"{prefix}padded", "cached": f"{prefix}cached"}
    trial(names["none"], f"{backend}, a text at once")(logits(backend, "none", "none"))
    trial(names["padded"], f"{backend}, padded on the left")(logits(backend, "left", "none"))
    trial(names["cached"], f"{backend}, padded, in pieces with a cache")(logits(backend, "left", "chunks"))

trial("chunks", "eager, in pieces with a cache")(logits("eager", "none", "chunks"))
trial("blocks", "rows fused in blocks, several key heads", models=("fused blocks",))(
    logits("eager", "none", "none")
)
trial("linear", "positions, interpolated", models=("linear scaling",))(logits("eager", "left", "none"))
trial("dynamic", "frequencies that follow the length", models=("dynamic scaling",))(
    logits("eager", "left", "none")
)
trial("llama3", "frequencies scaled by wavelength", models=("graded scaling",))(
    logits("eager", "left", "none")
)
trial("right", "eager, padded on the right")(logits("eager", "right", "none"))


@trial(
    "far",
    "positions that bf16 does not have",
    models=("plain", "linear scaling"),
    dtypes=(torch.bfloat16,),  # in fp32 the angles of such positions are rounded visibly by everybody
)
@torch.no_grad()
def far(model: CausalLM) -> Results:
    return [model(text(model), position_ids=torch.arange(1001, 1001 + LENGTH)[None]).logits]


@trial("memory", "a memory that blocks read", models=("with a memory",))
@torch.no_grad()
def read_memory(model: CausalLM) -> Results:
    draw = torch.Generator().manual_seed(5)
    memory = torch.randn((ROWS, 9, model.config.hidden_size), generator=draw).to(model.dtype)
    real = torch.ones(ROWS, 9, dtype=torch.long)
    real[1, 6:], real[2] = 0, 0
    before, model.backend = model.backend, "eager"
    held = DynamicCache(model.config)
    first = model(text(model)[:, :12], memory=memory, memory_mask=real, cache=held).logits
    rest = model(text(model)[:, 12:], cache=held).logits
    model.backend = before
    return [first, rest]


# ------------------------------------------------------------------------------------------------------------
# Generating: in fp32 alone, for a tie in bf16 may fall either way

FP32 = {"dtypes": (torch.float32,)}


@trial("greedy", "the best token, with a cache", **FP32)
def greedy(model: CausalLM) -> Results:
    return [generate(model, text(model, 2, 11), max_new_tokens=NEW, eos_token_id=[])]


@trial("ended", "texts that end at different steps", **FP32)
def ended(model: CausalLM) -> Results:
    ends = range(0, model.config.vocab_size, 4)  # so many that one is soon met
    return [generate(model, text(model, 6, 9), max_new_tokens=NEW, eos_token_id=ends, pad_token_id=1)]


def pad_batch(sequences: list[list[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Rows of one length, filled up with pad_id on one side, and a mask with 1 = real token."""
    rows = [torch.tensor(tokens) for tokens in sequences]
    settings = {"batch_first": True, "padding_side": side}
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], **settings)
    return torch.nn.utils.rnn.pad_sequence(rows, padding_value=pad_id, **settings), mask


@trial("ragged", "prompts of several lengths, padded", **FP32)
def ragged(model: CausalLM) -> Results:
    prompts = [row[:length].tolist() for row, length in zip(text(model, 4), (9, 3, 6, 9), strict=True)]
    prompts[1][1] = 3  # the padding's id may stand in a text
    ids, mask = pad_batch(prompts, 3, "left")
    ends = range(1, model.config.vocab_size, 7)
    new = generate(model, ids, mask, max_new_tokens=NEW, eos_token_id=ends, pad_token_id=3)
    return [ids, mask, new[:, ids.shape[1] :]]


def drawn(**settings: Any) -> Callable[[CausalLM], Results]:
    """Tokens drawn at random, the same draws each time."""

    def run(model: CausalLM) -> Results:
        draw, prompt = torch.Generator().manual_seed(3), text(model, 8, 25).repeat(1, 2)
        sampled = {"do_sample": True, "max_new_tokens": NEW, "eos_token_id": [], "generator": draw}
        return [generate(model, prompt, **sampled, **settings)]

    return run


trial("top_k", "drawn from the best few", **FP32)(drawn(top_k=4, temperature=2.0))
trial("top_p", "drawn from the likeliest", **FP32)(drawn(top_p=0.7, temperature=1.5))
trial("penalty", "drawn, repetition made dear", **FP32)(drawn(repetition_penalty=3.0, temperature=2.0))


def beams(kind: str) -> Callable[[CausalLM], Results]:
    """The text of the highest score among several."""

    def run(model: CausalLM) -> Results:
        ends = range(0, model.config.vocab_size, 9)
        settings = {"num_beams": 3, "max_new_tokens": NEW, "eos_token_id": ends, "pad_token_id": 1}
        return [generate(model, text(model, 4, 7), cache=kind, **settings)]

    return run


trial("beams", "beam search", **FP32)(beams("dynamic"))
trial("static beams", "beam search in a static cache", **FP32)(beams("static"))


@trial("static", "a static cache, and tokens taken back")
@torch.no_grad()
def static(model: CausalLM) -> Results:
    held = StaticCache(model.config, 2, LENGTH, model.dtype)
    ids = text(model, 2)
    first = model(ids[:, :9], cache=held).logits
    held.crop(5)
    again = [model(ids[:, place : place + 2] * 0 + 7, cache=held).logits for place in (5, 7, 9)]
    return [first, *again]


# ------------------------------------------------------------------------------------------------------------
# Labels, training, files


@trial("loss", "the loss of a language model")
def loss(model: CausalLM) -> Results:
    labels = text(model)
    labels[1, :9] = -100
    labels[2, 12:] = -100
    with torch.no_grad():
        out = model(text(model), labels=labels)
    return [out.logits, out.loss]


@trial("classifier", "a classifier of texts", task="sequence-classification")
def classifier(model: TaskModel) -> Results:
    results = []
    with torch.no_grad():
        for padding in ("left", "right"):
            batch = parity.make_batch(model.config.vocab_size, padding, LENGTH, ROWS)
            right = torch.tensor([2, -100, 1])
            several = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]])
            for labels in (right, several):
                out = model(batch.input_ids, attention_mask=batch.mask, labels=labels)
                results += [out.logits, out.loss]
    one_output = out.logits[:, :1]
    results += [model.loss(one_output, labels) for labels in (torch.tensor([2.0, 0.5, 1]), right)]
    config, model.config = model.config, model.config.replace(problem_type="regression")
    results.append(model.loss(out.logits, several))
    model.config = config
    return results


@trial("answerer", "a model that finds answers", task="question-answering")
def answerer(model: TaskModel) -> Results:
    starts, ends = torch.tensor([2, -1, LENGTH + 3]), torch.tensor([5, 7, 9])
    with torch.no_grad():
        out = model(text(model), start_positions=starts, end_positions=ends)
    return [out.logits, out.loss]


@trial("training", "steps of training on packed documents", **FP32)
def training(model: CausalLM) -> Results:
    draw, vocab = random.Random(0), model.config.vocab_size
    sizes = [0] * 24 + [5, 11, 3, 1, 14, 2]  # of the first two rows, nothing can be predicted
    documents = [[*(draw.randrange(1, vocab) for _ in range(size)), 0] for size in sizes]
    rows = data.pack(documents, 12)
    recipe = train.Recipe(steps=7, rows=len(rows), micro_rows=2, length=12, warmup=2, lr=0.01)
    rates = [train.learning_rate(step, recipe) for step in range(recipe.steps)]
    model.zero_grad(set_to_none=True)
    value = train.accumulate(model, rows, recipe)
    trained = (model.decoder.layers[0].mlp.down_proj, model.decoder.embed_tokens)
    gradients = [module.weight.grad.clone() for module in trained]
    model.zero_grad(set_to_none=True)
    counted = [rows.input_ids, rows.position_ids, rows.attention_mask]
    return [*counted, torch.tensor(rates), torch.tensor(value), *gradients]


@trial("new", "the weights of a new model", models=tuple(
    name for name in FAMILIES if structure(name).depth_scaled_init), **FP32)  # fmt: skip
def new(model: CausalLM) -> Results:
    made = CausalLM(model.config)
    initialize.initialize(made, model.config, torch.Generator().manual_seed(0))
    return [parameter.detach() for parameter in made.parameters()]


@trial("loaded", "a checkpoint, written and loaded", models=tuple(FAMILIES))
def loaded(model: CausalLM) -> Results:
    with tempfile.TemporaryDirectory() as directory:
        save(model.family, model.dtype, directory)
        found = checkpoint.load(directory, dtype=model.dtype)
        return [parameter.detach().clone() for parameter in found.parameters()]


@functools.cache
def files(name: str, dtype: torch.dtype) -> dict[str, bytes]:
    """The files of a small random model, written by the package itself."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint.save(random_model(name, dtype), directory)
        return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def save(name: str, dtype: torch.dtype, directory: str) -> None:
    """Write a small random model."""
    for file, content in files(name, dtype).items():
        Path(directory, file).write_bytes(content)


@trial("interleaved", "query and key rows in the order of llama.cpp", models=("plain",))
def interleaved(model: CausalLM) -> Results:
    layer = model.decoder.layers[0].attention
    results = []
    for weight, count in ((layer.q_proj.weight, model.config.num_heads),
                          (layer.k_proj.weight, model.config.num_kv_heads)):  # fmt: skip
        rows = weight.detach().view(count, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        results.append(gguf_reader.separate_halves(rows, count))
    return results


@trial("divergence", "the first operation that a changed weight spoils", **FP32)
def divergence(model: CausalLM) -> Results:
    ids = text(model, 1)
    before = parity.trace_ours(model, ids)
    weight = model.decoder.layers[1].attention.o_proj.weight
    with torch.no_grad():
        weight[0] += 0.5
        after = parity.trace_ours(model, ids)
        weight[0] -= 0.5
    spoiled = dict(after)
    found = [parity.first_divergence(after, before, tolerance) for tolerance in (0.0, 1e-3)]
    spoiled["layers.0.stream"] = after["layers.0.stream"].clone()
    spoiled["layers.0.stream"][0, -1, 0] = torch.nan
    found.append(parity.first_divergence(spoiled, before, 0.0))
    spoiled["layers.0.stream"] = before["layers.0.stream"].clone()
    spoiled["layers.0.stream"][0, -1, 0] -= 1.0
    found.append(parity.first_divergence(spoiled, before, 1e-3))
    found.append(parity.first_divergence(before, dict(before), 0.0))
    names = ["" if each is None else each.name for each in found]
    return [torch.tensor([zlib.crc32(name.encode()) for name in names])]


# ------------------------------------------------------------------------------------------------------------
# Comparing

WIDER = {torch.float32: torch.float64, torch.bfloat16: torch.float32, torch.float16: torch.float32}


@dataclass(frozen=True)
class Expected:
    """What a trial gives without a swap, and how far from it a right part may be."""

    results: Results
    tolerances: list[float]


def expect(each: Trial, model: TaskModel) -> Expected:
    """Run a trial as the package does it, in the model's dtype and in a wider one."""
    results = each.run(model)
    dtype = model.dtype
    try:
        wide = each.run(model.to(WIDER[dtype]))
    finally:
        model.to(dtype)
    # Every layer rounds, and a few numbers may happen to come out better than that.
    layers = model.config.num_layers
    noise = [max(distance(one, other), layers * rounding(one)) if one.is_floating_point() else 0.0
             for one, other in zip(results, wide, strict=True)]  # fmt: skip
    # One number, such as a loss, tells nothing of the noise; it is as uncertain as what it is made of.
    noise = [max(noise) if one.is_floating_point() and one.numel() == 1 else own
             for one, own in zip(results, noise, strict=True)]  # fmt: skip
    return Expected(results, [ROOM * each for each in noise])


def rounding(result: Tensor) -> float:
    """The smallest difference that can be told at the size of a result."""
    return torch.finfo(result.dtype).eps * finite(result).abs().max().item() if result.numel() else 0.0


def finite(result: Tensor) -> Tensor:
    return torch.nan_to_num(result.double(), nan=0.0, posinf=0.0, neginf=0.0)


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference; inf for other shapes, and for NaN or infinity on one side only."""
    if one.shape != other.shape:
        return float("inf")
    if not one.numel():
        return 0.0
    a, b = one.double(), other.double()
    gap = (a - b).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0.0)
    return gap.nan_to_num(nan=float("inf"), posinf=float("inf")).max().item()


def compare(found: Results, expected: Expected) -> tuple[float, float]:
    """The result that is furthest off, in relation to its tolerance: its distance, and what is allowed."""
    gaps = [distance(*pair) for pair in zip(found, expected.results, strict=True)]
    pairs = list(zip(gaps, expected.tolerances, strict=True))
    return max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else float("inf") if pair[0] else 0.0)
