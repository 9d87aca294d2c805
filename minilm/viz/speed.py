"""Pictures of measured speed: the roofline, curves of several machines, what a pass spends its time on."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.ticker import LogLocator
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from minilm import describe, parity
from minilm.config import ModelConfig
from minilm.course.curves import Curves, Measured
from minilm.measure import Device, seconds
from minilm.table import Table
from minilm.viz.comparison import by_family
from minilm.viz.picture import BLUE, CYCLE, GREY, INK, ORANGE, PALE, SILVER, Picture, subplots

MARKERS = "osD^vPX*"
LINES = (
    "--",
    ":",
    "-.",
    (0, (1, 3)),
)  # of machines that kept their curves; the reader's own has none of these


class Operation(NamedTuple):
    """Something that a machine computes: how much arithmetic, how many bytes, and in what time.

    seconds: None where it was not measured; a picture then shows what the machine allows.
    """

    name: str
    flops: float
    bytes_moved: float
    seconds: float | None = None

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.flops / self.bytes_moved

    def allowed(self, peak: float, bandwidth: float) -> float:
        """The operations per second that the machine allows: those of its roof above this intensity."""
        return min(peak, self.intensity * bandwidth)


def roofline(title: str, peak: float, bandwidth: float, operations: Sequence[Operation]) -> Picture:
    """The roof of a machine, and where operations lie below it.

    peak: operations per second. bandwidth: bytes per second.
    """
    ridge = peak / bandwidth
    figure, axes = subplots(height=3.6)
    reach = [each.intensity for each in operations] + [ridge / 16, ridge * 16]
    left, right = min(reach) / 2, max(reach) * 2
    axes.plot([left, ridge, right], [left * bandwidth, peak, peak], color=INK, linewidth=1.5)
    axes.axvspan(left, ridge, color=PALE, alpha=0.5, linewidth=0)
    for x, y, words in ((left, 0.93, " memory decides"), (ridge, 0.02, " arithmetic decides")):
        axes.text(x, y, words, transform=axes.get_xaxis_transform(), fontsize=8, color=INK)
    for index, each in enumerate(operations):
        found = each.allowed(peak, bandwidth) if each.seconds is None else each.flops / each.seconds
        colour = CYCLE[index % len(CYCLE)]
        axes.vlines(each.intensity, found, each.allowed(peak, bandwidth), color=colour, linestyle=":")
        axes.plot(
            [each.intensity], [found], MARKERS[index % len(MARKERS)], markersize=8, linestyle="none",
            color=colour, markerfacecolor="white" if each.seconds is None else colour, label=each.name,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(left, right), title=title)
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, place: f"{value / 1e9:g}")
    axes.minorticks_off()
    axes.set(xlabel="FLOPs for each byte moved", ylabel="GFLOP/s")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    bound = [each.name for each in operations if each.intensity < ridge]
    return Picture(
        figure,
        f"Roofline of {title}: a slope where memory decides, up to {ridge:.0f} FLOPs for each byte, and a "
        f"flat roof where arithmetic does. {len(bound)} of {len(operations)} operations lie left of the "
        "corner; a dotted line shows how far each is below the roof.",
    )


def machines(
    own: Curves | None,
    kept: Sequence[Measured],
    labels: tuple[str, str],
    alt: str,
    own_title: str = "here, now",
    log_y: bool = True,
) -> Picture:
    """Curves that were just measured, drawn through, and beside them those of all machines that kept theirs.

    own:    name -> points; of the kept ones those of the same names are drawn. None: all that were kept.
            What stands behind a comma in a name tells a lab's curves apart, such as a unit; it is not shown.
    labels: of the axes, what was varied and what was measured. A name has one colour on every machine.
    """
    every = [] if own is None else [(own_title, own)]
    for each in kept:
        every.append((each.title, {x: y for x, y in each.curves.items() if own is None or x in own}))
    names = list(dict.fromkeys(name for _, curves in every for name in curves))
    figure, axes = subplots(height=3.3)
    for place, (title, curves) in enumerate(every):
        is_own = own is not None and place == 0
        line = "-" if is_own else LINES[(place - (own is not None)) % len(LINES)]
        for name, points in curves.items():
            axes.plot(
                *zip(*points, strict=True), color=CYCLE[names.index(name) % len(CYCLE)], linestyle=line,
                marker="o" if is_own else None, markersize=4, label=f"{name.split(',')[0]} ({title})",
            )  # fmt: skip
    sizes = sorted({size for _, curves in every for points in curves.values() for size, _ in points})
    axes.set_xscale("log", base=2)
    labels_of_sizes = [f"{size:,.0f}" if size >= 1000 else f"{size:g}" for size in sizes]
    is_crowded = sum(map(len, labels_of_sizes)) > 35
    axes.set_xticks(sizes, labels_of_sizes, rotation=45 if is_crowded else 0)
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    else:
        axes.set_ylim(0, None)
    axes.minorticks_off()
    axes.set(xlabel=labels[0], ylabel=labels[1])
    figure.legend(loc="outside right upper", fontsize=8)
    return Picture(figure, alt)


def bars(
    values: Mapping[str, float], label: str, alt: str, limit: tuple[str, float] | None = None
) -> Picture:
    """One number for each name, as bars; limit: a name and a number that no bar should pass."""
    figure, axes = subplots(height=0.32 * len(values) + 0.9)
    places = range(len(values))
    axes.barh(places, values.values(), color=BLUE, height=0.7)
    for place, value in zip(places, values.values(), strict=True):
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # where the line of the limit passes
        axes.annotate(f"{value:.3g}", (value, place), (4, 0), textcoords="offset points", va="center",
                      fontsize=8, bbox=behind)  # fmt: skip
    if limit is not None:
        axes.axvline(limit[1], color=ORANGE, linewidth=2, label=limit[0])
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)
    axes.set_yticks(places, values)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel=label)
    return Picture(figure, alt)


class Share(NamedTuple):
    """An operation's part of the time."""

    name: str
    calls: float  # in one run
    share: float


def operation_shares(run: Callable[[], object], runs: int = 4, device: Device = "cpu") -> list[Share]:
    """Which operations a run spends its time in, the longest first, by torch's profiler.

    Each operation's own time counts, without that of operations it calls.
    """
    on_gpu = torch.device(device).type == "cuda"
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    run()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it announces itself on stderr
    with profile(activities=kinds) as watched:
        seconds(run, device, runs)
    time_of = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # On a GPU the profiler lists every kernel again beside the operation that started it, which has its time.
    operations = [event for event in watched.key_averages() if event.device_type == DeviceType.CPU]
    events = [event for event in operations if getattr(event, time_of) > 0]
    total = sum(getattr(event, time_of) for event in events)
    shares = [Share(event.key, event.count / runs, getattr(event, time_of) / total) for event in events]
    return sorted(shares, key=lambda each: -each.share)


def top_operations(shares: Mapping[str, Sequence[Share]], count: int = 6) -> Table:
    """The operations with the largest shares of several runs: title -> from operation_shares."""
    rows = []
    for title, found in shares.items():
        for each in found[:count]:
            name = each.name if len(each.name) <= 48 else each.name[:47] + "…"
            rows.append([title, name, f"{each.calls:g}", f"{each.share:.0%}"])
        rest = 1 - math.fsum(each.share for each in found[:count])
        rows.append([title, f"{max(len(found) - count, 0)} others", "", f"{rest:.0%}"])
    return Table(["run", "operation", "calls", "share of the time"], rows)


def compare_flops(describe_family: Callable[[ModelConfig], str], length: int = 12) -> Table:
    """The FLOPs of one decoded token in every family: from the config, and counted while transformers runs.

    torch's FlopCounterMode watches every product of matrices, with a small model of each family.
    """

    @torch.no_grad()
    def cells(config: ModelConfig, directory: Path) -> list[str]:
        reference = parity.load_reference(directory, torch.float32)
        ids = torch.arange(length)[None] % config.vocab_size
        past = reference(ids[:, :-1], use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            reference(ids[:, -1:], past_key_values=past)
        counted, found = describe.flops_per_token(config, length), counter.get_total_flops()
        return [describe_family(config), f"{counted:,}", f"{found:,}", f"{found - counted:,}"]

    return by_family(["here", "from the config", "while it runs", "difference"], cells)


def grouped_bars(
    groups: Mapping[str, Mapping[str, float]], label: str, alt: str, limit: tuple[str, float] | None = None
) -> Picture:
    """A bar for every name within every group; names that begin with "limit" are grey, for nothing was run.

    groups: title -> names -> numbers. limit: a name and a number that no bar should pass.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure, axes = subplots(height=0.3 * sum(map(len, groups.values())) + 1.0)
    place, ticks, seen = 0.0, [], set()
    for group in groups.values():
        ticks.append(place + (len(group) - 1) / 2)
        for name, value in group.items():
            colour = SILVER if name.startswith("limit") else CYCLE[names.index(name) % len(CYCLE)]
            hatch = "///" if name == names[-1] and colour == SILVER else None
            is_new = name not in seen
            seen.add(name)
            axes.barh(place, value, color=colour, hatch=hatch, edgecolor="white", height=0.85,
                      label=name if is_new else None)  # fmt: skip
            axes.text(value, place, f" {value:.3g}", va="center", fontsize=8)
            place += 1
        place += 0.6
    if limit is not None:
        axes.axvline(limit[1], color=GREY, linewidth=2, linestyle="--", label=limit[0])
    axes.set_yticks(ticks, groups)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel=label)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    return Picture(figure, alt)
