"""How reports look: in a terminal, as plain text, and in a notebook with a picture."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as html
from math import isfinite

from rich.markup import escape

from minilm.course.spec import Exercise, Report
from minilm.table import Table

SHOWN = 3  # failures of one exercise that are told; the rest is counted
COLOURS = {"passed": "green", "failed": "red", "unsolved": "yellow", "broken": "red"}
WORDS = {"passed": "right", "failed": "not right yet", "unsolved": "not begun", "broken": "cannot be run"}
BOXES = {"passed": "■", "changed": "◪", "begun": "▪", "open": "□"}
MEANINGS = {"passed": "passed", "changed": "changed since it passed", "begun": "begun", "open": "open"}
SIGNS = {"passed": "✔", "failed": "✘", "unsolved": "○", "broken": "✘"}


def lines(report: Report) -> list[str]:
    """What is told about an exercise: the cause first, where it is known, and then what differs."""
    told = []
    if report.mistake is not None:
        told += [report.mistake["meaning"], report.mistake["consequence"], f"→ {report.mistake['read']}"]
    told += [f"- {sentence}" for sentence in report.sentences[:SHOWN]]
    if len(report.sentences) > SHOWN:
        told.append(f"- and {len(report.sentences) - SHOWN} more")
    return told


def rich_text(report: Report) -> str:
    """A report in rich's markup."""
    colour = COLOURS[report.status]
    title = f"[{colour}]{SIGNS[report.status]}[/] [bold]{report.number}[/] {report.name}: "
    title += f"[{colour}]{WORDS[report.status]}[/]"
    return "\n".join([title, *(f"    {escape(line)}" for line in lines(report))])


class Reports(list[Report]):
    """What a check found, exercise by exercise. A notebook shows it with pictures, print() as text."""

    def __init__(self, reports: Sequence[Report], seed: int):
        super().__init__(reports)
        self.seed = seed

    @property
    def passed(self) -> bool:
        """Whether everything is right: what an automatic grader asserts."""
        return all(report.status == "passed" for report in self)

    @property
    def summary(self) -> str:
        """How many are right, and how to see the same inputs again."""
        right = sum(report.status == "passed" for report in self)
        return f"{right} of {len(self)} right, with the inputs of seed {self.seed}"

    def __repr__(self) -> str:
        parts = []
        for report in self:
            title = f"{SIGNS[report.status]} {report.number} {report.name}: {WORDS[report.status]}"
            parts.append("\n".join([title, *(f"    {line}" for line in lines(report))]))
        return "\n".join([*parts, self.summary])

    def _repr_html_(self) -> str:
        return "".join(map(as_html, self)) + f"<p><small>{html(self.summary)}</small></p>"


@dataclass
class UnitStatus:
    """How far a learner has come in a unit."""

    number: int
    title: str
    states: list[str]  # of progress.state, exercise by exercise
    minutes_left: int


@dataclass
class Status:
    """How far a learner has come, and the exercise that is next; None when all have passed."""

    units: list[UnitStatus]
    following: Exercise | None

    def rows(self) -> list[tuple[str, str, str, str]]:
        """A line per unit: number, title, a box per exercise, minutes left."""
        return [
            (f"{unit.number:02}", unit.title, " ".join(BOXES[state] for state in unit.states),
             str(unit.minutes_left or "–"))
            for unit in self.units
        ]  # fmt: skip

    def notes(self) -> list[str]:
        """How much is done, what the boxes mean, and what comes next."""
        states = [state for unit in self.units for state in unit.states]
        left = sum(unit.minutes_left for unit in self.units)
        legend = "   ".join(f"{box} {MEANINGS[state]}" for state, box in BOXES.items())
        done = f"{states.count('passed')} of {len(states)} passed, about {left // 60} h {left % 60} min left"
        if self.following is None:
            return [done, legend, "All done: python -m minilm.course assemble puts your parts into a model."]
        each = self.following
        return [
            done,
            legend,
            f"next: {each.number} {each.name}, about {each.minutes} min, in exercises/{each.module}.py; then "
            f"python -m minilm.course check {each.number}",
        ]

    def __repr__(self) -> str:
        return "\n".join([*("  ".join(row) for row in self.rows()), *self.notes()])

    def _repr_html_(self) -> str:
        table = Table(["unit", "", "exercises", "minutes left"], self.rows())
        return table._repr_html_() + "".join(f"<div>{html(note)}</div>" for note in self.notes())


def as_html(report: Report) -> str:
    """A report as a block of HTML, readable on light and dark pages, with the picture of a failure."""
    # Blue and orange differ for every kind of colour vision, and on both backgrounds.
    colour = {"passed": "#2a78b5", "unsolved": "#8a8a8a"}.get(report.status, "#d1690e")
    title = f"{SIGNS[report.status]} <b>{report.number}</b> <code>{html(report.name)}</code>: "
    body = "".join(f"<div>{html(line)}</div>" for line in lines(report))
    return (
        f'<div style="border-left: 4px solid {colour}; padding: 0.3em 0.8em; margin: 0.4em 0">'
        f'{title}<b style="color: {colour}">{WORDS[report.status]}</b>{body}{picture(report)}</div>'
    )


def picture(report: Report) -> str:
    """Two tables of numbers as pictures side by side, and their difference; nothing where there are none."""
    if report.picture is None:
        return ""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    yours, right = (np.array(report.picture[name], dtype=float) for name in ("found", "expected"))
    with np.errstate(invalid="ignore"):
        apart = yours - right
    figure = Figure(figsize=(7.5, 2.6), layout="constrained", facecolor="white")
    numbers = [abs(value) for table in (yours, right) for value in table.flat if isfinite(value)]
    reach = max(numbers, default=0.0) or 1.0
    differences = [abs(value) for value in apart.flat if isfinite(value)]
    apart_reach = max(differences, default=0.0) or 1.0
    panels = (("yours", yours, reach), ("right", right, reach), ("yours − right", apart, apart_reach))
    for axes, (title, table, limit) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.set_facecolor("0.75")  # what is not a finite number stays grey
        shown = np.where(np.isfinite(table), table, np.nan)
        image = axes.imshow(shown, cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set(title=title, xlabel="last axis", ylabel="axis before it")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=axes, shrink=0.8)
    figure.suptitle(report.picture["label"], fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    words = f"three heat maps of {report.picture['label']}: your values, the right ones, their difference"
    return f'<img alt="{html(words)}" src="data:image/png;base64,{data}" style="max-width: 100%"/>'
