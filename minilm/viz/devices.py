"""One model on several devices: who holds which numbers, and what they send each other."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from minilm.viz.picture import BLUE, CYCLE, GREEN, GREY, INK, ORANGE, PALE, Picture, subplots

OPERATIONS = {"all-reduce": BLUE, "all-gather": ORANGE, "reduce-scatter": GREEN}
STATES = {"weights": BLUE, "gradients": ORANGE, "optimizer": GREEN}


def cut_matrices(branches: Mapping[str, Mapping[str, tuple[int, int, str | None]]], devices: int) -> Picture:
    """The matrices of a block, cut for some devices; after each branch stands its sum.

    branches: by name, the matrices in the order of computing: outputs, inputs, and what is cut: "outputs",
              "inputs", or None for a matrix that every device has whole.
    """
    largest = max(size for branch in branches.values() for sizes in branch.values() for size in sizes[:2])
    scale, x, sums = 3.0 / largest, 0.3, []
    figure, axes = subplots(width=8.6, height=3.2)
    for branch, matrices in branches.items():
        start = x
        for name, (outputs, inputs, side) in matrices.items():
            width, height = max(inputs * scale, 0.3), max(outputs * scale, 0.3)
            pieces(axes, x, width, height, side, devices)
            does = {"outputs": "reads", "inputs": "writes", None: ""}[side]
            axes.text(x + width / 2, -1.6, f"{name}\n{does}", ha="center", va="top", fontsize=8)
            x += width + 0.4
        axes.text((start + x - 0.4) / 2, 1.75, branch, ha="center", fontsize=10)
        if any(side == "inputs" for *_, side in matrices.values()):
            axes.scatter([x], [0], s=300, color="white", edgecolor=INK, zorder=3)
            axes.text(x, 0, "+", ha="center", va="center", fontsize=14, zorder=4)
            axes.text(x, -1.6, "all-\nreduce", ha="center", va="top", fontsize=8)
            sums.append(list(matrices)[-1])
        x += 0.9
    axes.set(xlim=(0, x - 0.3), ylim=(-2.3, 2.1), aspect="equal")
    axes.set_axis_off()
    names = [Patch(color=CYCLE[device % len(CYCLE)], label=f"device {device}") for device in range(devices)]
    if any(side is None for matrices in branches.values() for *_, side in matrices.values()):
        names = [*(names if sums else []), Patch(color=PALE, label="on every device")]
    figure.legend(handles=names, loc="outside upper center", ncols=len(names))
    cut = "cut across where they read the stream, upright where they write to it" if sums else "none is cut"
    after = f", and an all-reduce after {' and after '.join(sums)}" if sums else ""
    return Picture(
        figure,
        "The matrices of a block, outputs from top to bottom, inputs from left to right, in the colours of "
        f"{devices} device{'s' * (devices > 1)}: {cut}{after}.",
    )


def pieces(axes: Axes, x: float, width: float, height: float, side: str | None, devices: int) -> None:
    """One matrix in the colours of those who hold a part of it."""
    parts = devices if side else 1
    across, along = (width / parts, height) if side == "inputs" else (width, height / parts)
    for device in range(parts):
        left = x + device * across * (side == "inputs")
        bottom = height / 2 - along - device * along * (side == "outputs")
        colour = CYCLE[device % len(CYCLE)] if side else PALE
        axes.add_patch(Rectangle((left, bottom), across, along, facecolor=colour, edgecolor="white"))


def bytes_per_device(parameters: float, devices: Sequence[int], title: str = "") -> Picture:
    """What each device stores in training, in gigabytes: with copies of all, and with FSDP.

    Weights and gradients take 4 bytes a parameter, Adam's two averages 8.
    """
    sizes = {"weights": 4 * parameters, "gradients": 4 * parameters, "optimizer": 8 * parameters}
    figure, panels = subplots(1, 2, height=2.6, sharey=True)
    for axes, name in zip(panels, ("every device has a copy", "FSDP: every device has a part"), strict=True):
        bottom = [0.0] * len(devices)
        for kind, size in sizes.items():
            heights = [size / 1e9 / (number if "FSDP" in name else 1) for number in devices]
            axes.bar(range(len(devices)), heights, bottom=bottom, color=STATES[kind], label=kind)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axes.axhline(80, color=INK, linewidth=1, linestyle="--")
        axes.set_xticks(range(len(devices)), devices)
        axes.set(xlabel="devices", title=name)
    panels[0].set(ylabel="gigabytes on each device")
    panels[1].text(len(devices) - 0.5, 80, "a card of 80 GB", ha="right", va="bottom", fontsize=8)
    panels[1].legend()
    figure.suptitle(title, fontsize=10)
    each = sum(sizes.values()) / 1e9
    return Picture(
        figure,
        f"What each device stores in training. With copies it is {each:,.0f} GB however many there are; with "
        f"FSDP it falls to {each / max(devices):,.0f} GB on each of {max(devices)}. Half is the optimizer's.",
    )


def messages(runs: Mapping[str, Sequence[Mapping]]) -> Picture:
    """Every collective operation of a forward and a backward pass, in their order and as high as it is large.

    runs: by title, the operations as notebooks/two_devices.py writes them.
    """
    figure, panels = subplots(len(runs), 1, height=2.2 * len(runs), squeeze=False)
    words = []
    for axes, (title, sent) in zip(panels[:, 0], runs.items(), strict=True):
        heights = [each["bytes"] / 1024 for each in sent]
        axes.bar(range(len(sent)), heights, color=[OPERATIONS[each["operation"]] for each in sent])
        turn = sum(each["phase"] == "forward" for each in sent)
        axes.axvline(turn - 0.5, color=GREY, linewidth=1, linestyle="--")
        for place, way in ((turn / 2 - 0.5, "forward"), ((turn + len(sent)) / 2 - 0.5, "backward")):
            axes.text(place, 1.02, way, transform=axes.get_xaxis_transform(), ha="center", fontsize=8)
        axes.set(
            ylabel="KB",
            title=f"{title}: {turn} forward, {len(sent) - turn} backward\n",
            xlim=(-0.7, len(sent) - 0.3),
        )
        axes.set_xticks(range(turn), [short_name(each["module"]) for each in sent[:turn]], rotation=90)
        axes.tick_params(axis="x", labelsize=7)
        kinds = dict.fromkeys(each["operation"] for each in sent)
        words.append(
            f"{title}: {turn} on the way forward and {len(sent) - turn} back, {' and '.join(kinds)}."
        )
    handles = [Patch(color=colour, label=name) for name, colour in OPERATIONS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return Picture(
        figure, f"Collective operations in their order, each as high as its tensor. {' '.join(words)}"
    )


def short_name(module: str) -> str:
    """decoder.layers.3.mlp as "3 mlp"; the whole model, "the rest"."""
    return module.removeprefix("decoder.").removeprefix("layers.").replace(".", " ") or "the rest"
