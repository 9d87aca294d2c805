"""Thousands of models that nobody thought of: random structures, compared with transformers.

A sample is drawn from a seed: a structure, random parameters, rows of text, and one way to run them. Where
the two libraries differ by more than rounding, the sample is made smaller as long as they still differ, and
printed as a few lines that show the difference again.
"""

import dataclasses
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minilm import checkpoint, families, parity
from minilm.cache import StaticCache
from minilm.config import ConfigError, ModelConfig, RopeConfig
from minilm.families.base import Family
from minilm.heads import CausalLM

LONGEST = 24  # tokens of a row
NARROWEST = 16  # hidden size: a norm over two or four numbers magnifies rounding without bound
# Narrow random structures magnify rounding more than the models for which parity's limit was
# measured. Bugs move logits by a hundred times as much.
SLACK = 5
RUNS = 4  # samples that share one structure and its parameters, which cost more than running it


@dataclass(frozen=True)
class Sample:
    """One comparison.

    changes: what differs in the structure from the family's small example: ModelConfig fields
    lengths: how many real tokens each row has; the others are padding on this side
    cuts:    where the text is cut into calls with a cache; None for one call without a cache
    static:  whether that cache has a fixed size
    seed:    of parameters and tokens
    """

    family: str
    changes: dict[str, Any]
    dtype: str = "fp32"
    backend: str = "eager"
    lengths: tuple[int, ...] = (2,)
    side: str = "left"
    cuts: tuple[int, ...] | None = None
    static: bool = False
    seed: int = 0

    @property
    def config(self) -> ModelConfig:
        """The structure. Raises ConfigError where the changes do not go together."""
        family = families.get_family(self.family)
        return family.read_config(family.tiny).replace(**self.changes)

    @property
    def batch(self) -> parity.Batch:
        """Random tokens, and the mask of the padding."""
        length = max(self.lengths)
        generator = torch.Generator().manual_seed(self.seed)
        vocabulary = self.config.vocab_size
        ids = torch.randint(0, vocabulary, (len(self.lengths), length), generator=generator)
        mask = (torch.arange(length)[None] < torch.tensor(self.lengths)[:, None]).long()
        return parity.Batch(ids, mask if self.side == "right" else mask.flip(1))


# ------------------------------------------------------------------------------------------------------------
# Drawing

Change = Callable[[random.Random, ModelConfig], dict[str, Any]]


def sizes(draw: random.Random, config: ModelConfig) -> dict[str, Any]:
    """Heads, groups and widths; half of the time the heads share the hidden size evenly, as some must."""
    head_dim = 2 * draw.randint(2, 12)
    heads = draw.randint(-(-NARROWEST // head_dim), 8)
    even = draw.random() < 0.5
    return {
        "num_heads": heads,
        "num_kv_heads": draw.choice([n for n in (1, heads, *range(1, heads + 1)) if heads % n == 0]),
        "head_dim": head_dim,
        "hidden_size": heads * head_dim if even else draw.randint(NARROWEST, 64),
    }


def even_sizes(draw: random.Random, config: ModelConfig) -> dict[str, Any]:
    """Sizes for structures in which heads share the hidden size, and have a key head each, or one for all."""
    head_dim = 2 * draw.randint(2, 12)
    heads = draw.randint(-(-NARROWEST // head_dim), 8)
    one = draw.random() < 0.5
    layout = {"qkv_layout": "blocks" if one else "per_head"} if config.qkv_layout != "separate" else {}
    return {
        "num_heads": heads, "num_kv_heads": 1 if one else heads, "head_dim": head_dim,
        "hidden_size": heads * head_dim, **layout,
    }  # fmt: skip


def rotary(draw: random.Random, config: ModelConfig) -> dict[str, Any]:
    """The base, and one of the ways to stretch the context."""
    if config.rope is None:
        return {}
    trained = draw.randint(4, 2 * LONGEST)
    scaling = draw.choice(["default", "default", "linear", "dynamic", "yarn", "llama3"])
    settings: dict[str, Any] = {
        "theta": draw.choice([10.0, 500.0, 10_000.0, 1e6]),
        "fraction": config.rope.fraction,
        "scaling": scaling,
    }
    if scaling != "default":
        settings["factor"] = draw.choice([1.0, 1.5, 2.0, 8.0])
    if scaling in ("yarn", "llama3"):
        settings["original_max_positions"] = trained
    if scaling == "llama3":
        low = draw.uniform(0.1, 4)
        settings |= {"low_freq_factor": low, "high_freq_factor": low + draw.uniform(0.1, 8)}
    if scaling == "yarn":
        settings |= {"beta_fast": draw.uniform(2, 40), "beta_slow": draw.uniform(0.1, 2)}
        settings["truncate"] = draw.random() < 0.5
        settings |= draw.choice(
            [{}, {"attention_factor": draw.uniform(0.5, 2)}, {"mscale": 0.7, "mscale_all_dim": 1.3}]
        )
    return {"rope": RopeConfig(**settings)}


def rotated_part(draw: random.Random, config: ModelConfig) -> dict[str, Any]:
    """How much of a head is turned."""
    if config.rope is None:
        return {}
    return {"rope": dataclasses.replace(config.rope, fraction=draw.choice([0.25, 0.5, 0.75, 1.0]))}


def windows(draw: random.Random, config: ModelConfig) -> dict[str, Any]:
    """A sliding window in all layers, in the later ones, or in some."""
    window, count = draw.randint(1, LONGEST + 4), config.num_layers
    first = draw.randint(0, count)
    chosen = draw.choice(
        [[window] * count, [None] * first + [window] * (count - first), draw.choices([None, window], k=count)]
    )
    return {"layer_windows": tuple(chosen) if any(chosen) else None}


def one_of(field: str, *values: Any) -> Change:
    """A change of a single field."""
    return lambda draw, config: {field: draw.choice(values)}


# Each is tried on its own: what a family has no words for is left as it was.
CHANGES: tuple[Change, ...] = (
    lambda draw, config: {"num_layers": draw.randint(1, 4), "layer_windows": None},
    sizes,
    even_sizes,
    lambda draw, config: {"vocab_size": draw.randint(3, 300)},
    lambda draw, config: {"intermediate_size": draw.randint(1, 96)},
    lambda draw, config: {"max_positions": draw.randint(LONGEST if config.rope is None else 4, 2 * LONGEST)},
    rotary,
    rotated_part,
    windows,
    one_of("norm_eps", 1e-12, 1e-8, 1e-5, 1e-2),
    one_of("activation", "silu", "gelu", "gelu_tanh", "gelu_new", "gelu_fast", "relu"),
    one_of("residual", "sequential", "parallel"),
    one_of("tie_embeddings", False, True),
    one_of("scale_scores", False, True),
    one_of("scale_embeddings", False, True),
    one_of("qk_norm", False, True),
    one_of("mlp_bias", False, True),
    lambda draw, config: {"qkv_bias": (bias := draw.random() < 0.5), "out_bias": bias},
)


def draw_structure(draw: random.Random, family: Family) -> dict[str, Any]:
    """Changes to the family's small example that it has words for, and that transformers accepts."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    transformers.utils.logging.set_verbosity_error()  # it finds some structures unusual, and so they are
    start = family.read_config(family.tiny)
    config, changes = start, {}
    for change in CHANGES:
        if draw.random() < 0.6:
            wanted = change(draw, config)
            try:
                changed = config.replace(**wanted)
                transformers.AutoConfig.for_model(**family.write_config(changed))
            except (ConfigError, StrictDataclassError):
                continue
            config = changed
            changes |= wanted
    return {name: value for name, value in changes.items() if value != getattr(start, name)}


def keeps_too_much(changes: dict[str, Any]) -> bool:
    """Whether transformers' cache goes wrong: for a window of 1 it should keep no key, and keeps all."""
    return 1 in (changes.get("layer_windows") or ())


def draw_samples(family: Family, seed: int) -> list[Sample]:
    """RUNS samples of one structure: other texts, paddings, chunkings, backends, caches and dtypes."""
    draw = random.Random(f"{family.model_type} {seed}")
    changes, samples = draw_structure(draw, family), []
    for _ in range(RUNS):
        rows = draw.randint(1, 4)
        lengths = [draw.randint(1, LONGEST) for _ in range(rows)]
        longest = max(lengths)
        if draw.random() < 0.3:
            lengths = [longest] * rows
        cuts = sorted(draw.sample(range(1, longest), draw.randint(0, min(4, longest - 1))))
        if draw.random() < 0.15:
            cuts = list(range(1, longest))
        sample = Sample(
            family=family.model_type,
            changes=changes,
            dtype=draw.choice(["fp32", "bf16"]),
            backend=draw.choice(["eager", "eager", "sdpa", "flash"]),
            lengths=tuple(lengths),
            side=draw.choice(["left", "right"]),
            cuts=None if draw.random() < 0.25 or keeps_too_much(changes) else tuple(cuts),
            static=draw.random() < 0.3,
            seed=seed,
        )
        if sample.dtype == "bf16" and not is_exact(sample):  # rounding is then too coarse to compare
            sample = dataclasses.replace(sample, dtype="fp32")
        samples.append(sample)
    return samples


# ------------------------------------------------------------------------------------------------------------
# Comparing


Models = tuple[CausalLM, nn.Module]  # ours and the reference


def build(sample: Sample) -> Models:
    """Both models in the sample's dtype, read from the same file.

    (Weights at other addresses would not do: MKL sums in another order where a matrix does not begin at a
    multiple of 64 bytes, as those of a file that is mapped into memory do not.)

    Raises: ConfigError where the family has no words for the structure.
    """
    model, dtype = CausalLM(sample.config), parity.DTYPES[sample.dtype]
    model.family = sample.family
    parity.randomise(model, sample.seed)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint.save(model, directory)
        return checkpoint.load(directory, dtype=dtype), parity.load_reference(Path(directory), dtype)


@dataclass(frozen=True)
class Outcome:
    """What a comparison found: how far apart, and how far is rounding."""

    difference: float
    allowed: float
    problem: str = ""  # an error that one of the two raised

    @property
    def agrees(self) -> bool:
        return not self.problem and self.difference <= self.allowed

    def __str__(self) -> str:
        return (
            self.problem or f"largest difference of a logit {self.difference:.3g}, allowed {self.allowed:.3g}"
        )


def run(sample: Sample, models: Models | None = None) -> Outcome:
    """Compare one sample. Eager must give the reference's bits, others what rounding leaves.

    models: what `build` made of a sample with the same structure, seed and dtype. Dynamic NTK scaling wants
            new ones each time: there the reference remembers the longest text that it has read.
    """
    rope = sample.config.rope
    ours, reference = build(sample) if models is None or (rope and rope.scaling == "dynamic") else models
    try:
        expected = parity.run_reference(reference, sample.batch, text_of(sample))
        return judge(sample, run_ours(sample, ours), expected)
    except Exception as error:  # whatever is raised belongs to the sample, and is told with it
        return Outcome(float("inf"), 0.0, f"{type(error).__name__}: {error}")


def text_of(sample: Sample) -> str | tuple[int, ...]:
    """How parity cuts the text."""
    return "none" if sample.cuts is None else sample.cuts


def run_ours(sample: Sample, model: CausalLM) -> Tensor:
    """Our logits, with the sample's backend and cache."""
    model.backend, state = sample.backend, None
    if sample.static and sample.cuts is not None:
        rows, length = sample.batch.input_ids.shape
        state = StaticCache(model.config, rows, length + 3, dtype=model.dtype)
    return parity.run_ours(model, sample.batch, text_of(sample), state)


def judge(sample: Sample, found: Tensor, expected: Tensor) -> Outcome:
    """How far apart the logits are at real tokens; NaN counts as infinitely far."""
    real = sample.batch.mask.bool()
    gap = (found - expected)[real].abs().nan_to_num(nan=float("inf"))
    largest = expected[real].abs().max().item()
    return Outcome(gap.max().item(), 0.0 if is_exact(sample) else SLACK * parity.rounding(largest))


def is_exact(sample: Sample) -> bool:
    """Whether every bit must agree: eager attention, on keys that lie in memory as the reference's do.

    A cache of ours has room for more keys than it holds. Where heads do not share keys, they are multiplied
    where they lie, and MKL's order of summing depends on whether each head begins at a multiple of 64 bytes.
    A fixed cache also keeps what a window has left behind, and adds zeros for it.
    """
    config = sample.config
    copied = config.groups > 1 or config.head_dim % 16 == 0
    alike = sample.cuts is None or (copied and not (sample.static and config.layer_windows))
    return sample.backend == "eager" and alike


def shrink(sample: Sample, fails: Callable[[Sample], bool]) -> Sample:
    """A simpler sample that still fails: less is changed, fewer rows, shorter rows, fewer cuts."""
    while True:
        for simpler in simpler_samples(sample):
            try:
                still = fails(simpler)
            except ConfigError:  # what is left of the changes does not go together
                continue
            if still:
                sample = simpler
                break
        else:
            return sample


def simpler_samples(sample: Sample) -> Iterator[Sample]:
    """Samples with one thing less, the largest steps first."""

    def but(**changes) -> Sample:
        return dataclasses.replace(sample, **changes)

    for name in sample.changes:
        yield but(changes={key: value for key, value in sample.changes.items() if key != name})
    for field in ("dtype", "backend", "static", "cuts", "side"):
        default = Sample.__dataclass_fields__[field].default
        if getattr(sample, field) != default:
            yield but(**{field: default})
    if len(sample.lengths) > 1:
        for row in range(len(sample.lengths)):
            yield shorter(sample, sample.lengths[:row] + sample.lengths[row + 1 :])
    for row, length in enumerate(sample.lengths):
        for less in dict.fromkeys((1, length // 2, length - 1)):
            if 0 < less < length:
                yield shorter(sample, (*sample.lengths[:row], less, *sample.lengths[row + 1 :]))
    for cut in sample.cuts or ():
        yield but(cuts=tuple(each for each in sample.cuts if each != cut))


def shorter(sample: Sample, lengths: tuple[int, ...]) -> Sample:
    """The sample with other rows; cuts beyond their end go."""
    cuts = sample.cuts if sample.cuts is None else tuple(cut for cut in sample.cuts if cut < max(lengths))
    return dataclasses.replace(sample, lengths=lengths, cuts=cuts)


def reproduction(sample: Sample) -> str:
    """Lines of Python that show the difference again."""
    fields = [
        field.name for field in dataclasses.fields(Sample) if getattr(sample, field.name) != field.default
    ]
    arguments = ",\n    ".join(f"{name}={getattr(sample, name)!r}" for name in fields)
    imports = ["from minilm import fuzz"]
    if "rope" in sample.changes:
        imports.append("from minilm.config import RopeConfig")
    return "\n".join([*imports, "", f"sample = fuzz.Sample(\n    {arguments},\n)", "print(fuzz.run(sample))"])


# ------------------------------------------------------------------------------------------------------------
# Many


@dataclass(frozen=True)
class Mismatch:
    """A sample in which the libraries differ, made as small as possible."""

    sample: Sample
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.sample.family}: {self.outcome}\n{reproduction(self.sample)}"


def compare(names: list[str], count: int, seed: int = 0) -> Iterator[Mismatch | None]:
    """Compare `count` samples of each family; yields for each sample None, or where it differs.

    Source of every sample: its family, and seed plus its number; so a longer run begins with the same ones.
    """
    for name in names:
        family, left = families.get_family(name), count
        for number in range(-(-count // RUNS)):
            samples = draw_samples(family, seed + number)[:left]
            left -= len(samples)
            with parity.one_thread():
                by_dtype = {sample.dtype: sample for sample in samples}
                models = {dtype: build(sample) for dtype, sample in by_dtype.items()}
                for sample in samples:
                    outcome = run(sample, models[sample.dtype])
                    if outcome.agrees:
                        yield None
                    else:
                        smallest = shrink(sample, lambda each: not run(each).agrees)
                        yield Mismatch(smallest, run(smallest))
