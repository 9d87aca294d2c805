"""What a learner has done, kept beside the exercises: one file each, written whole or not at all."""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from minilm import atomic
from minilm.course import sources
from minilm.course.spec import Exercise, Report

FOLDER = ".progress"


@dataclass
class Record:
    """What is known of one exercise."""

    number: str
    passed: str | None = None  # the hash of the code that passed last
    attempts: int = 0
    hints: int = 0  # the highest level that was asked for
    gave_up: bool = False  # the solution was shown before it passed


def read(folder: Path, number: str) -> Record:
    """The record of an exercise; a new one where there is none, or where it cannot be read."""
    try:
        return Record(**json.loads(_path(folder, number).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Record(number)


def write(folder: Path, record: Record) -> None:
    """Write a record in the place of an older one."""
    path = _path(folder, record.number)
    path.parent.mkdir(exist_ok=True)
    atomic.write(path, json.dumps(asdict(record)))


def note(folder: Path, exercise: Exercise, report: Report) -> None:
    """Remember the outcome of a check. An exercise that has not been begun leaves no trace."""
    record = read(folder, exercise.number)
    if report.status == "unsolved" and record.attempts == 0:
        return
    record.attempts += 1
    if report.status == "passed":
        record.passed = fingerprint(folder, exercise)
    write(folder, record)


def state(folder: Path, exercise: Exercise) -> str:
    """ "passed", "changed" since it passed, "begun", or "open"."""
    record = read(folder, exercise.number)
    if record.passed is not None:
        return "passed" if record.passed == fingerprint(folder, exercise) else "changed"
    return "begun" if record.attempts else "open"


def fingerprint(folder: Path, exercise: Exercise) -> str:
    """A hash of an answer's code: the whole file's where its own part cannot be told."""
    path = folder / f"{exercise.module}.py"
    text = sources.read_text(path) if path.is_file() else ""
    with contextlib.suppress(SyntaxError, KeyError):
        text = sources.segment(text, exercise.name)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _path(folder: Path, number: str) -> Path:
    return folder / FOLDER / f"{number}.json"
