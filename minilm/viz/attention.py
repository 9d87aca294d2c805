"""Pictures of attention: a soft dictionary, scores that spread, fused rows, maps of heads, shared keys."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minilm.tokenizer import Tokenizer
from minilm.viz.picture import (
    AMOUNT,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PINK,
    RED,
    SILVER,
    SKY,
    YELLOW,
    Picture,
    subplots,
)

ROLES = {"q": SKY, "k": ORANGE, "v": GREEN}  # the colour of queries, keys and values in every picture
Point = tuple[float, float]


def soft_lookup(query: Point, keys: Sequence[Point], values: Sequence[Point], sharpness: float) -> Picture:
    """A query among the keys, and the mixture of the values that it takes.

    sharpness: what the scores are multiplied by: 0 takes all values alike, a large number takes one.
    """
    directions, contents = (torch.tensor(each, dtype=torch.float32) for each in (keys, values))
    scores = directions @ torch.tensor(query, dtype=torch.float32)
    weights = (sharpness * scores).softmax(-1)
    mixture = (weights @ contents).tolist()
    figure, (compare, mix) = subplots(1, 2, width=7.0, height=3.1)
    for index, (key, score) in enumerate(zip(keys, scores.tolist(), strict=True)):
        arrow(compare, key, BLUE)
        compare.text(1.28 * key[0], 1.28 * key[1], f"key {index}\n{score:+.2f}", ha="center", va="center",
                     fontsize=8)  # fmt: skip
    arrow(compare, query, ORANGE)
    compare.text(1.2 * query[0], 1.2 * query[1], "query", ha="center", va="center", fontweight="bold")
    compare.set(xlim=(-1.7, 1.7), ylim=(-1.6, 1.6), aspect="equal", title="compare: the scores")
    for index, (value, weight) in enumerate(zip(values, weights.tolist(), strict=True)):
        mix.plot(*zip(mixture, value, strict=True), color=ORANGE, linewidth=0.3 + 7 * weight, alpha=0.6)
        mix.scatter(*value, s=60, color=GREEN, zorder=3)
        mix.text(1.3 * value[0], 1.22 * value[1], f"value {index}\n{weight:.0%}", ha="center", va="center",
                 fontsize=8)  # fmt: skip
    mix.scatter(*mixture, s=110, color=ORANGE, edgecolor=INK, zorder=4)
    mix.set(xlim=(-1.7, 1.7), ylim=(-1.6, 1.6), aspect="equal", title="mix: the weights and the result")
    for axes in (compare, mix):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    shares = ", ".join(f"{weight:.0%}" for weight in weights.tolist())
    return Picture(
        figure,
        f"Left: a query and {len(keys)} keys as arrows; the nearer the directions, the higher the score. "
        f"Right: their values as points, and the mixture that takes {shares} of them, with the scores "
        f"multiplied by {sharpness:g}.",
    )


def arrow(axes, tip: Point, colour: str) -> None:
    """An arrow from the origin."""
    axes.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})


def scores_by_width(widths: Sequence[int], keys: int = 64, queries: int = 400) -> Picture:
    """How far scores spread, and how much of the attention the best key takes, as heads get wider.

    Queries and keys are random numbers of variance 1, divided in three ways.
    """
    draw = torch.Generator().manual_seed(0)
    divisors: dict[str, Callable[[int], float]] = {
        "as they are": lambda width: 1.0,
        "divided by √head_dim": lambda width: width**0.5,
        "divided by head_dim": float,
    }
    spread, best = ({name: [] for name in divisors} for _ in range(2))
    for width in widths:
        query = torch.randn(queries, 1, width, generator=draw)
        products = (query * torch.randn(queries, keys, width, generator=draw)).sum(-1)
        for name, divisor in divisors.items():
            scores = products / divisor(width)
            spread[name].append(scores.std().item())
            best[name].append(scores.softmax(-1).amax(-1).mean().item())
    figure, (left, right) = subplots(1, 2, height=2.9, width=8.2)
    for name, colour, marker in zip(divisors, (ORANGE, BLUE, PINK), "osv", strict=True):
        left.plot(widths, spread[name], color=colour, marker=marker, label=name)
        right.plot(widths, best[name], color=colour, marker=marker)
    left.plot(widths, [width**0.5 for width in widths], color=INK, linestyle=":", label="√head_dim")
    left.set(yscale="log", ylabel="standard deviation of the scores")
    right.axhline(1 / keys, color=GREY, linestyle="--", label="all keys alike")
    right.set(ylim=(0, 1.02), ylabel=f"weight of the best of {keys} keys")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.minorticks_off()
        axes.set_xlabel("head_dim")
    handles = [*left.lines, *right.lines[-1:]]
    figure.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=8)
    return Picture(
        figure,
        "Left: the standard deviation of random scores grows as the root of head_dim; divided by that root "
        "it stays 1. Right: without a divisor the best of 64 keys soon takes most of the weight; divided by "
        "head_dim all keys become alike; divided by the root nothing changes with the width.",
    )


def softmax_errors(ways: dict[str, Callable[[Tensor], Tensor]], lengths: Sequence[int]) -> Picture:
    """The largest relative error of a weight for several ways to compute a softmax, by the number of keys.

    ways: title -> a function of bf16 scores; compared with fp64 on the same scores.
    """
    draw = torch.Generator().manual_seed(0)
    figure, axes = subplots(width=6.5, height=2.6)
    errors: dict[str, list[float]] = {name: [] for name in ways}
    for length in lengths:
        scores = (2 * torch.randn(32, length, generator=draw)).bfloat16()
        exact = scores.double().softmax(-1)
        for name, way in ways.items():
            errors[name].append(((way(scores).double() - exact) / exact).abs().max().item())
    for name, marker, width in zip(ways, "osv^", (6, 1.5, 1.5, 1.5), strict=False):
        percent = [100 * error for error in errors[name]]
        axes.plot(lengths, percent, marker=marker, linewidth=width, markersize=width + 4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set(xlabel="keys", ylabel="largest error of a weight, in %", ylim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return Picture(
        figure,
        "The largest relative error of a weight against the number of keys, for bf16 scores: with every step "
        "in bf16 it is several times as large as with the steps in fp32 and one rounding at the end.",
    )


def feature_rows(layouts: dict[str, Sequence[str]], alt: str) -> Picture:
    """Rows of a projection as boxes: what each stretch of its features is.

    layouts: title -> names such as "q0" (query of head 0), "k0", "v0"; "|" leaves a gap between matrices.
    """
    figure, axes = subplots(height=0.72 * len(layouts) + 0.2)
    widest = max(map(len, layouts.values()))
    for row, (title, names) in enumerate(layouts.items()):
        axes.text(-0.7, -row, title, ha="right", va="center", fontsize=9)
        for place, name in enumerate(names):
            if name == "|":
                continue
            axes.bar(place, 0.66, 1.0, -row - 0.33, color=ROLES[name[0]], edgecolor=INK, linewidth=0.8)
            axes.text(place, -row, name, ha="center", va="center", fontsize=9)
    axes.set(xlim=(-0.36 * widest, widest - 0.3), ylim=(-len(layouts) + 0.5, 0.5))
    axes.set_axis_off()
    return Picture(figure, alt)


def token_labels(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Each token's text, with blanks and line breaks that can be seen."""
    return [tokenizer.decode([token]).replace(" ", "␣").replace("\n", "⏎") for token in ids]


def attention_maps(
    maps: dict[str, Float[Tensor, "query key"]], labels: Sequence[str], alt: str, columns: int = 3
) -> Picture:
    """Who looks at whom: a row for each token that looks, a column for each that is looked at."""
    count = len(maps)
    columns = min(columns, count)
    rows = -(-count // columns)
    side = min(9.0 / columns, 4.2)
    width, height = min(columns * side + 1.2, 9.4), rows * (side + 0.35)
    figure, grid = subplots(rows, columns, width=width, height=height, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    size = min(8.0, 120 * side / (2.2 * len(labels)))
    for axes, (title, weights) in zip(grid.flat, maps.items(), strict=False):
        shown = weights.detach().float().clamp(0, 1)
        image = axes.imshow(shown, cmap=AMOUNT, vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
        axes.set_yticks(range(len(labels)), labels, fontsize=size)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=9)
    grid[0, 0].set_ylabel("this token …")
    grid[-1, 0].set_xlabel("… looks at this one")
    figure.colorbar(image, ax=grid, label="attention weight", shrink=0.6)
    return Picture(figure, alt)


def head_grids(scores: dict[str, Float[Tensor, "layers heads"]], label: str, alt: str) -> Picture:
    """A number for every head of several models: a grid for each model, a row for each layer, one scale."""
    figure, grid = subplots(1, len(scores), width=9.0, height=2.8, squeeze=False)
    limit = max(each.max().item() for each in scores.values())
    for axes, (title, each) in zip(grid[0], scores.items(), strict=True):
        image = axes.imshow(each, cmap=AMOUNT, vmin=0, vmax=limit, interpolation="nearest", aspect="auto")
        axes.set(title=title, xlabel="head", xticks=range(each.shape[1]), yticks=range(len(each)))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    grid[0, 0].set_ylabel("layer")
    figure.colorbar(image, ax=grid, label=label)
    return Picture(figure, alt)


def sharing(layouts: dict[str, Sequence[int]], alt: str) -> Picture:
    """Which key head each query head reads: query heads above, key heads below, a line for each reader.

    layouts: title -> for each query head the number of its key head.
    """
    figure, grid = subplots(1, len(layouts), width=9.0, height=2.1, squeeze=False)
    colours = (ORANGE, SKY, GREEN, PINK, YELLOW, RED, SILVER, BLUE)
    for axes, (title, reads) in zip(grid[0], layouts.items(), strict=True):
        heads, kv_heads = len(reads), max(reads) + 1
        places = [(index + 0.5) * heads / kv_heads - 0.5 for index in range(kv_heads)]
        for head, kv_head in enumerate(reads):
            colour = colours[kv_head % len(colours)]
            axes.plot([head, places[kv_head]], [1, 0], color=colour, linewidth=1.8, zorder=1)
            axes.scatter(head, 1, s=210, color=colour, edgecolor=INK, linewidth=0.8, zorder=2)
            axes.text(head, 1, f"{head}", ha="center", va="center", fontsize=8)
        for kv_head, place in enumerate(places):
            colour = colours[kv_head % len(colours)]
            axes.scatter(place, 0, s=250, color=colour, marker="s", edgecolor=INK, linewidth=0.8, zorder=2)
            axes.text(place, 0, f"{kv_head}", ha="center", va="center", fontsize=8)
        axes.set(xlim=(-0.8, heads - 0.2), ylim=(-0.3, 1.3), title=title, xticks=[])
        axes.spines[:].set_visible(False)
        axes.set_yticks([0, 1], ["key heads", "query heads"] if axes is grid[0, 0] else ["", ""])
        axes.tick_params(length=0)
    return Picture(figure, alt)


def cache_bars(rows: Sequence[tuple[str, int, int]]) -> Picture:
    """Cache bytes of one token: as a model is, and as if every query head had its own key head.

    rows: name, bytes as it is, bytes with as many key heads as query heads.
    """
    figure, axes = subplots(height=0.34 * len(rows) + 0.9, width=8.2)
    places = range(len(rows))
    shared, full = ([row[index] / 1024 for row in rows] for index in (1, 2))
    axes.barh(places, full, color=PALE, edgecolor=GREY, label="a key head for every query head")
    axes.barh(places, shared, color=BLUE, height=0.5, label="as the model is")
    for place, small, large in zip(places, shared, full, strict=True):
        ratio = f"{large / small:.3g}× less" if large > small else "nothing shared"
        axes.text(large * 1.06, place, f"{small:,.4g} KiB, {ratio}", va="center", fontsize=8)
    axes.set_yticks(places, [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="KiB per token, bf16", xlim=(4, 9 * max(full)))
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:,g}")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8)
    smallest, largest = min(rows, key=lambda row: row[1]), max(rows, key=lambda row: row[1])
    return Picture(
        figure,
        f"Cache bytes per token of {len(rows)} models on a logarithmic scale, as they are and as if no key "
        f"head were shared. The smallest is {smallest[0]} with {smallest[1] / 1024:,.4g} KiB, the largest "
        f"{largest[0]} with {largest[1] / 1024:,.4g} KiB.",
    )


def bytes_read(
    title: str, weight_bytes: int, caches: dict[str, int], lengths: Sequence[int], batch: int
) -> Picture:
    """What one decoding step has to read from memory, by the length of the texts.

    weight_bytes: read once for the whole batch. caches: title -> cache bytes of one token of one row.
    """
    figure, axes = subplots(width=7.6, height=2.9)
    for (name, per_token), colour in zip(caches.items(), (ORANGE, BLUE, GREEN, PINK), strict=False):
        gigabytes = [(weight_bytes + batch * length * per_token) / 2**30 for length in lengths]
        axes.plot(lengths, gigabytes, marker="o", color=colour, label=name)
    axes.axhline(weight_bytes / 2**30, color=INK, linestyle=":", label="the weights alone")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:,g}")
    axes.minorticks_off()
    axes.set(xlabel="tokens seen", ylabel="GiB read per step", title=f"{title}, batch of {batch}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return Picture(
        figure,
        f"GiB that one decoding step of {title} reads, against the length of the texts, for a batch of "
        f"{batch}: the weights alone, and with the caches of {', '.join(caches)}. The more key heads, the "
        "sooner the cache is larger than the weights.",
    )
