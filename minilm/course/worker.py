"""The process in which a learner's code runs: it may loop, exit or eat memory without harm to the runner.

Called as python -m minilm.course.worker ROOT FOLDER SEED RESULTS NUMBER…; it appends one line of JSON per
exercise to the file RESULTS, so that what was judged before an accident is kept. An empty line comes first:
from there on a learner's code runs.
"""

import ast
import contextlib
import ctypes
import dataclasses
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch

from minilm.course import difference, guard, sandbox, sources
from minilm.course.judge import Failure, Verdict, in_words, judge
from minilm.course.spec import Exercise, Report
from minilm.course.surroundings import Surroundings

PR_SET_PDEATHSIG = 1  # of prctl(2)
SHOWN = 32  # rows and columns of a tensor in a picture
SENTENCE = 2000  # letters of one: an error message may be as long as a learner's tensor


def report(verdict: Verdict) -> Report:
    """What a verdict says, in sentences."""
    status = "passed" if verdict.passed else "unsolved" if verdict.unsolved else "failed"
    found = verdict.mistake
    named = found and {key: getattr(found, key) for key in ("name", "meaning", "consequence", "read")}
    sentences = [
        (f"{each.label}: {each.sentence}" if each.label else each.sentence)[:SENTENCE]
        for each in verdict.failures
    ]
    # The one that shows most: a pattern is seen better in many numbers than in a few.
    pictures = filter(None, map(draw_failure, verdict.failures))
    picture = max(pictures, key=lambda drawn: len(drawn["found"]) * len(drawn["found"][0]), default=None)
    return Report(verdict.number, verdict.name, status, sentences, named, picture=picture)


def draw_failure(failure: Failure) -> dict | None:
    """The slice of two tensors in which they differ most, small enough to be looked at."""
    pairs = zip(difference.tensors(failure.found), difference.tensors(failure.expected), strict=False)
    for found, expected in pairs:
        if found.shape != expected.shape or found.ndim == 0 or torch.equal(found, expected):
            continue
        apart = (found.double() - expected.double()).abs().nan_to_num(torch.inf)
        place = [int(index) for index in torch.unravel_index(apart.argmax(), apart.shape)]
        lead = tuple(place[:-2]) if found.ndim > 2 else ()
        sizes = found.shape[-2:]
        first = [max(0, min(index, size - SHOWN)) for index, size in zip(place[-2:], sizes, strict=True)]
        tables = []
        for tensor in (found, expected):
            table = torch.atleast_2d(tensor[lead].double())
            for axis, start in zip((-2, -1)[-len(first) :], first, strict=True):
                table = table.narrow(axis, start, min(SHOWN, table.shape[axis] - start))
            tables.append(table.tolist())
        where = f", at {list(lead)} of the leading axes" if lead else ""
        return {"found": tables[0], "expected": tables[1], "label": (failure.label or "a case") + where}
    return None


def check(
    root: Path, folder: Path, exercise: Exercise, unit: list[Exercise], seed: int, output_bytes: int
) -> Report:
    """Judge one exercise of the files in a folder, and say how long it took.

    unit:         the exercises of the same file.
    output_bytes: more than that may not be printed meanwhile. What was printed is dropped afterwards.
    """
    start, around = time.perf_counter(), Surroundings()
    random.seed(seed)  # whoever draws at random draws the same, whatever was judged before
    torch.manual_seed(seed)
    found = judge_file(root, folder, exercise, unit, seed, around)
    around.put_back()
    with contextlib.suppress(OSError, ValueError):  # the learner's code has closed it
        sys.stdout.flush()
        if os.fstat(1).st_size > output_bytes:
            found = Report(exercise.number, exercise.name, "failed", [sandbox.printed_too_much(output_bytes)])
        os.ftruncate(1, 0)
        os.lseek(1, 0, os.SEEK_SET)
    return dataclasses.replace(found, seconds=time.perf_counter() - start)


def judge_file(
    root: Path, folder: Path, exercise: Exercise, unit: list[Exercise], seed: int, around: Surroundings
) -> Report:
    """Judge one exercise of the files in a folder.

    around: put back after the learner's file has been imported.
    """
    file = folder / f"{exercise.module}.py"

    def broken(*sentences: str) -> Report:
        return Report(exercise.number, exercise.name, "broken", [*sentences])

    if not file.is_file():
        what = "is not a file" if file.exists() else "does not exist"
        return broken(f"{file} {what}; `python -m minilm.course build` writes it anew")
    solutions = sources.load_file(root / "solutions" / file.name, f"solution_{exercise.module}")
    try:
        taken = ready_made(file.read_bytes())
        if taken:
            return broken(
                f"{file.name} imports {', '.join(taken)}; here you write the function yourself. Of this "
                "package, minilm.config alone may be imported"
            )
        try:
            module = sources.load_file(file, f"learner_{exercise.module}")
            answer = getattr(module, exercise.name, None)
        finally:
            around.put_back()
    except BaseException as error:  # a file may even exit while it is imported
        what = f"{file.name}{what_broke(error, file)}"
        return broken(around.sentence(), what) if around.changes else broken(what)
    if around.changes:
        return broken(f"{file.name}: {around.sentence()}")
    if answer is None:
        return broken(f"{file.name} defines no {exercise.name}; the name must stay as it was")
    verdict = judge(exercise, answer, getattr(solutions, exercise.name), seed)
    found = report(verdict)
    if found.status == "failed" and found.mistake is None:
        found.sentences[:0] = blame(unit, exercise, module, solutions, seed)
    return found


def what_broke(error: BaseException, file: Path) -> str:
    """Where in a learner's file an error arose, if that can be told, and which: ", line 7: NameError: …"."""
    lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == str(file)]
    line, words = lines[-1] if lines else None, in_words(error)
    if isinstance(error, SyntaxError):
        line, words = error.lineno, f"{type(error).__name__}: {error.msg}"
        if any(sign in words for sign in ("codec", "encoding", "null bytes")):
            words += ". Save the file as UTF-8; your editor has a setting for that"
    return f", line {line}: {words}" if line else f": {words}"


def blame(
    unit: list[Exercise], exercise: Exercise, module: ModuleType, solutions: ModuleType, seed: int
) -> list[str]:
    """Which functions of the same file, exercises themselves, an answer calls although they are not right."""
    code = getattr(getattr(module, exercise.name), "__code__", None)
    others = [each for each in unit if each.number != exercise.number]
    called = [each for each in others if code and each.name in code.co_names]
    answers = ((each, getattr(module, each.name, None), getattr(solutions, each.name)) for each in called)
    return [
        f"it calls your {each.name} (exercise {each.number}), which is not right yet: begin there"
        for each, answer, worked in answers
        if answer is not None and not judge(each, answer, worked, seed).passed
    ]


def ready_made(source: bytes) -> list[str]:
    """What a file imports from places that hold the answers."""
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported += [f"{node.module}.{alias.name}" for alias in node.names]
    return [
        name
        for name in imported
        if name.split(".")[0] in {"minilm", "solutions", "transformers", "flash_attn"}
        and not name.startswith("minilm.config")
    ]


def limit_memory(extra_bytes: int) -> None:
    """Let the process map so much more than it has mapped, where the system tells and limits that (Linux)."""
    mapped_pages = Path("/proc/self/statm")
    if not mapped_pages.exists():
        return
    import resource

    mapped = int(mapped_pages.read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + extra_bytes, resource.RLIM_INFINITY))


def end_with(parent: int) -> None:
    """End this process soon after the runner that started it, whatever the learner's code is doing."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def end_at_once_with_parent() -> None:
    """The same where the system does it (Linux): a loop in C lets no other thread of Python run."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    root, folder, seed, results, *numbers = sys.argv[1:]
    torch.set_num_threads(1)
    end_at_once_with_parent()
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    limit_memory(int(os.environ["MINILM_COURSE_MEMORY"]))
    output_bytes = int(os.environ["MINILM_COURSE_OUTPUT"])
    workspace = os.environ.get("MINILM_COURSE_WORKSPACE")
    known = {
        each.number: (each, unit.exercises) for unit in sources.units(Path(root)) for each in unit.exercises
    }
    with open(results, "a") as file:
        guard.confine(Path(workspace) if workspace else None)
        print(file=file, flush=True)
        for number in numbers:
            found = check(Path(root), Path(folder), *known[number], int(seed), output_bytes)
            print(json.dumps(asdict(found)), file=file, flush=True)
    os._exit(0)  # what the learner's code left behind, such as a thread, is not waited for


if __name__ == "__main__":
    main()
