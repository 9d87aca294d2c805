"""Pictures of checkpoints: a file as bytes, what blocks of few bits hold, rows that changed their places."""

import os
from collections.abc import Mapping, Sequence

import gguf
import numpy as np
import safetensors
import torch
from jaxtyping import Float
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from minilm import checkpoint
from minilm.heads import CausalLM
from minilm.viz.picture import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PINK,
    RED,
    SKY,
    YELLOW,
    Picture,
    heat_map,
    subplots,
)
from minilm.viz.tokens import draw_cells

# The parts of a model by what our names of them hold, in the order of asking.
PARTS = {
    "norm": (INK, "norms"),
    "embed": (BLUE, "embeddings"),
    "lm_head": (GREEN, "output head"),
    "attention": (ORANGE, "attention"),
    "mlp": (SKY, "MLP"),
}
LENGTH, HEADER, DATA = 5, 1, 4  # colours of CYCLE: the three pieces of a file


def file_map(source: str | os.PathLike) -> Picture:
    """All bytes of a checkpoint's weight file to scale, each tensor in the colour of its part."""
    path = checkpoint.weight_files(checkpoint.resolve(source))[0]
    family, config = checkpoint.read_config(source)
    with torch.device("meta"):
        model = CausalLM(config)
    ours = {family.file_name(name): name for name, _ in model.named_parameters()}
    tensors = checkpoint.read_tensors(checkpoint.resolve(source))
    total = path.stat().st_size
    place = total - sum(tensor.nbytes for tensor in tensors.values())  # the length and the header
    figure, axes = subplots(width=8.6, height=1.5)
    axes.add_patch(Rectangle((0, 0), place, 1, facecolor=PINK))
    shown = {"header": PINK}
    with safetensors.safe_open(path, framework="pt") as file:
        in_order = file.offset_keys()
    for name in in_order:
        colour, words = next(value for key, value in PARTS.items() if key in ours[name])
        shown[words] = colour
        size = tensors[name].nbytes
        axes.add_patch(Rectangle((place, 0), size, 1, facecolor=colour, edgecolor="white", linewidth=0.3))
        place += size
    axes.set(xlim=(0, total), ylim=(0, 1), yticks=[], xlabel="byte of the file")
    axes.ticklabel_format(axis="x", style="plain")
    axes.spines["left"].set_visible(False)
    figure.legend(
        handles=[Patch(color=colour, label=words) for words, colour in shown.items()],
        loc="outside upper center", ncols=len(shown), fontsize=8,
    )  # fmt: skip
    share = sum(tensor.nbytes for name, tensor in tensors.items() if "embed" in ours[name]) / total
    return Picture(
        figure,
        f"The file of {source} from its first byte to its last: a thin header, then {len(tensors)} tensors "
        f"without a gap. The embeddings take {share:.0%} of it, the norms almost nothing.",
    )


def first_bytes(content: bytes, header_length: int, columns: int = 30, rows: int = 2) -> Picture:
    """A safetensors file as boxes of one byte: its beginning, and where the data begin.

    The length and the data are written as numbers, the header as characters; a space is drawn as ␣.
    """
    start = 8 + header_length
    around = start - columns // 2

    def box(place: int) -> tuple[str, int]:
        if place < 8:
            return str(content[place]), LENGTH
        if place < start:
            return chr(content[place]).replace(" ", "␣"), HEADER
        return f"{content[place]:02x}", DATA

    places = [range(row * columns, (row + 1) * columns) for row in range(rows)]
    places.append(range(around, around + columns))
    cells = [[box(place) for place in line if place < len(content)] for line in places]
    figure, axes = subplots(width=8.8, height=0.29 * len(cells) + 0.4)
    draw_cells(
        axes, [[text for text, _ in line] for line in cells], [[kind for _, kind in line] for line in cells]
    )
    for text in axes.texts:
        text.set_fontsize(7.5)
    axes.set_yticks(range(len(cells)), [f"from byte {line[0]}" for line in places], fontsize=8)
    axes.axhline(rows - 0.5, color=INK, linewidth=1, linestyle=":")
    handles = {"length of the header": RED, "header, JSON": ORANGE, "data, in hexadecimal": SKY}
    figure.legend(
        handles=[Patch(color=colour, label=words) for words, colour in handles.items()],
        loc="outside upper center", ncols=3, fontsize=8,
    )  # fmt: skip
    return Picture(
        figure,
        f"The bytes of a safetensors file. The first eight are the number {header_length}, the smallest byte "
        "first; then as many bytes of JSON; the last row shows where it ends and the data begin, at byte "
        f"{start}.",
    )


def block_levels(weights: Float[Tensor, " block"], *kinds: str) -> Picture:
    """A block of weights, the values that it can hold in formats of llama.cpp, and what each weight becomes.

    kinds: names of formats that the gguf package writes, with 4 or 8 bits for a weight: "Q4_0", "Q8_0".
    """
    figure, axes = subplots(1, len(kinds), width=8.6, height=2.9, squeeze=False, sharey=True)
    places, reach = range(len(weights)), 1.1 * weights.abs().max().item()
    for each, name in zip(axes[0], kinds, strict=True):
        kind = gguf.GGMLQuantizationType[name]
        block = gguf.quantize(weights.float().numpy()[None], kind)
        stored = gguf.dequantize(block, kind)[0]
        codes = np.arange(256, dtype=np.uint8).reshape(-1, int(name[1]) * len(weights) // 8)
        scales = block[:, : block.shape[1] - codes.shape[1]]
        every_code = np.concatenate([np.repeat(scales, len(codes), 0), codes], axis=1)
        levels = np.unique(gguf.dequantize(every_code, kind))
        each.hlines(levels, -1, len(weights), color=PALE if len(levels) > 40 else GREY, linewidth=0.5)
        each.vlines(places, weights, stored, color=ORANGE, linewidth=1.5)
        each.scatter(places, weights, s=12, color=BLUE, zorder=3, label="weight")
        each.scatter(places, stored, s=18, color=ORANGE, marker="_", zorder=3, label="stored as")
        bits = 8 * block.nbytes / len(weights)
        each.set(
            title=f"{name}: {bits:g} bits a weight", xlabel="place in the block", xlim=(-1, len(weights))
        )
    axes[0][0].set(ylabel="value", ylim=(-reach, reach))
    axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(
        figure,
        f"The {len(weights)} weights of a block as dots, and the levels that a format has for them as lines: "
        f"in {' and '.join(kinds)}. Each weight moves to the nearest line; the fewer the lines, the further.",
    )


def row_origins(
    weights: Mapping[str, tuple[Tensor, Tensor]],
    head_dim: int | None = None,
    kinds: Sequence[str] = (),
) -> Picture:
    """Which row of the right weight each row of another one is, where the rows changed their places.

    weights:  title -> the weight, and the right one, [rows, columns] both. Rows that the right one does not
              have are left out.
    head_dim: draw a line every so many rows.
    kinds:    what a head's rows are, such as query, key and value in turn, each head_dim rows: colours.
    """
    figure, axes = subplots(1, len(weights), width=3.6 * len(weights) + 1.6, height=3.4, squeeze=False)
    moved = 0
    for each, (title, (found, right)) in zip(axes[0], weights.items(), strict=True):
        equal = (found[:, None] == right[None]).all(-1)  # [row, right row]
        rows, origins = equal.nonzero().T
        moved += int((rows != origins).sum())
        for index, kind in enumerate(kinds or ("",)):
            chosen = (origins // (head_dim or 1)) % max(1, len(kinds)) == index
            chosen = chosen if kinds else torch.ones_like(chosen)
            colour = (BLUE, ORANGE, GREEN, YELLOW)[index]
            each.scatter(rows[chosen], origins[chosen], s=5, color=colour, label=kind)
        each.plot([0, len(right)], [0, len(right)], color=GREY, linewidth=0.6, linestyle=":")
        for place in range(0, len(right) + 1, head_dim or len(right)):
            each.axhline(place - 0.5, color=PALE, linewidth=0.6, zorder=0)
        each.set(title=title, xlabel="row in this file", ylabel="the same row in the right one")
    if kinds:
        axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=3)
    return Picture(
        figure,
        "For every row of a weight, its place in the right weight; on the dotted line nothing has moved. "
        f"{moved} rows are somewhere else.",
    )


def result_map(
    values: Float[Tensor, "rows columns"], alt: str, rows: str, columns: str, label: str
) -> Picture:
    """One table of numbers as colours, from nothing to much, with names for its axes and for the numbers."""
    figure, axes = subplots(height=2.8)
    heat_map(axes, values, label=label)
    axes.set(xlabel=columns, ylabel=rows)
    return Picture(figure, alt)
