"""What a grading found, for a gradebook (CSV), for a teacher's eyes (Markdown) and for the terminal."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

STATUSES = ("passed", "failed", "unsolved", "broken", "missing")
FILES = ("grades.csv", "summary.csv", "labs.csv", "report.md")
COMMONEST = 12  # mistakes of the whole class that are listed


@dataclass(frozen=True)
class Row:
    """One exercise of one submission."""

    submission: str
    exercise: str
    name: str
    status: str  # one of STATUSES; broken: the file cannot be run; missing: it was not handed in
    mistake: str  # the name of the known mistake that it computes, or ""
    points: int
    max_points: int
    seconds: float  # that judging took
    minutes: int  # that a learner is expected to need
    detail: str  # the mistake in a sentence, or the first thing that went wrong


@dataclass(frozen=True)
class LabRow:
    """One question of a lab that one submission handed in; or, with a problem, why nothing of it was read."""

    submission: str
    lab: str
    question: str = ""
    unit: str = ""
    predicted: float | None = None
    measured: float | None = None
    is_near: bool = False  # within a factor of lab.NEAR
    machine: str = ""
    conclusion: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Findings:
    """All that a grading found out.

    problems: submissions of which nothing could be graded, and why.
    """

    rows: list[Row]
    labs: list[LabRow]
    problems: dict[str, str]
    seed: int


Grouped = TypeVar("Grouped", Row, LabRow)


def by(rows: Iterable[Grouped], key: Callable[[Grouped], Hashable]) -> dict[Hashable, list[Grouped]]:
    """Rows in groups, in the order in which each group first occurs."""
    groups: dict[Hashable, list[Grouped]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def files(found: Findings) -> dict[str, str]:
    """The text of each of FILES."""
    texts = lines_as_csv(Row, found.rows), summary(found), lines_as_csv(LabRow, found.labs), markdown(found)
    return dict(zip(FILES, texts, strict=True))


def as_csv(header: list[str], lines: Iterable[list]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def lines_as_csv(kind: type[Row] | type[LabRow], rows: Sequence[Row] | Sequence[LabRow]) -> str:
    """CSV with a line per row and a column per field."""
    return as_csv([field.name for field in fields(kind)], ([*asdict(row).values()] for row in rows))


def summary(found: Findings) -> str:
    """CSV with a line per submission, for a gradebook."""
    lines = []
    labs = by((row for row in found.labs if not row.problem), lambda row: row.submission)
    for name, theirs in by(found.rows, lambda row: row.submission).items():
        points, possible = sum(row.points for row in theirs), sum(row.max_points for row in theirs)
        counts = Counter(row.status for row in theirs)
        numbers = [points, possible, round(100 * points / possible, 1)]
        numbers += [len(theirs), *(counts[status] for status in STATUSES)]
        handed_in = " ".join(dict.fromkeys(row.lab for row in labs.get(name, [])))
        seconds = round(sum(row.seconds for row in theirs), 1)
        lines.append([name, *numbers, seconds, handed_in, found.problems.get(name, "")])
    header = ["submission", "points", "max_points", "percent", "exercises", *STATUSES, "seconds"]
    return as_csv([*header, "labs", "problem"], lines)


def exercise_lines(rows: list[Row]) -> list[list[str]]:
    """Per exercise: number, name, who passed, how the others stand, time, the commonest mistakes."""
    lines = []
    for number, theirs in by(rows, lambda row: row.exercise).items():
        counts = Counter(row.status for row in theirs)
        times = [row.seconds for row in theirs if row.status in ("passed", "failed")]
        named = Counter(row.mistake for row in theirs if row.mistake)
        unnamed = sum(row.status == "failed" and not row.mistake for row in theirs)
        mistakes = [f"{name} ({count})" for name, count in named.most_common(2)]
        mistakes += [f"no known mistake ({unnamed})"] if unnamed else []
        lines.append(
            [
                number,
                theirs[0].name,
                f"{counts['passed']} of {len(theirs)} ({counts['passed'] / len(theirs):.0%})",
                standing({status: counts[status] for status in STATUSES[1:]}),
                f"{median(times):.1f} s" if times else "",
                ", ".join(mistakes),
            ]
        )
    return lines


EXERCISES = ["exercise", "name", "passed", "others", "median time", "commonest mistakes"]


def standing(counts: dict[str, int]) -> str:
    """How many answers have each status: "2 failed, 1 missing"."""
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts.get(status))


def mistake_lines(rows: list[Row]) -> list[list[str]]:
    """The commonest named mistakes of the class: count, exercise, name, meaning."""
    counts = Counter((row.exercise, row.mistake, row.detail) for row in rows if row.mistake)
    return [
        [str(count), exercise, name, meaning]
        for (exercise, name, meaning), count in counts.most_common(COMMONEST)
    ]


MISTAKES = ["count", "exercise", "mistake", "what it means"]


def learner_lines(rows: list[Row]) -> list[list[str]]:
    """Per submission: points, and how its answers stand."""
    lines = []
    for name, theirs in by(rows, lambda row: row.submission).items():
        points, possible = sum(row.points for row in theirs), sum(row.max_points for row in theirs)
        counts = Counter(row.status for row in theirs)
        lines.append([name, f"{points} of {possible}", standing(counts)])
    return lines


LEARNERS = ["submission", "points", "exercises"]


def lab_lines(labs: list[LabRow]) -> list[list[str]]:
    """Per question of a lab: how many answered, what they predicted and measured, how many were near."""
    lines = []
    answered = by((row for row in labs if not row.problem), lambda row: (row.lab, row.question, row.unit))
    for (number, question, unit), theirs in answered.items():
        near = sum(row.is_near for row in theirs)
        numbers = [
            f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g}) {unit}"
            for values in ([row.predicted for row in theirs], [row.measured for row in theirs])
        ]
        lines.append([number, question, str(len(theirs)), *numbers, f"{near} of {len(theirs)}"])
    for row in labs:
        if row.problem:
            lines.append([row.lab, f"{row.submission}: {row.problem}", "", "", "", ""])
    return lines


LABS = ["lab", "question", "answers", "predicted: median", "measured: median", "predictions that were near"]


def totals(rows: list[Row], problems: dict[str, str]) -> str:
    """The class in one sentence."""
    learners, passed = by(rows, lambda row: row.submission), sum(row.status == "passed" for row in rows)
    share = f"{passed} of {len(rows)} answers passed ({passed / len(rows):.0%})"
    return f"{len(learners)} submissions, {len(problems)} of them not to be graded; {share}"


def markdown(found: Findings) -> str:
    """The report on the class."""
    rows, problems = found.rows, found.problems
    parts = [
        "# Report on the class",
        f"{totals(rows, problems)}. The inputs are those of `--seed {found.seed}`.",
        "## Exercises",
        markdown_table(EXERCISES, exercise_lines(rows)),
        "## The commonest mistakes",
        markdown_table(MISTAKES, mistake_lines(rows)) or "No answer computes a known mistake.",
        "## Labs",
        markdown_table(LABS, lab_lines(found.labs)) or "None was handed in.",
        "## Submissions that could not be graded",
        markdown_table(["submission", "why"], [list(each) for each in problems.items()]) or "None.",
        "## Submissions",
        markdown_table(LEARNERS, learner_lines(rows)),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(header: list[str], lines: list[list[str]]) -> str:
    """A table; empty without lines. What would end a cell, or begin a link or HTML in it, is escaped."""
    if not lines:
        return ""

    def cell(text: str) -> str:
        for special in r"\|<[`*_":
            text = text.replace(special, f"\\{special}")
        return text

    every = [header, ["---"] * len(header), *([cell(text) for text in line] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def show(console: Console, found: Findings) -> None:
    """Print what a teacher wants to know first."""
    rows, problems = found.rows, found.problems
    terminal_table(console, "exercises", EXERCISES, exercise_lines(rows))
    terminal_table(console, "the commonest mistakes", MISTAKES, mistake_lines(rows))
    terminal_table(console, "labs", LABS, lab_lines(found.labs))
    terminal_table(
        console, "not to be graded", ["submission", "why"], [list(each) for each in problems.items()]
    )
    console.print(totals(rows, problems), highlight=False, markup=False, soft_wrap=True)


def terminal_table(console: Console, title: str, header: list[str], lines: list[list[str]]) -> None:
    if lines:
        table = Table(*header, title=title, title_justify="left")
        for line in lines:
            table.add_row(*map(escape, line))
        console.print(table)
