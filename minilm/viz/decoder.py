"""The map: the whole decoder as a small drawing, with the part of a notebook lit."""

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from minilm.viz.picture import BLUE, GREY, INK, ORANGE, PALE, Picture, subplots

STREAM = 0.6  # the height of the residual stream in the drawing
# part -> the centre of its box, its width, what stands in it
PARTS = {
    "tokens": (0.65, STREAM, 1.1, "token ids"),
    "embedding": (2.1, STREAM, 1.45, "embedding"),
    "norm": (3.75, 2.1, 0.8, "norm"),
    "qkv": (4.85, 2.1, 0.9, "q  k  v"),
    "rope": (5.95, 2.1, 0.8, "RoPE"),
    "cache": (6.4, 3.3, 1.25, "KV cache"),
    "mask": (7.75, 3.3, 0.9, "mask"),
    "attention": (7.3, 2.1, 1.2, "attention"),
    "mlp_norm": (9.5, 2.1, 0.8, "norm"),
    "mlp": (10.65, 2.1, 0.9, "MLP"),
    "final_norm": (12.55, STREAM, 0.9, "norm"),
    "head": (13.75, STREAM, 0.9, "head"),
    "logits": (15.0, STREAM, 0.9, "logits"),
}
ADDED = {"residual": (8.45, 11.55)}  # where the branches join the stream again
ALSO = {
    "norm": ("norm", "mlp_norm", "final_norm"),
    "block": ("norm", "qkv", "rope", "attention", "mlp_norm", "mlp"),
}
ARROWS = [
    ((3.15, STREAM), (3.15, 2.1), (3.35, 2.1)),
    ((4.15, 2.1), (4.4, 2.1)),
    ((5.3, 2.1), (5.55, 2.1)),
    ((6.35, 2.1), (6.7, 2.1)),
    ((6.45, 3.0), (6.95, 2.4)),
    ((7.75, 3.0), (7.55, 2.4)),
    ((7.9, 2.1), (8.45, 2.1), (8.45, 0.82)),
    ((8.9, STREAM), (8.9, 2.1), (9.1, 2.1)),
    ((9.9, 2.1), (10.2, 2.1)),
    ((11.1, 2.1), (11.55, 2.1), (11.55, 0.82)),
]

# part -> the notebooks that build it, and where their numbers stand beside the box
BUILT_IN = {
    "tokens": ("02", "below"), "embedding": ("02", "below"), "norm": ("03", "below"),
    "qkv": ("07 08", "below"), "rope": ("05 06", "below"), "cache": ("10", "left"), "mask": ("09", "right"),
    "attention": ("07 08 11 12", "below"), "mlp_norm": ("03", "below"), "mlp": ("04", "below"),
    "final_norm": ("03", "below"), "head": ("02 16", "below"), "logits": ("15", "below"),
}  # fmt: skip
AROUND = [  # rows of notebooks that make a whole of the decoder
    ("14 · real checkpoints", "15 · it writes", "16 · labels, answers", "17 · it learns"),
    ("18 · reads a memory", "19 · its speed", "20 · flash on a GPU", "21 · many devices"),
]


def decoder_map(*lit: str) -> Picture:
    """The decoder from token ids to logits, with some of its parts lit.

    lit: of tokens, embedding, norm, qkv, rope, cache, mask, attention, residual, mlp, block, head, logits.
    """
    allowed = {*PARTS, *ALSO, *ADDED}
    for name in lit:
        if name not in allowed:
            raise ValueError(f"the map has no part {name!r}; it has {', '.join(sorted(allowed))}")
    shown = {part for name in lit for part in ALSO.get(name, (name,))}
    figure, axes = subplots(width=8.6, height=2.15)
    axes.set(xlim=(0, 15.6), ylim=(0, 4.0))
    draw(axes, shown)
    names = (
        " and ".join(dict.fromkeys([PARTS[name][3] if name in PARTS else name for name in lit])) or "nothing"
    )
    return Picture(
        figure,
        f"Map of the decoder from token ids to logits. Lit: {' '.join(names.split())}.",
    )


def course_map() -> Picture:
    """The decoder with the numbers of the notebooks that build each part, and what makes a whole of it."""
    figure, axes = subplots(width=8.6, height=3.6)
    axes.set(xlim=(0, 15.6), ylim=(-2.9, 4.0))
    draw(axes, set())
    style = {"fontsize": 8, "color": BLUE, "zorder": 5}
    for part, (numbers, side) in BUILT_IN.items():
        x, y, width, _ = PARTS[part]
        if side == "below":
            axes.text(x, y - 0.36, numbers, ha="center", va="top", **style)
        else:
            sign, align = (-1, "right") if side == "left" else (1, "left")
            axes.text(x + sign * (width / 2 + 0.12), y, numbers, ha=align, va="center", **style)
    for x in ADDED["residual"]:
        axes.text(x, STREAM - 0.22, "13", ha="center", va="top", **style)
    for row, titles in enumerate(AROUND):
        for column, title in enumerate(titles):
            box(axes, 1.95 + 3.9 * column, -0.75 - 0.8 * row, 3.55, title, is_lit=False)
    whole = "22 · assembled from your functions, it runs a real model and computes what transformers computes"
    box(axes, 7.8, -2.4, 15.25, whole, is_lit=True)
    return Picture(
        figure,
        "The decoder from token ids to logits, with the numbers of the notebooks that build each part, 02 to "
        "13. Below: real checkpoints, writing, other tasks, training, cross-attention and three labs, 14 to "
        "21; then 22, in which your functions together run a real model and compute what transformers does.",
    )


def draw(axes: Axes, shown: set[str]) -> None:
    """The decoder into a picture of 15.6 by 4 units; shown: the parts that are lit."""
    axes.set_axis_off()
    axes.add_patch(Rectangle((2.95, 0.1), 8.95, 3.75, facecolor="#fafafa", edgecolor=GREY, linestyle=":"))
    axes.text(11.8, 3.55, "one block; there are many", ha="right", va="center", color=INK, fontsize=8)
    axes.annotate("", (14.6, STREAM), (1.2, STREAM), arrowprops={"arrowstyle": "-", "color": INK, "lw": 2})
    for path in ARROWS:
        axes.plot(*zip(*path, strict=True), color=INK, linewidth=1)
        head = {"arrowstyle": "-|>", "color": INK, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", path[-1], path[-2], arrowprops=head)
    for x in ADDED["residual"]:
        axes.scatter(
            [x], [STREAM], s=110, color=ORANGE if "residual" in shown else "white", edgecolor=INK, zorder=3
        )
        axes.text(x, STREAM, "+", ha="center", va="center", zorder=4, fontsize=10)
    for part, place in PARTS.items():
        box(axes, *place, is_lit=part in shown)


def box(axes: Axes, x: float, y: float, width: float, label: str, is_lit: bool) -> None:
    """A part of the map."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - 0.28), width, 0.56, boxstyle="round,pad=0.02,rounding_size=0.12",
            facecolor=ORANGE if is_lit else PALE, edgecolor=INK, linewidth=1.6 if is_lit else 0.6, zorder=3,
        )
    )  # fmt: skip
    axes.text(x, y, label, ha="center", va="center", fontsize=8.5, zorder=4, color=INK,
              fontweight="bold" if is_lit else "normal")  # fmt: skip
