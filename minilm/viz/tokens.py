"""Pictures of what goes into a model: numbers in memory and on a grid, pieces of text, places in a batch."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from minilm.viz.picture import BLUE, CYCLE, GREY, INK, ORANGE, PALE, SKY, YELLOW, Picture, subplots

FORMATS = {"fp32": (torch.float32, 8, 23), "bf16": (torch.bfloat16, 8, 7), "fp16": (torch.float16, 5, 10)}


def draw_cells(
    axes: Axes, written: Sequence[Sequence[Any]], groups: Sequence[Sequence[int]], corner: bool = False
) -> None:
    """A table of boxes with something written in each, coloured by group; group -1 is pale.

    corner: write in the upper left of a box, where its middle is needed for something else.
    """
    shift = 0.22 if corner else 0.0
    for row, (texts, numbers) in enumerate(zip(written, groups, strict=True)):
        for column, (text, group) in enumerate(zip(texts, numbers, strict=True)):
            colour = CYCLE[group % len(CYCLE)] if group >= 0 else PALE
            axes.add_patch(
                Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=colour, edgecolor=INK, lw=0.6)
            )
            ink = "white" if colour == BLUE else INK
            axes.text(column - shift, row - shift, str(text), ha="center", va="center", fontsize=9, color=ink)
    rows, columns = len(written), max(map(len, written))
    axes.set(xlim=(-0.55, columns - 0.45), ylim=(rows - 0.45, -0.55), aspect="equal")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks([])


def number_tables(
    tables: Mapping[str, tuple[Tensor, Tensor]], alt: str, rows: str = "", columns: str = ""
) -> Picture:
    """Tables of numbers side by side, each number in the colour of its group.

    tables:        title -> the numbers [row, column], and the group of each.
    rows, columns: what stands along the two axes.
    """
    shapes = [numbers.shape for numbers, _ in tables.values()]
    height = 0.36 * max(shape[0] for shape in shapes) + 0.75
    figure, axes = subplots(
        1, len(tables), height=height, squeeze=False, width=8.2, width_ratios=[s[1] for s in shapes]
    )
    for each, (title, (numbers, groups)) in zip(axes[0], tables.items(), strict=True):
        draw_cells(each, [[f"{x:g}" for x in row] for row in numbers.tolist()], groups.tolist())
        each.set(title=title, xlabel=columns, ylabel=rows)
    return Picture(figure, alt)


def memory_paths(tables: Mapping[str, Tensor], alt: str) -> Picture:
    """Where the numbers of tensors with two axes lie in memory: a line joins the places in their order.

    Each box holds its place in memory, and has the colour of the row of the first table that it belongs to.
    """
    first = next(iter(tables.values()))
    figure, axes = subplots(1, len(tables), height=2.5, squeeze=False)
    for each, (title, table) in zip(axes[0], tables.items(), strict=True):
        places = torch.arange(table.untyped_storage().nbytes() // table.element_size())
        places = places.as_strided(table.shape, table.stride(), table.storage_offset())
        draw_cells(each, places.tolist(), (places // first.shape[1]).tolist(), corner=True)
        path = [divmod(int(index), table.shape[1]) for index in places.flatten().argsort()]
        path = [(column + 0.22, row + 0.26) for row, column in path]
        for here, there in itertools.pairwise(path):
            near = math.dist(here, there) < 1.01
            each.plot(*zip(here, there, strict=True), color=INK, linewidth=1.6 if near else 0.8,
                      linestyle="-" if near else ":")  # fmt: skip
        each.scatter(*zip(*path, strict=True), s=9, color=INK, zorder=3)
        each.set_title(f"{title}\nshape {tuple(table.shape)}, stride {table.stride()}", fontsize=9)
    return Picture(figure, alt)


def float_bits() -> Picture:
    """How three formats share out their bits among sign, exponent and fraction."""
    figure, axes = subplots(height=1.6)
    for row, (name, (dtype, exponent, fraction)) in enumerate(FORMATS.items()):
        start = 0
        parts = {
            "±": (1, GREY),
            f"exponent: {exponent}": (exponent, ORANGE),
            f"fraction: {fraction}": (fraction, SKY),
        }
        for words, (bits, colour) in parts.items():
            for bit in range(start, start + bits):
                axes.add_patch(Rectangle((bit, row), 1, 0.75, facecolor=colour, edgecolor="white", lw=1))
            axes.text(start + bits / 2, row + 0.38, words, ha="center", va="center", fontsize=9, color=INK)
            start += bits
        axes.text(-0.4, row + 0.38, name, ha="right", va="center")
        axes.text(start + 0.4, row + 0.38, f"up to {torch.finfo(dtype).max:.5g}", va="center", fontsize=8.5)
    axes.set(xlim=(-3, 38), ylim=(3, -0.1))
    axes.set_axis_off()
    return Picture(
        figure,
        "The bits of three formats. fp32 and bf16 have 8 bits of exponent and the same range; bf16 has 7 "
        "bits of fraction. fp16 has 10 bits of fraction and 5 of exponent: finer steps, and an early end.",
    )


def spacing(dtype: torch.dtype, value: float) -> float:
    """How far apart the numbers of a format lie at a value: inf beyond its end."""
    info = torch.finfo(dtype)
    if value > info.max:
        return math.inf
    return max(info.eps * 2.0 ** math.floor(math.log2(value)), info.smallest_normal * info.eps)


def number_grid(around: float) -> Picture:
    """The numbers that each format has near a value: strokes, or a band where they lie too close."""
    reach = 6 * spacing(torch.bfloat16, around)
    low, high = around - reach, around + reach
    figure, axes = subplots(height=1.9)
    for row, (dtype, *_) in enumerate(FORMATS.values()):
        step = spacing(dtype, around)
        if math.isinf(step):
            axes.text(around, row, "infinite", ha="center", va="center", color=INK)
        elif reach / step > 400:
            axes.add_patch(Rectangle((low, row - 0.3), high - low, 0.6, facecolor=PALE))
            axes.text(around, row, f"too many to draw: {step:.2g} apart", ha="center", va="center")
        else:
            # The steps differ on the two sides of a power of two, so numbers are found by rounding.
            fine = torch.arange(low, high, step / 8, dtype=torch.float64)
            numbers = fine.to(dtype).double().unique()
            numbers = numbers[(numbers >= low) & (numbers <= high)]
            axes.vlines(numbers, row - 0.3, row + 0.3, color=CYCLE[row], linewidth=1.2)
    axes.set_yticks(range(len(FORMATS)), list(FORMATS))
    axes.set(xlim=(low - 0.02 * reach, high + 0.02 * reach), ylim=(len(FORMATS) - 0.5, -0.5), xlabel="value")
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.tick_params(axis="y", length=0)
    steps = ", ".join(f"{name} {spacing(dtype, around):.2g}" for name, (dtype, *_) in FORMATS.items())
    return Picture(figure, f"The numbers that exist near {around:g}. Distance of one from the next: {steps}.")


def piece_rows(rows: Mapping[str, Sequence[str]], alt: str, changed: Sequence[int | None] = ()) -> Picture:
    """Text cut into pieces: a row of boxes each, as wide as their characters; spaces are drawn as ␣.

    rows:    title -> the pieces.
    changed: for each row the piece to light up, or None. Without it neighbours differ in colour.
    """
    margin = 0.7 * max(map(len, rows)) + 1.2  # for the titles, in widths of a character
    longest = max(sum(0.8 * len(piece) + 0.5 for piece in pieces) for pieces in rows.values())
    figure, axes = subplots(height=0.42 * len(rows) + 0.25, width=min(8.0, 0.15 * (margin + longest)))
    for row, (title, pieces) in enumerate(rows.items()):
        axes.text(-0.6, row, title, ha="right", va="center", fontsize=9)
        start = 0.0
        for index, piece in enumerate(pieces):
            shown = piece.replace(" ", "␣").replace("\n", "⏎")
            width = 0.8 * len(shown) + 0.38
            colour = (SKY, YELLOW)[index % 2]
            if changed:
                colour = ORANGE if changed[row] == index else PALE
            axes.add_patch(
                Rectangle((start, row - 0.36), width, 0.72, facecolor=colour, edgecolor=INK, lw=0.6)
            )
            axes.text(start + width / 2, row, shown, ha="center", va="center", fontsize=8.5, color=INK)
            start += width + 0.12
    axes.set(xlim=(-margin, longest), ylim=(len(rows) - 0.45, -0.55))
    axes.set_axis_off()
    return Picture(figure, alt)


def padded_rows(tables: Mapping[str, Tensor], real: Tensor, alt: str) -> Picture:
    """Tables of ids, masks or positions side by side: a colour for each text, padding pale.

    tables: title -> [batch, length]. real: 1 where a table holds a token and 0 at padding, [batch, length].
    """
    texts = torch.arange(len(real))[:, None].expand(real.shape)
    groups = torch.where(real.bool(), texts, -1)
    return number_tables({title: (table, groups) for title, table in tables.items()}, alt, rows="text")
