"""Is this model still that model? Comparison with transformers: by results, and operation by operation.

The reference computes everything itself. It gets the same weights, token ids, padding mask and positions,
nothing else.
"""

import contextlib
import functools
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minilm import backends, checkpoint, rope
from minilm.cache import DynamicCache
from minilm.families import get_family
from minilm.families.base import Family
from minilm.generate import generate
from minilm.heads import CausalLM
from minilm.norm import Norm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PADDINGS = ("none", "left", "right")
CACHES = ("none", "chunks", "steps")
BACKENDS = ("eager", "sdpa")  # what a table shows by default; three do not fit into 80 columns
NEW_TOKENS = 16  # how far greedy decoding is compared
# What fused fp32 attention, which sums in another order, may move a logit by; eager must give 0.
FP32_LIMIT = 2e-5
USUAL_LOGIT = 8.0  # the size of logits for which that holds; rounding grows with them, as in trained models
VISIBLE = -1e30  # scores below this are masked; how far below is each implementation's own choice

# ------------------------------------------------------------------------------------------------------------
# The two models


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Give every parameter a value that matters, for at its initialisation a model hides most bugs.

    Norm weights 1 + 0.3·N, biases 0.3·N, matrices 1.5/√fan_in·N: logits reach about 6, and a missing norm
    weight, a dropped bias or a wrong rotation moves them by whole units.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "bias":
                value = 0.3 * noise
            elif isinstance(module, Norm):
                value = (0.0 if module.kind == "offset_rms" else 1.0) + 0.3 * noise
            else:
                value = noise * 1.5 / parameter.shape[-1] ** 0.5
            parameter.copy_(value)


def make_checkpoint(family: Family, directory: Path, seed: int = 0) -> None:
    """Write a small model of a family with randomised parameters, for transformers and minilm to load."""
    model = CausalLM(family.read_config(family.tiny))
    model.family = family.model_type
    randomise(model, seed)
    checkpoint.save(model, directory)


def load_reference(directory: Path, dtype: torch.dtype) -> nn.Module:
    """The same checkpoint in transformers, with its eager attention."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local directory: nothing to ask the Hub about
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager"
    ).eval()


def directory_of(source: str | os.PathLike) -> Path:
    """The directory that a source means, for both libraries to load on a text alone.

    Raises: CheckpointError for a GGUF file, and for a model that also reads a memory.
    """
    path = checkpoint.resolve(source)
    if path.is_file():
        raise checkpoint.CheckpointError(
            f"{source} is a GGUF file; models are compared from a directory, which this makes of it: "
            "minilm.save(minilm.load(file), directory)"
        )
    if checkpoint.read_config(path)[1].cross_attention:
        raise checkpoint.CheckpointError(
            f"{source} has cross-attention, so it reads a memory besides the text, and both libraries get "
            "a text alone here; compare a model without it"
        )
    return path


# ------------------------------------------------------------------------------------------------------------
# Comparing results


@dataclass(frozen=True)
class Case:
    """One way to run a model."""

    dtype: str  # "fp32" or "bf16"
    backend: str  # ours; the reference is always eager
    cache: str  # "none": one shot.  "chunks": the text in uneven pieces.  "steps": token by token
    padding: str  # rows of different lengths, padded on this side, or "none": rows of one length


@dataclass(frozen=True)
class Result:
    """How far apart the two models are in one case."""

    name: str
    case: Case
    difference: float  # the largest difference of a logit at a real token
    tokens_agree: bool  # the best next token is the same at every real token, and so is greedy decoding
    largest: float = 0.0  # the largest logit, which rounding grows with


def rounding(largest: float) -> float:
    """How far fused fp32 attention may be off where the largest logit is so large."""
    return FP32_LIMIT * max(1.0, largest / USUAL_LOGIT)


@dataclass(frozen=True)
class Batch:
    """Token ids with their padding mask; positions count the real tokens of each row."""

    input_ids: Tensor
    mask: Tensor

    @property
    def position_ids(self) -> Tensor:
        return (self.mask.cumsum(-1) - 1).clamp(min=0)


def make_batch(vocab_size: int, padding: str, length: int = 17, rows: int = 3, seed: int = 0) -> Batch:
    """Random rows; padded ones have different lengths, and one of them no padding at all."""
    ids = torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(1, rows if padding != "none" else 0):
        gap = 3 * row + 1
        mask[row, :gap] = 0
        if padding == "right":
            mask[row] = mask[row].flip(0)
    return Batch(ids, mask)


def pieces(cache: str | Sequence[int], length: int) -> list[tuple[int, int]]:
    """From where to where each piece of a text goes, for a way of using a cache, or for places to cut at."""
    if not isinstance(cache, str):
        return list(itertools.pairwise([0, *cache, length]))
    if cache == "none":
        return [(0, length)]
    if cache == "steps":
        return [(index, index + 1) for index in range(length)]
    cuts = [0, length // 2, length // 2 + 1, length - 2, length]
    return list(itertools.pairwise(cuts))


@torch.no_grad()
def run_reference(reference: nn.Module, batch: Batch, cache: str | Sequence[int]) -> Tensor:
    """The reference's logits for a batch, computed in pieces with its own cache; see pieces()."""
    from transformers import DynamicCache as ReferenceCache

    padded = not bool(batch.mask.all())
    state = None if cache == "none" else ReferenceCache(config=reference.config)
    logits = []
    for start, end in pieces(cache, batch.input_ids.shape[1]):
        out = reference(
            batch.input_ids[:, start:end],
            attention_mask=batch.mask[:, :end] if padded else None,
            position_ids=batch.position_ids[:, start:end] if padded else None,
            past_key_values=state,
            use_cache=state is not None,
        )
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


@torch.no_grad()
def run_ours(
    model: CausalLM, batch: Batch, cache: str | Sequence[int], state: DynamicCache | None = None
) -> Tensor:
    """Our logits for the same batch; positions are left to the model.

    state: an empty cache, where it is not to be the usual one.
    """
    mask = None if bool(batch.mask.all()) else batch.mask
    if cache != "none" and state is None:
        state = DynamicCache(model.config)
    logits = []
    for start, end in pieces(cache, batch.input_ids.shape[1]):
        part = None if mask is None else mask[:, :end]
        logits.append(model(batch.input_ids[:, start:end], attention_mask=part, cache=state).logits)
    return torch.cat(logits, dim=1)


def greedy_agrees(reference: nn.Module, model: CausalLM, batch: Batch) -> bool:
    """Whether greedy decoding writes the same tokens; rows must end in text, so right padding is left out."""
    theirs = reference.generate(
        batch.input_ids,
        attention_mask=batch.mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    ours = generate(model, batch.input_ids, batch.mask, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    return theirs.shape == ours.shape and bool((theirs == ours).all())


def compare(
    source: str | os.PathLike,
    name: str | None = None,
    dtypes: Iterable[str] = tuple(DTYPES),
    backend_names: Iterable[str] = BACKENDS,
    caches: Iterable[str] = CACHES,
    paddings: Iterable[str] = PADDINGS,
) -> Iterator[Result]:
    """Compare a checkpoint in minilm with the same in transformers, case by case."""
    directory = directory_of(source)
    for dtype in dtypes:
        model = checkpoint.load(directory, dtype=DTYPES[dtype])
        reference = load_reference(directory, DTYPES[dtype])
        for padding, cache in itertools.product(paddings, caches):
            batch = make_batch(model.config.vocab_size, padding)
            expected = run_reference(reference, batch, cache)
            real = batch.mask.bool()
            for backend in backend_names:
                model.backend = backend
                found = run_ours(model, batch, cache)
                agree = bool((found.argmax(-1) == expected.argmax(-1))[real].all())
                if cache == "steps" and padding != "right":
                    agree = agree and greedy_agrees(reference, model, batch)
                difference = (found - expected)[real].abs().max().item()
                case = Case(dtype, backend, cache, padding)
                yield Result(name or str(source), case, difference, agree, expected[real].abs().max().item())


def compare_families(
    names: Iterable[str],
    dtypes: Iterable[str] = tuple(DTYPES),
    backend_names: Iterable[str] = BACKENDS,
) -> Iterator[Result]:
    """Compare a small randomised model of each family."""
    for name in names:
        with tempfile.TemporaryDirectory() as directory, one_thread():
            make_checkpoint(get_family(name), Path(directory))
            yield from compare(directory, name, dtypes, backend_names)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: for small models several are slower, and many times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------------------
# Comparing operation by operation

Trace = dict[str, Tensor]  # the result of each operation, in the order of computing

# What to look at when an operation is the first that differs, its inputs having been equal.
HINTS = {
    "input": "the embedding table, its scale, or the learned positions",
    "norm": "the norm's kind, its eps, its weight, or where it rounds",
    "activated": "the activation function, or gate and up swapped",
    "o_proj": "its weight or bias, or how the heads are merged before it",
    "proj": "this projection's weight or bias",
    "before rotation": "how the projection (or its fused rows) is split into heads, or a norm on heads",
    "rotated": "the rotary frequencies (theta, scaling), positions, how dimensions pair, how many turn",
    "value": "how the projection (or its fused rows) is split into heads; values are not rotated",
    "scores": "the scale, the mask, or which key head a query head reads (repeat_kv)",
    "probabilities": "the precision of the softmax",
    "context": "which value head a query head reads (repeat_kv)",
    "stream": "how the branches are added: parallel or sequential, and in which order",
    "logits": "the output head: tied or not",
}


class _SoftmaxRecorder(TorchFunctionMode):
    """Keeps what goes into the softmax and what comes out of it, whoever calls it."""

    def __init__(self, record: Callable[[str, Tensor], None]):
        super().__init__()
        self.record = record

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (nn.functional.softmax, torch.softmax, Tensor.softmax):
            self.record("scores", args[0])
            self.record("probabilities", result)
        return result


class _Recorder:
    """Collects the results of one model's operations under names that both models share."""

    def __init__(self):
        self.trace: Trace = {}
        self.rotations = self.attentions = 0  # how often each has run: once per layer, in order

    def keep(self, name: str, tensor: Tensor) -> None:
        self.trace[name] = tensor.detach().clone()

    def rotation(
        self, function: Callable, query: Tensor, key: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        layer, self.rotations = f"layers.{self.rotations}", self.rotations + 1
        self.keep(f"{layer}.query before rotation", query)
        self.keep(f"{layer}.key before rotation", key)
        rotated = function(query, key, *args, **kwargs)
        self.keep(f"{layer}.query rotated", rotated[0])
        self.keep(f"{layer}.key rotated", rotated[1])
        return rotated

    def attention(
        self, run: Callable[[], tuple], value: Tensor, heads_first: Callable[[Tensor], Tensor]
    ) -> tuple:
        layer, self.attentions = f"layers.{self.attentions}", self.attentions + 1
        self.keep(f"{layer}.value", value)
        with _SoftmaxRecorder(lambda name, tensor: self.keep(f"{layer}.{name}", tensor)):
            context, weights = run()
        self.keep(f"{layer}.context", heads_first(context))
        return context, weights

    def hook(self, module: nn.Module, name: str) -> list[torch.utils.hooks.RemovableHandle]:
        def keep_output(_, inputs, output):
            if name.endswith("mlp_norm"):  # after attention; where the branches are parallel, before it
                self.keep(name.replace("mlp_norm", "middle stream"), inputs[0])
            if name.endswith("mlp.down_proj"):
                self.keep(name.replace("down_proj", "activated"), inputs[0])
            self.keep(name, output[0] if isinstance(output, tuple) else output)

        return [module.register_forward_hook(keep_output)]

    def hook_input(self, module: nn.Module, name: str) -> torch.utils.hooks.RemovableHandle:
        def keep_input(_, args, kwargs):
            self.keep(name, args[0] if args else next(iter(kwargs.values())))

        return module.register_forward_pre_hook(keep_input, with_kwargs=True)


def _traced_modules(model: CausalLM, family: Family) -> dict[str, tuple[str, str]]:
    """Modules with parameters inside the blocks, and the final norm: shared name -> (our path, the
    reference's).

    Norms of single heads are left out: the reference has the axes in another order there, and what they give
    is compared as "query before rotation".
    """
    found = {}
    for parameter, _ in model.decoder.named_parameters():
        path = parameter.rpartition(".")[0]
        if "embed_" not in path and not path.endswith((".q_norm", ".k_norm")):
            theirs = family.file_name(f"decoder.{parameter}").rpartition(".")[0]
            found[path] = (f"decoder.{path}", theirs)
    return found


@torch.no_grad()
def trace_ours(model: CausalLM, input_ids: Tensor) -> Trace:
    """Run our model with eager attention and keep what every operation gives."""
    recorder, handles = _Recorder(), []
    family = get_family(model.family)
    for name, (path, _) in _traced_modules(model, family).items():
        handles += recorder.hook(model.get_submodule(path), name)
    for index, block in enumerate(model.decoder.layers):
        handles += recorder.hook(block, f"layers.{index}.stream")
    handles.append(recorder.hook_input(model.decoder.layers[0], "input"))

    apply_rope, attend = rope.apply_rope, backends.eager_attention

    def traced_attention(query, key, value, mask, **settings):
        run = functools.partial(attend, query, key, value, mask, **settings)
        return recorder.attention(run, value, heads_first=lambda context: context)

    backend, model.backend = model.backend, "eager"
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, model, "backend", backend)
        for handle in handles:
            stack.callback(handle.remove)
        stack.enter_context(
            mock.patch.object(rope, "apply_rope", functools.partial(recorder.rotation, apply_rope))
        )
        stack.enter_context(mock.patch.object(backends, "eager_attention", traced_attention))
        recorder.keep("logits", model(input_ids).logits)
    return recorder.trace


@torch.no_grad()
def trace_reference(reference: nn.Module, model: CausalLM, input_ids: Tensor) -> Trace:
    """Run the reference and keep the results of the same operations under the same names."""
    recorder, handles = _Recorder(), []
    family = get_family(model.family)
    for name, (_, path) in _traced_modules(model, family).items():
        handles += recorder.hook(reference.get_submodule(path), name)
    first_norm = family.file_name("decoder.layers.0.attention_norm.weight").rpartition(".")[0]
    blocks = reference.get_submodule(first_norm.rpartition(".")[0].rpartition(".")[0])
    for index, block in enumerate(blocks):
        handles += recorder.hook(block, f"layers.{index}.stream")
    handles.append(recorder.hook_input(blocks[0], "input"))

    source = sys.modules[type(reference).__module__]
    attend = source.eager_attention_forward

    def traced_attention(module, query, key, value, *args, **kwargs):
        run = functools.partial(attend, module, query, key, value, *args, **kwargs)
        return recorder.attention(run, value, heads_first=lambda context: context.transpose(1, 2))

    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        if hasattr(source, "apply_rotary_pos_emb"):
            rotate = functools.partial(recorder.rotation, source.apply_rotary_pos_emb)
            stack.enter_context(mock.patch.object(source, "apply_rotary_pos_emb", rotate))
        stack.enter_context(mock.patch.object(source, "eager_attention_forward", traced_attention))
        recorder.keep("logits", reference(input_ids, use_cache=False).logits)
    return recorder.trace


@dataclass(frozen=True)
class Divergence:
    """The first operation whose result differs although everything before it was equal."""

    name: str
    difference: float
    where: tuple[int, ...]  # the index of the largest difference
    equal_before: int  # how many operations agreed
    shapes: tuple[
        tuple[int, ...], tuple[int, ...]
    ]  # ours and the reference's; different ones cannot be compared

    def __str__(self) -> str:
        hint = next((text for end, text in HINTS.items() if self.name.endswith(end)), None)
        if hint is None:
            hint = HINTS["norm"] if "norm" in self.name else "this operation's weights"
        before = f"operations before it that agree: {self.equal_before}"
        look = f"Look at: {hint}"
        if self.shapes[0] != self.shapes[1]:
            return (
                f"first divergence: {self.name} is {self.shapes[0]}, not {self.shapes[1]}; {before}. {look}"
            )
        amount = "NaN or infinity" if math.isinf(self.difference) else f"up to {self.difference:.3g}"
        where = list(self.where)
        return f"first divergence: {self.name} differs by {amount}, at index {where}; {before}. {look}"


def operation_differences(ours: Trace, reference: Trace) -> Iterator[tuple[str, float, tuple[int, ...]]]:
    """For each operation that both traces have: its name, the largest difference, and where it is."""
    for name, found in ours.items():
        expected = reference.get(name)
        if expected is None:
            continue
        if found.shape != expected.shape:
            yield name, float("inf"), ()
            continue
        gap = (found.float() - expected.float()).abs()
        gap = gap.masked_fill(found == expected, 0.0)  # of equal infinities too
        if name.endswith("scores"):
            gap = gap.masked_fill((found < VISIBLE) & (expected < VISIBLE), 0.0)
        gap = gap.nan_to_num(nan=float("inf"), posinf=float("inf"))
        index = torch.unravel_index(gap.argmax(), gap.shape)
        yield name, gap.max().item(), tuple(int(axis) for axis in index)


def first_divergence(ours: Trace, reference: Trace, tolerance: float = 0.0) -> Divergence | None:
    """The first operation, in the order of computing, whose results differ by more than tolerance; None if
    none does.
    """
    for count, (name, difference, where) in enumerate(operation_differences(ours, reference)):
        if difference > tolerance:
            return Divergence(
                name, difference, where, count, (tuple(ours[name].shape), tuple(reference[name].shape))
            )
    return None
