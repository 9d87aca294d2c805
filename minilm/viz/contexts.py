"""Pictures of longer contexts: which angles a model has met, how much each method slows each pair, and what a
text beyond the trained length then costs.
"""

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patches import Wedge
from torch import Tensor

from minilm import checkpoint, parity
from minilm.families import FAMILIES
from minilm.heads import CausalLM
from minilm.table import Table
from minilm.viz.comparison import part_difference
from minilm.viz.picture import BLUE, GREY, INK, ORANGE, PALE, Picture, subplots


def angles_met(
    trained_speeds: Sequence[float], trained_length: int, speeds: Sequence[float], length: int
) -> Picture:
    """For each pair the angles that it met in training, and those that a longer text adds.

    trained_speeds, speeds: radians per position of every pair, in training and in the longer text.
    """
    columns = min(len(speeds), 8)
    rows = -(-len(speeds) // columns)
    figure, grid = subplots(rows, columns, width=1.1 * columns, height=1.25 * rows + 0.3, squeeze=False)
    beyond = []
    for axes in grid.flat:
        axes.set_axis_off()
    for pair, (axes, old, new) in enumerate(zip(grid.flat, trained_speeds, speeds, strict=False)):
        met = min(math.degrees(old * (trained_length - 1)), 360)
        reached = min(math.degrees(new * (length - 1)), 360)
        axes.add_patch(Wedge((0, 0), 1, 0, 360, width=0.3, facecolor=PALE))
        axes.add_patch(Wedge((0, 0), 1, 0, met, width=0.3, facecolor=BLUE))
        if reached > met + 0.5:
            axes.add_patch(Wedge((0, 0), 1, met, reached, width=0.3, facecolor=ORANGE))
            beyond.append(pair)
        axes.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
        axes.text(0, 0, short(2 * math.pi / new), ha="center", va="center", fontsize=8, color=INK)
        axes.set_title(f"pair {pair}", fontsize=8)
    figure.supxlabel("inside each ring: positions for one turn", fontsize=8, color=INK)
    if not beyond:
        words = "no angle is new"
    elif len(beyond) == 1:
        words = f"pair {beyond[0]} meets new angles"
    else:
        words = f"pairs {', '.join(map(str, beyond))} meet new angles"
    return Picture(
        figure,
        f"A ring for each pair. Blue: the angles that {trained_length} positions of training reach; orange: "
        f"those that {length} positions add to them now. Here {words}.",
    )


def short(number: float) -> str:
    """A number in a few characters: 63, 1987, 20k, 2.6M."""
    if number >= 1e6:
        return f"{number / 1e6:.1f}M"
    return f"{number / 1e3:.0f}k" if number >= 1e4 else f"{number:.0f}"


def angles_by_position(
    methods: Mapping[str, Sequence[float]], trained_length: int, length: int, slow_pair: int
) -> Picture:
    """The angles of a slow pair along a longer text, and of the first pair at its first positions.

    methods: title -> the speed of every pair in radians per position; the first is how it was trained.
    """
    figure, (slow, fast) = subplots(1, 2, height=2.7)
    trained = next(iter(methods.values()))
    slow.axhspan(0, trained[slow_pair] * (trained_length - 1), color=PALE, label="met in training")
    for index, (title, speeds) in enumerate(methods.items()):
        slow.plot([0, length - 1], [0, speeds[slow_pair] * (length - 1)], label=title)
        angles = [position * speeds[0] for position in range(9)]
        fast.plot(range(9), angles, marker="os^D"[index % 4], linewidth=0.8)
    slow.set(title=f"pair {slow_pair}", xlabel="position", ylabel="angle, in radians")
    fast.set(title="pair 0, the fastest", xlabel="position", ylabel="angle, in radians")
    slow.legend(loc="upper left", fontsize=8)
    return Picture(
        figure,
        f"Left, the angle of pair {slow_pair} along {length} positions, with the angles met in training as a "
        "grey band: as trained, it leaves the band. Right, the angle of the fastest pair at positions 0 to "
        "8: the smaller its steps, the closer together stand the neighbours.",
    )


def slowdowns(
    methods: Mapping[str, Sequence[float]], trained_speeds: Sequence[float], trained_length: int, alt: str
) -> Picture:
    """How many times slower each pair turns with each method, by the wavelength it was trained with."""
    figure, axes = subplots(height=2.9)
    wavelengths = [2 * math.pi / speed for speed in trained_speeds]
    for index, (title, speeds) in enumerate(methods.items()):
        slower = [old / new for old, new in zip(trained_speeds, speeds, strict=True)]
        axes.plot(wavelengths, slower, marker="os^Dv"[index % 5], markersize=4, label=title)
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="wavelength of the pair: positions for one turn", ylabel="times slower")
    mark_trained_length(axes, trained_length, "one turn\nin training ")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, alt)


def mark_trained_length(axes: Axes, trained_length: int, words: str) -> None:
    """A dashed line where the training ended."""
    axes.axvline(trained_length, color=GREY, linestyle="--", linewidth=1)
    axes.text(trained_length, 0.97, words, transform=axes.get_xaxis_transform(), ha="right", va="top",
              fontsize=8, color=INK)  # fmt: skip


def perplexity_by_position(
    losses: Mapping[str, Float[Tensor, "rows length_less_1"]],
    trained_length: int,
    alt: str,
    dashed: str | None = None,
    window: int = 64,
    height: float = 2.9,
) -> Picture:
    """The perplexity (e to the mean loss) of several models along long texts.

    losses: title -> the loss of every token but the first, a row for each text.
    dashed: the title that is drawn as a dashed line, to compare with. window: a point is the mean of so many
            tokens up to it.
    """
    figure, axes = subplots(width=8.2, height=height)
    for title, values in losses.items():
        averaged = values.mean(0).unfold(0, window, window // 4).mean(-1).exp()
        ends = [window + 1 + index * (window // 4) for index in range(len(averaged))]
        style = {"color": INK, "linestyle": ":", "linewidth": 2} if title == dashed else {}
        axes.plot(ends, averaged, label=title, **style)
    axes.set(xlabel=f"position in the text, in tokens (each point: the last {window})")
    axes.set(ylabel="perplexity", xlim=(0, None))
    if trained_length < next(iter(losses.values())).shape[-1]:
        mark_trained_length(axes, trained_length, "training ends ")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, alt)


def losses_by_pair(
    wavelengths: Sequence[float], changes: Mapping[str, Sequence[float]], trained_length: int, alt: str
) -> Picture:
    """What it does to the loss when one pair alone is changed: a group of bars for each pair.

    changes: title -> the change of the loss for each pair; negative is better.
    """
    figure, axes = subplots(height=2.8)
    width = 0.8 / len(changes)
    for index, (title, values) in enumerate(changes.items()):
        left = (index - (len(changes) - 1) / 2) * width
        axes.bar([pair + left for pair in range(len(values))], values, width, label=title)
    axes.axhline(0, color=INK, linewidth=0.8)
    first_slow = sum(length <= trained_length for length in wavelengths)
    axes.axvline(first_slow - 0.5, color=GREY, linestyle="--", linewidth=1)
    labels = [f"pair {pair}\n{length:,.0f}" for pair, length in enumerate(wavelengths)]
    axes.set_xticks(range(len(wavelengths)), labels, fontsize=8)
    axes.set(xlabel="the pair that is slowed, and its wavelength", ylabel="change of the loss, in nats")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, alt)


def compare_scalings(scalings: Mapping[str, Mapping[str, object]], trained_length: int = 8) -> Table:
    """Turned queries and keys with each scaling beside transformers, on texts longer than the trained length.

    Each family gets a small model with randomised parameters, and 17 tokens. A cell holds the largest
    difference in fp32: 0 is equal bit for bit.

    scalings: title -> fields of RopeConfig.
    """
    rows = []
    for name, family in FAMILIES.items():
        config = family.read_config(family.tiny)
        if config.rope is None:
            rows.append([name, *("no rotation" for _ in scalings)])
            continue
        row = [name]
        for fields in scalings.values():
            model = CausalLM(
                config.replace(max_positions=trained_length, rope=dataclasses.replace(config.rope, **fields))
            )
            model.family = name
            parity.randomise(model, seed=0)
            with tempfile.TemporaryDirectory() as folder:
                checkpoint.save(model, folder)
                turned = "query rotated", "key rotated"
                row.append(f"{part_difference(Path(folder), torch.float32, turned):g}")
        rows.append(row)
    return Table(["family", *scalings], rows)
