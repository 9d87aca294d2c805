"""What the command line and notebooks both do: check, hint, status, solution, reset, assemble."""

import difflib
import secrets
import warnings
from pathlib import Path

from minilm.course import assembling, progress, sandbox, sources
from minilm.course.assembling import Outcome, Size
from minilm.course.sandbox import Start
from minilm.course.show import Reports, Status, UnitStatus
from minilm.course.spec import Exercise
from minilm.table import Table

PUBLIC_SEEDS = 10_000  # a check draws its seed below this; grading takes others


def answers_folder(folder: str | Path | None = None) -> Path:
    """The folder of a learner's answers: the given one, or exercises/ of the repository.

    Raises: ValueError where there is none.
    """
    found = Path(folder) if folder is not None else sources.repository() / "exercises"
    if not found.is_dir():
        raise ValueError(f"{found} is not a folder; give the one that holds the answers, such as exercises")
    return found


def check(
    wanted: str, folder: str | Path | None = None, seed: int | None = None, start: Start = "new"
) -> Reports:
    """Check answers on fresh random inputs, in a process of its own.

    wanted: an exercise such as "5.4", or a unit such as "5".
    folder: whose answers; exercises/ by default. What passes there is remembered for `status`.
    seed:   repeats the inputs of an earlier check.
    start:  where the process comes from, see sandbox.Start.
    Raises: ValueError where there is no such folder or exercise.
    """
    root, folder = sources.repository(), answers_folder(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder; give the one that holds the answers. `python -m minilm.course build` "
            "writes exercises/ anew"
        )
    seed = secrets.randbelow(PUBLIC_SEEDS) if seed is None else seed
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}; it must be an integer, 0 or more, or None for a fresh one")
    exercises = sources.find(root, str(wanted))
    reports = sandbox.run(root, folder, exercises, seed, start=start)
    try:
        for exercise, report in zip(exercises, reports, strict=True):
            progress.note(folder, exercise, report)
    except OSError as error:  # somebody else's folder, or one that the code that was checked has removed
        warnings.warn(f"what passed cannot be remembered for `status`: {error}", stacklevel=2)
    return Reports(reports, seed)


class Text(str):
    """A text that a notebook shows as it is, line by line."""

    def __repr__(self) -> str:
        return str(self)


def hint(number: str, level: int | None = None, folder: str | Path | None = None) -> Text:
    """One of an exercise's three hints: the next one, or that of a level already reached or asked for."""
    exercise, folder = one_exercise(number), answers_folder(folder)
    record = progress.read(folder, exercise.number)
    level = min(record.hints + 1, 3) if level is None else level
    if level not in (1, 2, 3):
        raise ValueError(f"there is no hint {level}; give 1 (points the way), 2 or 3 (nearly tells)")
    record.hints = max(record.hints, level)
    progress.write(folder, record)
    more = f"\nThe next one: hint {level + 1} of 3, when you ask again." if level < 3 else ""
    return Text(f"hint {level} of 3: {exercise.hints[level - 1]}{more}")


def solution(number: str, give_up: bool = False, folder: str | Path | None = None) -> Text:
    """The worked answer as a difference from one's own, once that has passed.

    Raises: ValueError before it has passed, unless give_up.
    """
    exercise, folder, root = one_exercise(number), answers_folder(folder), sources.repository()
    record = progress.read(folder, exercise.number)
    if record.passed is None and not give_up:
        raise ValueError(
            f"{exercise.number} has not passed yet; there are hints (hint {exercise.number}), and --give-up "
            "shows the solution all the same"
        )
    if record.passed is None:
        record.gave_up = True
        progress.write(folder, record)
    own, worked = (code_of(place, exercise) for place in (folder, root / "solutions"))
    lines = difflib.unified_diff(
        own.splitlines(), worked.splitlines(), "yours", "the solution", lineterm="", n=1000
    )
    return Text("\n".join(line for line in lines if not line.startswith("@@")))


def code_of(folder: Path, exercise: Exercise) -> str:
    """The code of an answer; empty where it cannot be found."""
    path = folder / f"{exercise.module}.py"
    try:
        return sources.segment(sources.read_text(path), exercise.name)
    except (OSError, SyntaxError, KeyError):
        return ""


def reset(wanted: str, folder: str | Path | None = None) -> Text:
    """Put stubs in place of answers; the files as they were are kept in .backup beside them."""
    root, folder = sources.repository(), answers_folder(folder)
    exercises = sources.find(root, str(wanted))
    backups = sources.reset(root, folder, exercises)
    names = ", ".join(f"{exercise.number} {exercise.name}" for exercise in exercises)
    kept = f"; your file as it was: {', '.join(map(str, backups))}" if backups else ""
    return Text(f"begun anew: {names}{kept}")


def exercises(unit: str | None = None) -> Table:
    """The exercises of a unit, such as "5", or all: how long and hard each is, and where it is written."""
    found = sources.all_exercises() if unit is None else sources.find(sources.repository(), str(unit))
    return Table(
        ["exercise", "function", "minutes", "difficulty", "file"],
        [
            (each.number, each.name, each.minutes, "●" * each.difficulty, f"exercises/{each.module}.py")
            for each in found
        ],
    )


def one_exercise(number: str) -> Exercise:
    """The exercise of a number. Raises ValueError for a unit of several."""
    found = sources.find(sources.repository(), str(number))
    if len(found) > 1:
        raise ValueError(f"{number} is a unit of {len(found)} exercises; give one, such as {found[0].number}")
    return found[0]


def status(folder: str | Path | None = None) -> Status:
    """How far one is in each unit, what comes next, and how long it takes."""
    folder, units, following = answers_folder(folder), [], None
    for unit in sources.units(sources.repository()):
        states = [progress.state(folder, exercise) for exercise in unit.exercises]
        pending = [e for e, state in zip(unit.exercises, states, strict=True) if state != "passed"]
        following = following or next(iter(pending), None)
        title = unit.module.split("_", 1)[1].replace("_", " ")
        units.append(UnitStatus(unit.number, title, states, sum(e.minutes for e in pending)))
    return Status(units, following)


def assemble(
    folder: str | Path | None = None, size: Size = "all", failed: bool = False, seed: int = 0
) -> Outcome:
    """Put the parts that pass their checks into models, and see whether these are still the same models.

    folder: whose answers; exercises/ by default.
    size:   "quick" tries everything once on small random models (half a minute); "small" takes every such
            model and dtype, "all" the trained models too.
    failed: swap in what fails its check as well, to see what it does to a model.
    seed:   of the inputs on which the parts are checked first.
    """
    return assembling.assemble(sources.repository(), answers_folder(folder), seed, failed, size)
