"""Grading a class: every submission runs by itself, on inputs that nobody has seen.

What was judged is kept in one file per submission and unit, so that a grading that was cut off goes on where
it stopped, and the next one judges only what has changed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from minilm import atomic
from minilm.course import class_report, lab, sandbox, sources, submissions
from minilm.course.class_report import LabRow, Row
from minilm.course.spec import Exercise, Report, printable
from minilm.course.submissions import Submission

FIRST_SEED = 1_000_000  # the tests and `check` use smaller ones, which learners see
TEXT_LENGTH = 300  # of a sentence in the tables: an error message may be as long as a learner's tensor
PATIENCE = 3.0  # see sandbox.Limits: submissions that run at once must not make each other late
console = Console()


@dataclass(frozen=True)
class Grading:
    """What all submissions have in common."""

    root: Path
    out: Path
    seed: int
    limits: sandbox.Limits
    jobs: int = 1

    def kept(self, submission: Submission, module: str) -> Path:
        """The file that holds what was found out about one unit of a submission."""
        readable = re.sub(r"[^\w.-]+", "_", submission.name)[:40].strip(".")
        exact = hashlib.sha256(submission.name.encode(errors="replace")).hexdigest()[:8]
        return self.out / "results" / f"{readable}-{exact}" / f"{module}.json"

    def key(self, submission: Submission, module: str) -> str:
        """A hash of all that a result depends on: the answers, what judges them, the inputs, the limits."""
        judges = [
            self.root / "solutions" / f"{module}.py",
            self.root / "tests" / "exercises" / f"test_{module}.py",
        ]
        judges += sorted((self.root / "minilm" / "course").glob("*.py"))
        parts = [submission.fingerprint(), str(self.seed), repr(self.limits)]
        parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in judges]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def grade(
    grading: Grading, found: list[Submission], exercises: list[Exercise], everything: bool = False
) -> Iterator[list[Row]]:
    """Grade submissions, several at once; yields the rows of one submission's unit whenever one is done.

    everything: judge also what was judged before and has not changed.
    Raises:     ValueError where the files that judge have changed meanwhile.
    """
    stop = threading.Event()
    by_module: dict[str, list[Exercise]] = {}
    for exercise in exercises:
        by_module.setdefault(exercise.module, []).append(exercise)
    with ThreadPoolExecutor(grading.jobs) as pool:
        try:
            tasks = [
                pool.submit(grade_unit, grading, submission, unit, everything, stop)
                for submission in found
                for unit in by_module.values()
            ]
            for task in as_completed(tasks):
                yield task.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def grade_unit(
    grading: Grading, submission: Submission, unit: list[Exercise], everything: bool, stop: threading.Event
) -> list[Row]:
    """Grade one submission's answers to exercises of one file, or take what is known about them."""
    module = unit[0].module
    file = f"{module}.py"
    if file not in submission.files:
        status, reason = "missing", f"{file} was not handed in"
        if submission.problem is not None:
            reason = submission.problem
        elif file in submission.unread:
            status, reason = "broken", f"{file} {submission.unread[file]}"
        return [row(submission, each, Report(each.number, each.name, status, [reason])) for each in unit]
    kept, key = grading.kept(submission, module), grading.key(submission, module)
    known = {} if everything else read_kept(kept, key)
    unknown = [each for each in unit if each.number not in known]
    if unknown:
        for report in run(grading, submission, unknown, stop):
            known[report.number] = report
        if grading.key(submission, module) != key:
            raise ValueError(
                f"files of the course changed while {file} of {submission.name} was judged. If that was not "
                "you, this submission did it, or one that ran beside it: bring the files back (git status), "
                "and leave that submission out"
            )
        write_kept(kept, key, known)
    return [row(submission, each, known[each.number]) for each in unit]


def run(
    grading: Grading, submission: Submission, unit: list[Exercise], stop: threading.Event
) -> list[Report]:
    """Judge answers in a copy of the submission, which disappears afterwards."""
    with atomic.folder(Path(tempfile.gettempdir()), "grading") as temporary:
        folder, workspace = temporary / "exercises", temporary / "workspace"
        submission.write(folder)
        workspace.mkdir()
        limits = dataclasses.replace(grading.limits, patience=max(PATIENCE, grading.jobs / cores()))
        reports = sandbox.run(
            grading.root, folder, unit, grading.seed, limits, workspace.resolve(), stop, "prepared"
        )
    for report in reports:
        here = str(temporary.resolve()) + os.sep  # another one each time
        report.sentences = [readable(each.replace(here, "")) for each in report.sentences[:10]]
        report.picture = None
    return reports


def readable(sentence: str) -> str:
    """A sentence of bounded length that any file and terminal can hold, whatever a learner wrote in it."""
    line = printable(sentence.encode(errors="replace").decode())
    return line if len(line) <= TEXT_LENGTH else f"{line[:TEXT_LENGTH]}…"


def read_kept(path: Path, key: str) -> dict[str, Report]:
    """What was found out before under the same key, by the exercise's number."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {number: Report(**report) for number, report in kept["reports"].items() if kept["key"] == key}
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # never judged, or by another version
        return {}


def write_kept(path: Path, key: str, reports: dict[str, Report]) -> None:
    """Write down what was found out, over what was known before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"key": key, "reports": {number: asdict(report) for number, report in reports.items()}}
    atomic.write(path, json.dumps(kept, indent=1))


def row(submission: Submission, exercise: Exercise, report: Report) -> Row:
    """What the tables say about one exercise of a submission."""
    return Row(
        submission=submission.name,
        exercise=exercise.number,
        name=exercise.name,
        status=report.status,
        mistake=report.mistake["name"] if report.mistake else "",
        points=exercise.difficulty if report.status == "passed" else 0,
        max_points=exercise.difficulty,
        seconds=round(report.seconds, 2),
        minutes=exercise.minutes,
        detail=report.mistake["meaning"] if report.mistake else " ".join(report.sentences[:1]),
    )


def lab_rows(submission: Submission) -> list[LabRow]:
    """What the tables say about the labs that were handed in. Nothing is run: a lab is a file of numbers."""
    rows = [
        LabRow(submission.name, found[1], problem=f"{name} {problem}")
        for name, problem in submission.unread.items()
        if (found := lab.HAND_IN.fullmatch(name))
    ]
    for name, content in submission.labs.items():
        number = lab.HAND_IN.fullmatch(name)[1]
        try:
            questions, conclusion, machine = lab.read(content)
        except ValueError as problem:
            rows.append(LabRow(submission.name, number, problem=readable(f"{name} {problem}")))
            continue
        ended = {"machine": readable(machine), "conclusion": readable(conclusion)}
        for each in questions:
            asked = readable(each.asks), readable(each.unit)
            rows.append(
                LabRow(submission.name, number, *asked, each.prediction, each.measured, each.is_near, **ended)
            )
    return rows


def chosen(root: Path, wanted: str | None) -> list[Exercise]:
    """The exercises that "8, 9.1" means, in the order of the course; all for None.

    Raises: ValueError where a part of it means nothing.
    """
    every = sources.all_exercises(root)
    if wanted is None:
        return every
    numbers = {
        each.number for part in re.split(r"[,\s]+", wanted.strip(", ")) for each in sources.find(root, part)
    }
    return [each for each in every if each.number in numbers]


def choose_seed(given: int | None, out: Path) -> int:
    """The seed of the inputs: the given one, that of an earlier grading into the same folder, or a fresh one.

    Raises: ValueError for a seed that learners may have seen.
    """
    kept = out / "seed.txt"
    if given is None and kept.exists():
        text = kept.read_text(encoding="utf-8", errors="replace").strip()
        if not text.isdecimal():
            raise ValueError(f"{kept} holds {text[:40]!r} and no seed; remove it, or give --seed")
        given = int(text)
    seed = FIRST_SEED + secrets.randbelow(2**40) if given is None else given
    if seed < FIRST_SEED:
        raise ValueError(
            f"--seed {seed} is too small: learners see such seeds in `check` and in the tests. Give "
            f"{FIRST_SEED} or more, or nothing for a fresh one"
        )
    atomic.write(kept, f"{seed}\n")
    return seed


def command(
    folder: Annotated[Path, typer.Argument(help="Holds one subfolder or zip file per learner.")],
    exercises: Annotated[
        str | None, typer.Option("--exercises", "-e", help='Units or exercises: "8, 9.1". All by default.')
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the grades go; by default beside the folder, as FOLDER-grades.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Repeat the inputs of another grading. By default fresh, and then kept in --out."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="How many run at once; one per core by default.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long one exercise may compute.")] = 30.0,
    memory: Annotated[float, typer.Option(min=0.5, help="How many GB it may allocate.")] = 2.0,
    everything: Annotated[
        bool, typer.Option("--all", help="Judge also what was judged before and has not changed.")
    ] = False,
) -> None:
    """Grade a folder of submissions: CSV files, and a report on the class."""
    root = sources.repository()
    folder = folder.resolve()
    out = (out or folder.with_name(f"{folder.name}-grades")).resolve()
    wanted = chosen(root, exercises)
    modules = [unit.module for unit in sources.units(root)]
    found, ignored = submissions.find(folder, modules, besides=out)
    for name in ignored:
        console.print(f"ignored: {name}, which is no folder and no zip file", highlight=False, markup=False)
    out.mkdir(parents=True, exist_ok=True)
    limits = sandbox.Limits(seconds, int(memory * 2**30))
    grading = Grading(root, out, choose_seed(seed, out), limits, jobs or cores())
    rows = follow(grading, found, wanted, everything)
    order = {each.number: place for place, each in enumerate(wanted)}
    place = {each.name: index for index, each in enumerate(found)}
    rows.sort(key=lambda each: (place[each.submission], order[each.exercise]))
    problems = {each.name: each.problem for each in found if each.problem is not None}
    labs = [line for each in found for line in lab_rows(each)]
    findings = class_report.Findings(rows, labs, problems, grading.seed)
    class_report.show(console, findings)
    for name, text in class_report.files(findings).items():
        atomic.write(out / name, text)
    again = f" --exercises {exercises!r}" if exercises else ""
    console.print(
        f"written to {out}: {', '.join(class_report.FILES)}\n"
        f"the same inputs again: --seed {grading.seed}{again}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


def follow(grading: Grading, found: list[Submission], wanted: list[Exercise], everything: bool) -> list[Row]:
    """Grade with a progress bar. Ctrl-C ends it; what is done is kept."""
    total = len(found) * len(wanted)
    columns = [
        TextColumn("grading"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("exercises"),
        TimeRemainingColumn(),
    ]
    rows: list[Row] = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total)
        try:
            with contextlib.closing(grade(grading, found, wanted, everything)) as steps:
                for done in steps:
                    rows += done
                    progress.update(bar, advance=len(done))
        except KeyboardInterrupt:
            progress.stop()
            console.print(
                f"stopped after {len(rows)} of {total} exercises; they are kept in {grading.out}, and the "
                "same command goes on from there",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip
            raise
    return rows
