"""Pictures of flash attention: tiles being visited, a softmax under way, what moves through memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minilm import backends, flash, parity
from minilm.config import ModelConfig
from minilm.flash import Band
from minilm.table import Table
from minilm.viz.comparison import by_family, in_words
from minilm.viz.picture import BLUE, GREEN, GREY, INK, ORANGE, PALE, PINK, SKY, Picture, subplots

SKIPPED, HIDDEN, SEEN = range(3)  # what becomes of a score


def tiles_visited(query_length: int, key_length: int, block_size: int, window: int | None = None) -> Picture:
    """All scores of a causal row in their tiles: which tiles are visited, in which order, which need a mask.

    With more keys than queries, the queries are the last of the keys. window counts the query's own key.
    """
    everything = query_length + key_length
    band = Band(key_length - query_length, everything if window is None else window - 1, 0)
    scores, order, masked = torch.full((query_length, key_length), SKIPPED), [], 0
    for rows in flash.tiles(0, query_length, block_size):
        for keys in flash.key_tiles(rows, key_length, band, block_size):
            mask = flash.tile_mask(rows, keys, band)
            masked += mask is not None
            scores[rows, keys] = SEEN if mask is None else torch.where(mask, SEEN, HIDDEN)
            order.append((rows, keys))
    figure, axes = subplots(width=5.4, height=0.6 + 3.9 * query_length / key_length)
    colours = ListedColormap(["white", PALE, SKY])
    axes.pcolormesh(scores, cmap=colours, vmin=0, vmax=2, edgecolors="#dddddd", linewidth=0.4)
    for number, (rows, keys) in enumerate(order, 1):
        x, y = [keys.start, keys.stop], [rows.start, rows.stop]
        axes.fill_between(x, y[0], y[1], facecolor="none", edgecolor=INK, linewidth=1.2)
        if len(order) <= 40:
            axes.text(sum(x) / 2, sum(y) / 2, number, ha="center", va="center", color=INK)
    axes.set(xlabel="key", ylabel="query", xlim=(0, key_length), ylim=(query_length, 0), aspect="equal")
    axes.set_title(
        f"tiles of {block_size}: {len(order)} visited, {masked} of them with a mask", loc="left", fontsize=9
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return Picture(
        figure,
        f"The table of all scores of {query_length} queries and {key_length} keys. {len(order)} tiles of "
        f"{block_size} are visited, row by row from left to right; what a query sees is blue, what a mask "
        "hides inside a tile grey. What stays white is never computed.",
    )


def running_softmax(scores: Float[Tensor, " key"]) -> Picture:
    """What an online softmax keeps, score by score: the peak and the sum, with and without shrinking."""
    peak = scores.cummax(0).values
    total, unshrunk, totals = 0.0, 0.0, []
    last = -torch.inf
    for score, top in zip(scores.tolist(), peak.tolist(), strict=True):
        weight = torch.tensor(score - top).exp().item()
        total = total * torch.tensor(last - top).exp().item() + weight
        unshrunk, last = unshrunk + weight, top
        totals.append((total, unshrunk))
    rises = torch.cat((torch.tensor([True]), peak.diff() > 0)).nonzero().flatten()
    places = torch.arange(len(scores))
    figure, (above, below) = subplots(2, 1, height=4.2, sharex=True)
    above.bar(places, scores - scores.min() + 0.3, 0.7, scores.min() - 0.3, color=PALE, label="score")
    above.step(places, peak, where="post", color=BLUE, linewidth=2, label="peak: the largest so far")
    above.scatter(rises, peak[rises], color=BLUE, s=22, zorder=3)
    above.set(ylabel="score")
    below.plot(places, [right for right, _ in totals], color=BLUE, marker=".",
               label="total, shrunk where the peak rises")  # fmt: skip
    below.plot(places, [wrong for _, wrong in totals], color=ORANGE, marker=".", linestyle="--",
               label="never shrunk")  # fmt: skip
    at_once = [(scores[: place + 1] - peak[place]).exp().sum() for place in places]
    below.scatter(places, at_once, s=60, facecolor="none", edgecolor=INK, linewidth=0.8,
                  label="all scores so far at once")  # fmt: skip
    below.set(xlabel="key", ylabel="sum of exponentials", ylim=(0, None))
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
        for place in rises.tolist():
            axes.axvline(place, color=GREY, linewidth=0.5, linestyle=":")
    return Picture(
        figure,
        f"{len(scores)} scores that come one by one. Above, the peak climbs in {len(rises)} steps. Below, "
        "the sum of exponentials is shrunk at each step and agrees everywhere with the sum of all scores so "
        "far taken at once; the sum that is never shrunk leaves it at the second step and stays too large.",
    )


def alignments(shapes: Sequence[tuple[int, int]]) -> Picture:
    """Causal masks in both alignments, a column for each (queries, keys)."""
    figure, grid = subplots(2, len(shapes), width=2.1 * len(shapes) + 0.6, height=4.3, squeeze=False)
    for row, (title, corner) in zip(grid, {"bottom-right": 1, "top-left": 0}.items(), strict=True):
        for axes, (queries, keys) in zip(row, shapes, strict=True):
            places = torch.arange(queries)[:, None] + corner * (keys - queries)
            seen = torch.arange(keys) <= places
            axes.pcolormesh(seen, cmap=ListedColormap(["white", BLUE]), vmin=0, vmax=1,
                            edgecolors=GREY, linewidth=0.6)  # fmt: skip
            axes.set(aspect="equal", ylim=(queries, 0), xticks=[], yticks=[])
            axes.set_title(f"{title}\n{queries} queries, {keys} keys", fontsize=8.5)
            axes.set(xlabel="key", ylabel="query")
    return Picture(
        figure,
        "Causal masks, blue = visible. Bottom-right: the last query sees the last key and all before it. "
        "Top-left: the first query sees the first key alone, so with more keys than queries the last keys "
        "are seen by nobody. With as many queries as keys both are the same.",
    )


def shares(lses: Float[Tensor, "parts query"], titles: Sequence[str]) -> Picture:
    """How much of each query's softmax lies in each set of keys: exp(lse), as a part of their sum."""
    figure, axes = subplots(height=2.4)
    part = lses.softmax(0)
    colours = [BLUE, SKY, ORANGE, GREEN, PINK][: len(titles)]
    axes.stackplot(range(part.shape[1]), part, labels=titles, colors=colours, edgecolor="white")
    axes.set(xlabel="query", ylabel="share of the weight", xlim=(0, part.shape[1] - 1), ylim=(0, 1))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(
        figure,
        f"For every query the share of its attention in each of {len(titles)} sets of keys. A set counts "
        "nothing before its keys begin; from then on the shares change from query to query, and add up to 1.",
    )


class Traffic(TorchDispatchMode):
    """Counts what operations read and write while it is entered, and remembers the largest result.

    moved:   bytes, every operation reading its inputs from memory and writing its result there.
    largest: how many numbers the largest result has. Views move nothing and are not counted.
    """

    def __init__(self):
        super().__init__()
        self.moved, self.largest = 0, 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if operation.is_view:
            return result
        written = [x for x in (result if isinstance(result, tuple) else [result]) if isinstance(x, Tensor)]
        read = [x for x in args if isinstance(x, Tensor)]
        self.moved += sum(x.numel() * x.element_size() for x in read + written)
        self.largest = max([self.largest, *(x.numel() for x in written)])
        return result


def traffic(block_size: int, moved_by_tiles: Callable[[int, int, int], int], head_dim: int = 64) -> Picture:
    """Bytes moved, and the largest tensor, of one causal head in fp32: the whole matrix and tiles.

    moved_by_tiles: the numbers that tiles move, from length, head_dim and block_size.
    """
    lengths = [2**power for power in range(7, 12)]
    moved, largest = [], []
    for length in lengths:
        query, key, value = (torch.zeros(1, 1, length, head_dim) for _ in range(3))
        with Traffic() as eager:
            backends.eager_attention(query, key, value, None, scale=1.0)
        with Traffic() as tiled:
            flash.flash_attention(query, key, value, scale=1.0, block_size=block_size)
        moved.append((eager.moved, 4 * moved_by_tiles(length, head_dim, block_size)))
        largest.append((eager.largest, tiled.largest))
    figure, axes = subplots(1, 2, height=2.9)
    for each, pairs, title in zip(
        axes, [moved, largest], ["bytes moved", "numbers in the largest tensor"], strict=True
    ):
        for index, (label, colour) in enumerate({"matrix": ORANGE, f"tiles of {block_size}": BLUE}.items()):
            each.loglog(lengths, [pair[index] for pair in pairs], marker="o", color=colour, label=label)
        each.set_xticks(lengths, lengths)
        each.minorticks_off()
        each.set(title=title, xlabel="length")
    axes[0].legend()
    apart = [pairs[-1][0] / pairs[-1][1] for pairs in (moved, largest)]
    return Picture(
        figure,
        f"Left: the bytes that attention moves at lengths {lengths[0]} to {lengths[-1]}; at the last one "
        f"tiles of {block_size} move {apart[0]:.0f} times fewer than the matrix. Right: the largest tensor "
        f"grows with the square of the length for the matrix, and there {apart[1]:.0f} times smaller with "
        "tiles.",
    )


def compare_backends(describe: Callable[[ModelConfig], str], close: float = 1e-3) -> Table:
    """The logits of each family by each backend, beside transformers' eager ones, in fp32.

    Each family gets a small model with randomised parameters, whose logits reach about 6.
    describe: what to say of a family, from its structure. close: below it the word is "rounding".
    """

    def cells(config: ModelConfig, directory: Path) -> list[str]:
        cases = ["fp32"], backends.NAMES, ("none", "chunks"), ("none", "left")
        results = list(parity.compare(directory, None, *cases))
        row = [describe(config)]
        for backend in backends.NAMES:
            worst = max(result.difference for result in results if result.case.backend == backend)
            row.append(in_words(worst, close))
        return row

    return by_family(["here", *(f"{name}, off by" for name in backends.NAMES)], cells)
