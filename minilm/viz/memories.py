"""Pictures of cross-attention: where a memory enters a block, who reads which place, what is read once."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from torch import Tensor, nn

from minilm import parity
from minilm.cache import DynamicCache
from minilm.heads import CausalLM
from minilm.table import Table
from minilm.viz.cache import KEPT, NEW, cell
from minilm.viz.comparison import in_words
from minilm.viz.decoder import box
from minilm.viz.picture import AMOUNT, GREY, INK, ORANGE, SKY, Picture, subplots

STREAM, BRANCH, SOURCE = 0.5, 2.0, 3.4  # heights in the drawing of a block: stream, branches, memory
LENGTHS = {"text": (7, 11, 9), "memory": (5, 8, 3)}  # the real places of each row of a comparison


def arrow(axes: Axes, *path: tuple[float, float], colour: str = INK, width: float = 1.0) -> None:
    """A line through some points with a head at its end."""
    axes.plot(*zip(*path, strict=True), color=colour, linewidth=width)
    head = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", path[-1], path[-2], arrowprops=head)


def block_with_memory() -> Picture:
    """One block that reads a memory: three branches of the residual stream, the middle one with a guest."""
    figure, axes = subplots(width=8.6, height=2.6)
    axes.set(xlim=(0, 14.4), ylim=(0.1, 4.0))
    axes.set_axis_off()
    arrow(axes, (0.3, STREAM), (14.1, STREAM), width=2.0)
    axes.text(0.3, STREAM + 0.3, "text", fontsize=8.5)
    names = ("self-attention", "cross-attention", "MLP")
    for start, width, name in zip((1.2, 5.6, 10.4), (2.0, 2.2, 1.0), names, strict=True):
        norm, work = start + 0.75, start + 1.75 + width / 2
        is_lit = name == "cross-attention"
        arrow(axes, (start, STREAM), (start, BRANCH), (norm - 0.4, BRANCH))
        arrow(axes, (norm + 0.4, BRANCH), (work - width / 2, BRANCH))
        end = work + width / 2 + 0.35
        arrow(axes, (work + width / 2, BRANCH), (end, BRANCH), (end, STREAM + 0.22))
        box(axes, norm, BRANCH, 0.75, "norm", is_lit=False)
        box(axes, work, BRANCH, width, name, is_lit)
        axes.scatter([end], [STREAM], s=110, color="white", edgecolor=INK, zorder=3)
        axes.text(end, STREAM, "+", ha="center", va="center", zorder=4, fontsize=10)
        if is_lit:
            axes.text((norm + 0.4 + work - width / 2) / 2, BRANCH - 0.5, "queries", fontsize=8, ha="center")
            for place in range(5):
                left = work - 1.25 + 0.5 * place
                axes.add_patch(Rectangle((left, SOURCE), 0.46, 0.42, facecolor=SKY, edgecolor=INK, lw=0.6))
            axes.text(work - 1.4, SOURCE + 0.2, "memory", ha="right", va="center", fontsize=8.5)
            arrow(axes, (work, SOURCE - 0.05), (work, BRANCH + 0.3), colour=ORANGE, width=2.0)
            axes.text(work + 0.15, BRANCH + 0.75, "keys, values", fontsize=8, va="center")
    return Picture(
        figure,
        "One block from left to right. Self-attention, cross-attention and the MLP each read the residual "
        "stream of the text and add to it. Cross-attention, lit, takes its queries from the stream as well, "
        "and its keys and values from the places of a memory, which comes from outside.",
    )


def reading_maps(
    panels: Mapping[str, tuple[Float[Tensor, "query memory"], Sequence[str]]],
    places: Sequence[str],
    alt: str,
    real: int | None = None,
) -> Picture:
    """Which token of a text reads which place of a memory.

    panels: title -> the weights, and what to write beside each row (nothing: as in the first panel).
    places: what the memory holds, written below its columns. real: how many are no padding; None = all.
    """
    rows = max(len(weights) for weights, _ in panels.values())
    margin = 1.5 + sum(0.9 if labels else 0.2 for _, labels in panels.values())
    side = min(0.27, (8.8 - margin) / (len(places) * len(panels)))  # of one cell
    width, height = margin + side * len(places) * len(panels), side * rows + 0.9
    figure, grid = subplots(1, len(panels), width=width, height=height, squeeze=False)
    for axes, (title, (weights, labels)) in zip(grid[0], panels.items(), strict=True):
        image = axes.imshow(weights.detach().float(), cmap=AMOUNT, vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks(range(len(places)), places, family="monospace", fontsize=9 if side > 0.2 else 7.5)
        axes.set_yticks(range(len(labels)), labels, family="monospace", fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("place of the memory")
        if real is not None and real < len(places):
            axes.add_patch(Rectangle((real - 0.5, -0.5), len(places) - real, len(weights), facecolor="white",
                                     edgecolor=GREY, hatch="////", linewidth=0))  # fmt: skip
    grid[0, 0].set_ylabel("token read → written")
    figure.colorbar(image, ax=grid, label="attention weight", shrink=0.8)
    return Picture(figure, alt)


def filled_once(
    places: Sequence[str], tokens: Sequence[str], computed: Sequence[tuple[int, int]], alt: str
) -> Picture:
    """What a model makes keys and values of in each call: places of the memory on the left, tokens on the
    right.

    computed: of each call, how many places and how many tokens were projected; the rest came from the cache.
    """
    gap = len(places) + 1
    figure, axes = subplots(width=8.4, height=0.3 * len(computed) + 0.8)
    seen = (0, 0)
    for row, new in enumerate(computed):
        for start, words, before, count in zip((0, gap), (places, tokens), seen, new, strict=True):
            for slot, word in enumerate(words):
                there = slot < before + count
                colour = None if not there else NEW if slot >= before else KEPT
                cell(axes, start + slot, -row, word if there else "", colour)
        seen = seen[0] + new[0], seen[1] + new[1]
        axes.text(-0.8, -row, f"call {row + 1}", ha="right", va="center", fontsize=8)
    axes.text((len(places) - 1) / 2, 0.75, "the memory", ha="center", fontsize=9)
    axes.text(gap + (len(tokens) - 1) / 2, 0.75, "the text", ha="center", fontsize=9)
    axes.set(xlim=(-2.6, gap + len(tokens)), ylim=(-len(computed) + 0.4, 1.3))
    axes.set_axis_off()
    legend = [Patch(facecolor=NEW, edgecolor=INK, label="projected in this call"),
              Patch(facecolor=KEPT, edgecolor=INK, label="from the cache")]  # fmt: skip
    figure.legend(handles=legend, loc="outside lower center", ncols=2, fontsize=8)
    return Picture(figure, alt)


def padded(lengths: Sequence[int], side: str) -> Bool[Tensor, "batch places"]:
    """True where a row is real; side "none" makes all rows as long as the longest."""
    places, longest = torch.arange(max(lengths)), max(lengths)
    rows = {"right": lambda n: places < n, "left": lambda n: places >= longest - n,
            "none": lambda n: places >= 0}  # fmt: skip
    return torch.stack([rows[side](n) for n in lengths])


@torch.no_grad()
def memory_difference(
    ours: CausalLM, theirs: nn.Module, text: str, memory: str, steps: tuple[int, ...]
) -> float:
    """The largest difference of a logit at real tokens, of texts and memories padded on these sides.

    theirs: a model of transformers with the same weights. steps: how many tokens each call reads.
    """
    draw = torch.Generator().manual_seed(0)
    mask, real = padded(LENGTHS["text"], text).long(), padded(LENGTHS["memory"], memory).long()
    ids = torch.randint(1, ours.config.vocab_size, mask.shape, generator=draw)
    states = torch.randn(*real.shape, ours.config.hidden_size, generator=draw).to(ours.dtype)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    keep = (
        len(steps) > 1
    )  # without a need for a cache none is used: keys in a buffer may be multiplied otherwise
    cache, held, worst, start = DynamicCache(ours.config) if keep else None, None, 0.0, 0
    for size in steps:
        new, end = slice(start, start + size), start + size
        read = {"memory": states, "memory_mask": real} if start == 0 else {}
        found = ours(ids[:, new], attention_mask=mask[:, :end], cache=cache, **read).logits
        out = theirs(
            ids[:, new], attention_mask=mask[:, :end], position_ids=positions[:, new], past_key_values=held,
            encoder_hidden_states=states, encoder_attention_mask=real, use_cache=keep,
        )  # fmt: skip
        apart = (found - out.logits)[mask[:, new].bool()].abs()
        worst, held, start = max(worst, *apart.flatten().tolist()), out.past_key_values, end
    return worst


def compare_memories(pair: Callable[[torch.dtype], tuple[CausalLM, nn.Module]]) -> Table:
    """Cross-attention beside transformers': the largest difference of a logit, for all kinds of padding.

    pair: makes our model and the reference with the same weights in a dtype.
    """
    ways = {"one shot": (11,), "token by token": (1,) * 11}
    rows = {side: [side] for side in parity.PADDINGS}
    for dtype in parity.DTYPES.values():
        ours, theirs = pair(dtype)
        for row, steps in ((row, steps) for row in rows.values() for steps in ways.values()):
            with parity.one_thread():
                found = [memory_difference(ours, theirs, text, row[0], steps) for text in parity.PADDINGS]
            row.append(in_words(max(found), close=0.0))
    return Table(["memory padded", *(f"{way}, {name}" for name in parity.DTYPES for way in ways)],
                 rows.values())  # fmt: skip
