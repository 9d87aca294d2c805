"""Pictures of what flows through a model: sizes of vectors, what rounding does, and the neurons of MLPs."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from minilm.heads import CausalLM
from minilm.viz.picture import AMOUNT, BLUE, GREY, INK, ORANGE, PALE, SIGNED, Picture, subplots


def root_mean_square(x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
    """The size of each vector: what one of its numbers amounts to, whatever their sign."""
    return x.float().pow(2).mean(-1).sqrt()


def clouds(panels: Mapping[str, Float[Tensor, "points 2"]], alt: str) -> Picture:
    """The same points of the plane in several panels, before and after something was done to them.

    A point keeps its colour, which says how long its vector is in the first panel.
    """
    first = next(iter(panels.values()))
    figure, axes = subplots(1, len(panels), width=8.4, height=2.5, squeeze=False)
    reach = 1.1 * max(points.abs().max().item() for points in panels.values())
    for each, (title, points) in zip(axes[0], panels.items(), strict=True):
        each.axhline(0, color=PALE, linewidth=0.8, zorder=0)
        each.axvline(0, color=PALE, linewidth=0.8, zorder=0)
        each.scatter(*points.T, c=first.norm(dim=-1), cmap=AMOUNT, s=13, linewidths=0)
        each.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        each.set_xlabel("first number")
    axes[0][0].set_ylabel("second number")
    return Picture(figure, alt)


def size_in_size_out(
    norms: Mapping[str, Callable[[Tensor], Tensor]], marks: Mapping[str, float], alt: str
) -> Picture:
    """How large the results of norms are, for vectors from very small to large.

    norms: title -> a function of vectors. marks: input sizes to mark, by what they are.
    """
    sizes = torch.logspace(-8, 2, 121)
    vectors = sizes[:, None] * torch.tensor([1.0, -1.0]).repeat(32)  # every number is ±size
    figure, axes = subplots(height=2.6)
    for title, mark in marks.items():
        axes.axvline(mark, color=GREY, linewidth=0.8, linestyle=":")
        axes.text(mark, 2e-6, f" {title}", color=INK, fontsize=8)
    for title, norm in norms.items():
        axes.plot(sizes, root_mean_square(norm(vectors)), label=title, linewidth=2)
    axes.set(xscale="log", yscale="log", ylim=(1e-6, 4))
    axes.set(xlabel="size of the vector before (root mean square)", ylabel="size after")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, alt)


@torch.no_grad()
def stream_sizes(
    model: CausalLM, input_ids: Int[Tensor, "1 length"]
) -> tuple[Float[Tensor, "depth length"], Float[Tensor, "depth length"]]:
    """The size of every token's vector before each block and before the output head.

    Returns: in the residual stream, and after the norm that the next part reads it through.
    """
    stream, read, handles = [], [], []

    def keep(_, inputs, output):
        stream.append(root_mean_square(inputs[0][0]))
        read.append(root_mean_square(output[0]))

    for norm in (*(block.attention_norm for block in model.decoder.layers), model.decoder.final_norm):
        handles.append(norm.register_forward_hook(keep))
    model(input_ids)
    for handle in handles:
        handle.remove()
    return torch.stack(stream), torch.stack(read)


def streams(
    sizes: Mapping[str, tuple[Float[Tensor, "depth length"], Float[Tensor, "depth length"]]], alt: str
) -> Picture:
    """How the residual stream grows with depth, beside what the blocks read of it: a panel for each model.

    sizes: title -> from stream_sizes. Bands hold all tokens but the first, which has a line of its own.
    """
    figure, axes = subplots(1, len(sizes), width=min(3.4 + 2 * len(sizes), 8.6), sharey=True, squeeze=False)
    for each, (title, both) in zip(axes[0], sizes.items(), strict=True):
        depth = range(len(both[0]))
        kinds = zip(both, (BLUE, ORANGE), ("residual stream", "what is read"), strict=True)
        for table, colour, label in kinds:
            others = table[:, 1:]
            each.fill_between(depth, others.amin(1), others.amax(1), color=colour, alpha=0.25, linewidth=0)
            each.plot(depth, others.median(1).values, color=colour, linewidth=2, label=label)
            each.plot(depth, table[:, 0], color=colour, linewidth=1, linestyle="--")
        each.set(title=title, yscale="log", xlabel="blocks before")
        each.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes[0][0].set_ylabel("root mean square")
    axes[0][-1].plot([], [], color=GREY, linewidth=1, linestyle="--", label="the first token")
    axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, alt)


def rounding_errors(
    results: Mapping[str, Float[Tensor, "..."]], exact: Float[Tensor, "..."], significant_bits: int, alt: str
) -> Picture:
    """How far results lie from the exact ones, in steps of the grid that they are rounded to.

    results: title -> what one order of computing gives. significant_bits: of the grid, 8 for bf16.
    """
    step = 2.0 ** (exact.double().abs().log2().floor() - significant_bits + 1)
    edges = torch.arange(0, 2.51, 0.1)
    figure, axes = subplots(height=2.5)
    for (title, result), style in zip(results.items(), ("-", "--", ":"), strict=False):
        off = ((result.double() - exact.double()).abs() / step).flatten()
        share = torch.histc(off.clamp(max=2.499), bins=25, min=0.0, max=2.5) / off.numel()
        axes.stairs(100 * share, edges, label=title, linewidth=2, linestyle=style)
    axes.axvline(0.5, color=GREY, linewidth=0.8)
    axes.set(xlabel="error, in steps of the grid", ylabel="% of all results", xlim=(0, 2.5))
    axes.legend(loc="upper right")
    return Picture(figure, alt)


def bends(neurons: int) -> Picture:
    """A curve made of straight pieces: a sum of hinges, one for each neuron of a small MLP with ReLU."""
    corners = torch.linspace(-3, 3, neurons + 1)
    heights = (2 * corners).sin() + corners / 2
    slopes = heights.diff() / corners.diff()
    x = torch.linspace(-3, 3, 301)
    # The first hinge brings a slope, each later one the change of slope at its corner.
    changes = torch.cat((slopes[:1], slopes.diff()))
    hinges = changes[:, None] * (x - corners[:-1, None]).relu()
    figure, axes = subplots(1, 2, width=8.4, height=2.5)
    axes[0].plot(x, hinges.T, linewidth=1)
    axes[0].set(title=f"what each of {neurons} neurons adds", xlabel="input", ylabel="added to the output")
    axes[1].plot(x, (2 * x).sin() + x / 2, color=GREY, linestyle="--", label="wanted")
    axes[1].plot(x, heights[0] + hinges.sum(0), color=BLUE, label="their sum")
    axes[1].set(title="their sum, with a bias", xlabel="input", ylim=(-3, 3))
    axes[1].legend(loc="upper left")
    return Picture(
        figure,
        f"Left: {neurons} hinges, each flat up to its corner and straight after it. Right: their sum, a line "
        "of straight pieces along a wavy curve. The more neurons, the closer it lies.",
    )


def curves(functions: Mapping[str, Callable[[Tensor], Tensor]], alt: str, reach: float = 4.0) -> Picture:
    """Functions of one number and, on the right, their slopes."""
    x = torch.linspace(-reach, reach, 401, requires_grad=True)
    figure, axes = subplots(1, 2, width=8.4, height=2.6)
    for (title, function), style in zip(functions.items(), ("-", "--", "-.", ":"), strict=False):
        y = function(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        axes[0].plot(x.detach(), y.detach(), label=title, linestyle=style, linewidth=2)
        axes[1].plot(x.detach(), slope, label=title, linestyle=style, linewidth=2)
    for each, title in zip(axes, ("value", "slope"), strict=True):
        each.axhline(0, color=PALE, linewidth=0.8, zorder=0)
        each.axvline(0, color=PALE, linewidth=0.8, zorder=0)
        each.set(title=title, xlabel="x")
    axes[0].legend(loc="upper left")
    return Picture(figure, alt)


def gate_planes(functions: Mapping[str, Callable[[Tensor, Tensor], Tensor]], alt: str) -> Picture:
    """What several ways to join a gate and an up value give, as colours on the plane of both.

    functions: title -> a function of gate and up.
    """
    values = torch.linspace(-4, 4, 81)
    gate, up = values[None, :].expand(81, 81), values[:, None].expand(81, 81)
    figure, axes = subplots(1, len(functions), width=8.6, height=2.2, squeeze=False, sharey=True)
    for each, (title, function) in zip(axes[0], functions.items(), strict=True):
        each.imshow(function(gate, up), cmap=SIGNED, vmin=-8, vmax=8, extent=(-4, 4, -4, 4), origin="lower")
        each.axvline(0, color=INK, linewidth=0.5)
        each.axhline(0, color=INK, linewidth=0.5)
        each.set_title(title, fontsize=8.5)
        each.set_xticks([-4, 0, 4])
        each.set_xlabel("gate")
    axes[0][0].set_ylabel("up")
    figure.colorbar(axes[0][0].images[0], ax=axes[0], label="result", shrink=0.8)
    return Picture(figure, alt)


@torch.no_grad()
def neuron_values(
    model: CausalLM, input_ids: Int[Tensor, "1 length"]
) -> Float[Tensor, "layers intermediate length"]:
    """What every neuron of every MLP hands to down_proj, at each token."""
    kept, handles = [], []
    for block in model.decoder.layers:
        hook = block.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0][0].T))
        handles.append(hook)
    model(input_ids)
    for handle in handles:
        handle.remove()
    return torch.stack(kept)


@torch.no_grad()
def neurons_at_work(
    model: CausalLM, input_ids: Int[Tensor, "1 length"], part: float = 0.9
) -> Float[Tensor, " layers"]:
    """The share of neurons that makes up this part of what an MLP writes, in the mean over tokens.

    What a neuron writes is its value times its column of down_proj; sizes are compared by their squares.
    """
    columns = torch.stack([block.mlp.down_proj.weight.norm(dim=0) for block in model.decoder.layers])
    written = (neuron_values(model, input_ids) * columns[..., None]).float().pow(2)
    summed = written.sort(dim=1, descending=True).values.cumsum(dim=1)
    needed = (summed < part * summed[:, -1:]).sum(dim=1) + 1
    return needed.float().mean(-1) / written.shape[1]


def coloured_text(
    tokens: Sequence[str], strengths: Float[Tensor, " length"], alt: str, columns: int = 96
) -> Picture:
    """A text whose tokens are coloured by a number each: the larger, the darker; below zero stays white."""
    places, row, column = [], 0, 0
    for token in tokens:
        shown = token.replace("\n", "⏎")
        if column + len(shown) > columns:
            row, column, shown = row + 1, 0, shown.lstrip()
        places.append((row, column, shown))
        column += len(shown)
    figure, axes = subplots(width=8.6, height=0.24 * (row + 1) + 0.1)
    axes.set(xlim=(0, columns), ylim=(row + 0.6, -0.6))
    axes.set_axis_off()
    shares = (strengths / strengths.max().clamp(min=1e-9)).clamp(min=0).tolist()
    for (y, x, shown), share in zip(places, shares, strict=True):
        start = len(shown) - len(shown.lstrip())  # most tokens begin with a space
        axes.add_patch(
            Rectangle(
                (x + start, y - 0.45), len(shown) - start, 0.9, facecolor=ORANGE, alpha=share, linewidth=0
            )
        )
        for offset, letter in enumerate(shown):  # one by one, so that columns fit with any fixed-width font
            axes.text(x + offset + 0.5, y, letter, family="monospace", fontsize=9, ha="center", va="center")
    return Picture(figure, alt)
