"""minilm beside transformers: one part in every family, and where two models begin to differ."""

import ast
import importlib.util
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from minilm import checkpoint, parity
from minilm.config import ModelConfig
from minilm.families import FAMILIES
from minilm.heads import CausalLM
from minilm.table import Table
from minilm.viz.picture import GREY, Picture, heat_map, subplots

# The operations of a block in the order of computing, by the ends of their names in a trace.
OPERATIONS = (
    "attention_norm", "qkv_proj", "q_proj", "k_proj", "v_proj", "query before rotation",
    "key before rotation", "query rotated", "key rotated", "value", "scores", "probabilities", "context",
    "o_proj", "middle stream", "mlp_norm", "gate_proj", "up_proj", "activated", "down_proj", "stream",
)  # fmt: skip


def reference_of(source: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The same checkpoint in transformers, with eager attention."""
    return parity.load_reference(checkpoint.resolve(source), dtype)


def by_family(columns: Sequence[str], cells: Callable[[ModelConfig, Path], Sequence[object]]) -> Table:
    """A row for every family, about a small model of it with randomised parameters.

    cells: gives the row, from the model's structure and the directory of its checkpoint.
    """
    rows = []
    for name, family in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder, parity.one_thread():
            parity.make_checkpoint(family, Path(folder))
            rows.append([name, *cells(family.read_config(family.tiny), Path(folder))])
    return Table(["family", *columns], rows)


def in_words(difference: float, close: float) -> str:
    """A difference of logits: 0 for the same bits, "rounding" below `close`, else how large it is."""
    return "0" if difference == 0 else "rounding" if difference < close else f"{difference:.2g}"


def compare_part(*operations: str, describe: Callable[[ModelConfig], str]) -> Table:
    """One part of the model in every family that has it: its largest distance from transformers.

    Each family gets a small model with randomised parameters, and both libraries compute everything before
    the part themselves, so 0 says that the part and all that leads to it are equal bit for bit.

    operations: ends of names in a trace, such as "query rotated"; families without any say so.
    describe:   what to say of a family, from its structure.
    """

    def cells(config: ModelConfig, directory: Path) -> list[str]:
        found = [part_difference(directory, dtype, operations) for dtype in parity.DTYPES.values()]
        return [describe(config), *("–" if size is None else f"{size:g}" for size in found)]

    return by_family(["here", *(f"off in {name}" for name in parity.DTYPES)], cells)


def part_difference(directory: Path, dtype: torch.dtype, operations: tuple[str, ...]) -> float | None:
    """The largest difference of these operations' results in any layer; None where there are none."""
    with parity.one_thread():
        model = checkpoint.load(directory, backend="eager", dtype=dtype)
        ids = parity.make_batch(model.config.vocab_size, "none").input_ids
        ours = parity.trace_ours(model, ids)
        theirs = parity.trace_reference(parity.load_reference(directory, dtype), model, ids)
    found = [
        difference
        for operation, difference, _ in parity.operation_differences(ours, theirs)
        if operation.endswith(operations)
    ]
    return max(found, default=None)


def differences(model: CausalLM, reference: torch.nn.Module, input_ids: Tensor) -> Picture:
    """Where a model leaves the reference: a row for each layer, a column for each operation.

    Draws the power of ten of the largest difference; what is equal bit for bit stays white.
    """
    with parity.one_thread():
        ours = parity.trace_ours(model, input_ids)
        theirs = parity.trace_reference(reference, model, input_ids)
    found = {name: size for name, size, _ in parity.operation_differences(ours, theirs)}
    layers = model.config.num_layers
    present = [
        name
        for name in OPERATIONS
        if any(f"layers.0.{part}{name}" in found for part in ("", "attention.", "mlp."))
    ]
    powers = torch.full((layers, len(present)), float("nan"))
    for layer in range(layers):
        for column, name in enumerate(present):
            size = next(found[full] for part in ("", "attention.", "mlp.")
                        if (full := f"layers.{layer}.{part}{name}") in found)  # fmt: skip
            if size > 0:
                powers[layer, column] = max(math.log10(min(size, 1e4)), -8.0)
    figure, axes = subplots(height=0.28 * layers + 1.7)
    axes.set_facecolor("white")
    heat_map(axes, powers + 8.0, limit=10.0)
    bar = figure.axes[-1]
    bar.set_yticks([1, 4, 7, 10], ["1e-7", "1e-4", "0.1", "100"])
    bar.set_ylabel("largest difference")
    axes.set_xticks(range(len(present)), present, rotation=60, ha="right", fontsize=7.5)
    axes.set_yticks(range(layers), [f"layer {index}" for index in range(layers)])
    axes.set_xticks([x + 0.5 for x in range(len(present))], minor=True)
    axes.set_yticks([y + 0.5 for y in range(layers)], minor=True)
    axes.grid(which="minor", color=GREY, linewidth=0.3)
    axes.tick_params(which="minor", length=0)
    first = parity.first_divergence(ours, theirs)
    words = "All are equal." if first is None else f"The first to differ: {first.name}."
    return Picture(
        figure, f"Differences from transformers by layer and operation, white where equal. {words}"
    )


def lines_of(module: str, *names: str) -> Table:
    """Where classes and functions of transformers stand: the file and its lines, to open and read.

    module: such as "models.qwen2.modeling_qwen2". names: such as "rotate_half" or "Qwen2Attention.forward".
    """
    spec = importlib.util.find_spec(f"transformers.{module}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    rows = []
    for name in names:
        node = tree
        for part in name.split("."):
            node = next((each for each in node.body if getattr(each, "name", None) == part), None)
            if node is None:
                raise ValueError(f"transformers.{module} has no {name}")
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        rows.append([name, f"transformers/{module.replace('.', '/')}.py", f"{first}–{node.end_lineno}"])
    return Table(["now you can read", "file", "lines"], rows)
