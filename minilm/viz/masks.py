"""Pictures of masks: who may see whom, what a model does with it, how far a window reaches, where NaN is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from minilm.viz.picture import AMOUNT, BLUE, INK, PALE, RED, Picture, heat_map, subplots

PADDING = "#f2c14e"  # a pale orange: what is there and means nothing
HIDDEN, VISIBLE, EMPTY = range(3)  # what a cell of a mask is
WIDEST, SIDE = 7.5, 0.3  # in inches: of a picture, and of a cell where there is room


@dataclass(frozen=True)
class MaskGrid:
    """One mask to draw, with words for its queries and keys."""

    title: str
    mask: Bool[Tensor, "query key"]
    queries: Sequence[str]
    keys: Sequence[str]
    valid: Bool[Tensor, " key"] | None = None  # False at padding and at empty slots: another colour
    right: Bool[Tensor, "query key"] | None = None  # the mask as it should be: cells that differ get a cross


def mask_grids(grids: Sequence[MaskGrid], alt: str, invalid: str = "hidden: padding") -> Picture:
    """Masks side by side: a row for each query, a column for each key, dark where the query sees the key.

    invalid: what the legend calls hidden cells of keys that are not valid.
    """
    columns = [len(grid.keys) for grid in grids]
    beside = sum(0.6 + 0.07 * max(map(len, grid.queries)) for grid in grids)  # inches for words at the left
    below = max(0.07 * max(map(len, grid.keys)) for grid in grids)
    side = min(SIDE, (WIDEST - beside) / sum(columns))
    figure, axes = subplots(
        1, len(grids), width=max(beside + side * sum(columns), 4.0), squeeze=False, width_ratios=columns,
        height=side * max(len(grid.queries) for grid in grids) + below + 1.25,
    )  # fmt: skip
    for each, grid in zip(axes[0], grids, strict=True):
        draw_mask(each, grid)
    names = {BLUE: "visible", PALE: "hidden", PADDING: invalid}
    if all(grid.valid is None or bool(grid.valid.all()) for grid in grids):
        del names[PADDING]
    if any(grid.right is not None for grid in grids):
        names["none"] = "×  wrong"
    legend(figure, names)
    return Picture(figure, alt)


def draw_mask(axes: Axes, grid: MaskGrid) -> None:
    """One mask, with a cross where it differs from the right one."""
    kinds = torch.where(grid.mask, VISIBLE, HIDDEN)
    if grid.valid is not None:
        kinds = kinds.masked_fill(~grid.valid & ~grid.mask, EMPTY)
    cells(axes, kinds, (PALE, BLUE, PADDING), grid.queries, grid.keys)
    axes.set_aspect("equal")
    axes.set(title=grid.title, xlabel="key", ylabel="query")
    if grid.right is not None:
        for query, key in (grid.mask != grid.right).nonzero().tolist():
            colour = "white" if grid.mask[query, key] else INK
            axes.text(key, query, "×", ha="center", va="center", color=colour, fontsize=12, weight="bold")


def cells(
    axes: Axes, kinds: Tensor, colours: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> None:
    """A table of coloured squares, with white lines between them and words at both sides."""
    top = len(colours) - 1
    axes.imshow(kinds.numpy(), cmap=ListedColormap(colours), vmin=0, vmax=top, aspect="auto")
    label_axes(axes, rows, columns)
    axes.set_xticks([x + 0.5 for x in range(len(columns) - 1)], minor=True)
    axes.set_yticks([y + 0.5 for y in range(len(rows) - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def label_axes(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Words at every row and column; long ones below stand upright, and of many numbers each second is left
    out.
    """
    upright = max(map(len, columns)) > 2
    step = 2 if len(columns) > 12 and not upright else 1
    shown = range(0, len(columns), step)
    axes.set_xticks(shown, columns[::step], rotation=90 if upright else 0, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)


def legend(figure: Figure, names: dict[str, str]) -> None:
    """What the colours mean, below the whole picture."""
    handles = [Patch(color=colour, label=name) for colour, name in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)


def mask_and_weights(grid: MaskGrid, weights: Float[Tensor, "query key"], alt: str) -> Picture:
    """A mask, and beside it the attention weights that a model gives under it; weight 0 stays white."""
    figure, axes = subplots(1, 2, height=0.24 * len(grid.queries) + 1.7)
    draw_mask(axes[0], grid)
    heat_map(axes[1], weights.masked_fill(weights == 0, math.nan), limit=1.0, label="attention weight")
    label_axes(axes[1], grid.queries, grid.keys)
    axes[1].set_aspect("equal")
    axes[1].set(title="weights", xlabel="key", ylabel="query")
    legend(figure, {BLUE: "visible", PALE: "hidden", PADDING: "hidden: padding"})
    return Picture(figure, alt)


def spread_of_change(
    grid: MaskGrid, changes: Float[Tensor, "layers length"], window: int, alt: str
) -> Picture:
    """A window's mask, and beside it how far the change of the first token has come after each layer.

    changes: the largest change of a number of the residual stream, by layer and token; 0 stays white.
    """
    layers, length = changes.shape
    figure, axes = subplots(1, 2, height=3.4)
    draw_mask(axes[0], grid)
    powers = changes.clamp(min=1e-9).log10().masked_fill(changes == 0, math.nan).flip(0)
    image = axes[1].imshow(powers.numpy(), cmap=AMOUNT, vmin=-6, vmax=1, aspect="auto")
    bar = figure.colorbar(image, ax=axes[1], label="change of the residual stream", shrink=0.9)
    bar.set_ticks([-6, -4, -2, 0], labels=["1e-6", "1e-4", "0.01", "1"])
    edges = [min(length, 1 + (layers - row) * (window - 1)) - 0.5 for row in range(layers)]
    for row, edge in enumerate(edges):
        axes[1].plot([edge, edge], [row - 0.5, row + 0.5], color=RED, linewidth=2.5, clip_on=False)
    label_axes(axes[1], [f"after layer {layers - 1 - row}" for row in range(layers)], grid.keys)
    axes[1].set(title="what notices another first token", xlabel="token")
    return Picture(figure, alt)


def nan_by_layer(
    streams: Sequence[Float[Tensor, "batch length hidden"]], words: Sequence[Sequence[str]], alt: str
) -> Picture:
    """Where the residual stream has become NaN: for each row of a batch, layers upward and tokens across.

    streams: the embeddings, then the stream after each layer. words: the tokens of each row.
    """
    spoilt = torch.stack([stream.isnan().any(-1) for stream in streams], dim=1).flip(1)
    figure, axes = subplots(1, len(words), height=0.27 * len(streams) + 1.6, squeeze=False)
    names = ["embeddings", *(f"after layer {index}" for index in range(len(streams) - 1))][::-1]
    for row, (each, tokens) in enumerate(zip(axes[0], words, strict=True)):
        cells(each, spoilt[row].long(), (PALE, RED), names if row == 0 else [""] * len(names), tokens)
        each.set(title=f"row {row}")
    legend(figure, {PALE: "numbers", RED: "NaN"})
    return Picture(figure, alt)


def windows_by_layer(readings: dict[str, Sequence[int | None]], longest: int, alt: str) -> Picture:
    """Which distances each layer of a model sees, for several readings of its configuration.

    readings: title -> the window of each layer, None where it sees everything.
    """
    figure, axes = subplots(1, len(readings), height=1.9, squeeze=False)
    distances = torch.arange(longest)
    for each, (title, windows) in zip(axes[0], readings.items(), strict=True):
        seen = torch.stack([distances < (window or longest) for window in reversed(windows)])
        names = [f"layer {index}" for index in reversed(range(len(windows)))]
        cells(each, seen.long(), (PALE, BLUE), names, [str(distance) for distance in range(longest)])
        each.set(title=title, xlabel="tokens back")
    legend(figure, {BLUE: "visible", PALE: "hidden"})
    return Picture(figure, alt)
