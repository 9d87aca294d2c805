"""Pictures of rotary embeddings: a pair that turns, clocks of many speeds, scores that know distances."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minilm import rope
from minilm.viz.picture import (
    BLUE,
    CYCLE,
    GREY,
    INK,
    ORANGE,
    PALE,
    SILVER,
    YELLOW,
    Picture,
    heat_map,
    subplots,
)


def turning_pair(pair: tuple[float, float], degrees: Sequence[float]) -> Picture:
    """One pair of dimensions as an arrow in the plane, turned by several angles."""
    figure, axes = subplots(width=3.4, height=3.2)
    length = math.hypot(*pair)
    reach = 1.25 * length
    turn = torch.linspace(0, 2 * math.pi, 200)
    axes.plot(length * turn.cos(), length * turn.sin(), color=PALE)
    for count, angle in enumerate((0.0, *degrees)):
        phi = math.radians(angle)
        x = pair[0] * math.cos(phi) - pair[1] * math.sin(phi)
        y = pair[1] * math.cos(phi) + pair[0] * math.sin(phi)
        colour = ORANGE if count == 0 else BLUE
        axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})
        axes.text(1.13 * x, 1.13 * y, f"{angle:g}°", ha="center", va="center", color=INK)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.set(xlabel="first dimension of the pair", ylabel="second dimension")
    turned = ", ".join(f"{angle:g}" for angle in degrees)
    return Picture(
        figure,
        f"The pair {pair} as an arrow, and the same arrow turned by {turned} degrees: "
        "its direction changes, its length does not.",
    )


def clocks(rotary_dim: int, theta: float, positions: Sequence[int]) -> Picture:
    """The angle of every pair of a head at some positions: a row of clocks for each position."""
    frequencies = rope.inverse_frequencies(rotary_dim, theta)
    pairs = len(frequencies)
    figure, grid = subplots(
        len(positions),
        pairs,
        width=min(0.85 * pairs + 1, 9),
        height=0.85 * len(positions) + 0.5,
        squeeze=False,
    )
    circle = torch.linspace(0, 2 * math.pi, 100)
    for row, position in zip(grid, positions, strict=True):
        for pair, (axes, speed) in enumerate(zip(row, frequencies.tolist(), strict=True)):
            angle = position * speed
            axes.plot(circle.cos(), circle.sin(), color=GREY, linewidth=0.8)
            axes.plot([0, math.cos(angle)], [0, math.sin(angle)], color=BLUE, linewidth=2)
            axes.scatter([math.cos(angle)], [math.sin(angle)], s=14, color=ORANGE, zorder=3)
            axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if position == positions[0]:
                axes.set_title(f"pair {pair}\n{speed:.2g}", fontsize=8)
        row[0].set_ylabel(f"position {position}", rotation=0, ha="right", va="center", fontsize=8)
    return Picture(
        figure,
        f"Clocks for the {pairs} pairs of a head with theta = {theta:g} (radians per position above each), "
        f"at positions {', '.join(map(str, positions))}. The first hand moves by 1 radian per position; the "
        "last one hardly moves.",
    )


def score_tables(titles: Sequence[str], tables: Sequence[Float[Tensor, "query key"]], alt: str) -> Picture:
    """Scores of every query position with every key position, one table beside the other, in one scale."""
    figure, axes = subplots(1, len(tables), height=3.0, squeeze=False)
    limit = max(table.abs().max().item() for table in tables)
    for each, title, table in zip(axes[0], titles, tables, strict=True):
        heat_map(each, table, signed=True, limit=limit, label="score")
        each.set(title=title, xlabel="position of the key", ylabel="position of the query")
    return Picture(figure, alt)


def score_by_distance(theta: float, rotary_dim: int = 64, longest: int = 512) -> Picture:
    """The score of a query with a key of the same content, as the key moves away."""
    distance = torch.arange(longest + 1)[None]
    cos, _ = rope.cos_sin(distance, rope.inverse_frequencies(rotary_dim, theta), torch.float32)
    figure, axes = subplots(height=2.4)
    axes.plot(distance[0], cos[0].mean(-1), color=BLUE)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="distance between query and key, in tokens", ylabel="score", ylim=(-0.5, 1.05))
    axes.set_title(f"theta = {theta:g}")
    return Picture(
        figure,
        f"The score of two equal vectors against their distance, with theta = {theta:g}: 1 at distance 0, "
        "smaller and wavy further away. The larger theta, the slower it falls.",
    )


def partners(layouts: dict[str, Sequence[int]], alt: str) -> Picture:
    """Which dimensions of a head turn together: a row of boxes for each layout, a colour for each pair.

    layouts: title -> for each dimension the number of its pair, or -1 where it does not turn.
    """
    colours = (*CYCLE, YELLOW, SILVER)
    figure, axes = subplots(height=0.75 * len(layouts) + 0.3)
    widest = max(map(len, layouts.values()))
    for row, (title, pairs) in enumerate(layouts.items()):
        y = -row
        axes.text(-0.8, y, title, ha="right", va="center", fontsize=9)
        for dimension, pair in enumerate(pairs):
            colour = colours[pair % len(colours)] if pair >= 0 else PALE
            axes.bar(dimension, 0.7, 0.94, y - 0.35, color=colour, edgecolor=INK, linewidth=0.6)
            words = f"{dimension}" if pair < 0 else f"{dimension}\npair {pair}"
            axes.text(dimension, y, words, ha="center", va="center", fontsize=7.5,
                      color="white" if colour == BLUE else INK)  # fmt: skip
    axes.set(xlim=(-2.8, widest - 0.4), ylim=(-len(layouts) + 0.5, 0.5))
    axes.set_axis_off()
    return Picture(figure, alt)
