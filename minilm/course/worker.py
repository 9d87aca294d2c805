"""The process in which a learner's code runs: it may loop, exit or eat memory without harm to the runner.

Called as python -m minilm.course.worker ROOT FOLDER SEED RESULTS NUMBER…; it appends one line of JSON per
exercise to the file RESULTS, so that what was judged before an accident is kept.
"""

import ast
import json
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from minilm.course import guard, sources
from minilm.course.judge import Verdict, judge

SENTENCE = 2000  # letters of one: an error message may be as long as a learner's tensor


@dataclass
class Report:
    """A verdict without its tensors: what a learner is told."""

    number: str
    name: str
    status: str  # "passed", "failed", "unsolved" or "broken": the file itself cannot be run
    sentences: list[str]
    mistake: dict[str, str] | None = None
    seconds: float = 0.0  # that judging took


def report(verdict: Verdict) -> Report:
    """What a verdict says, in sentences."""
    status = "passed" if verdict.passed else "unsolved" if verdict.unsolved else "failed"
    found = verdict.mistake
    named = found and {key: getattr(found, key) for key in ("name", "meaning", "consequence", "read")}
    sentences = [
        (f"{each.label}: {each.sentence}" if each.label else each.sentence)[:SENTENCE]
        for each in verdict.failures
    ]
    return Report(verdict.number, verdict.name, status, sentences, named)


def check(root: Path, folder: Path, number: str, seed: int) -> Report:
    """Judge one exercise of the files in a folder."""
    (exercise,) = sources.find(root, number)
    file = folder / f"{exercise.module}.py"
    if not file.exists():
        sentence = f"{file} does not exist; `python -m minilm.course build` writes it anew"
        return Report(number, exercise.name, "broken", [sentence])
    try:
        module = sources.load_file(file, f"learner_{exercise.module}")
    except BaseException as error:  # a file may even exit while it is imported
        places = traceback.extract_tb(error.__traceback__)
        place = next((each for each in reversed(places) if each.filename == str(file)), places[-1])
        line = error.lineno if isinstance(error, SyntaxError) else place.lineno
        sentence = f"{file.name}, line {line}: {type(error).__name__}: {error}"
        return Report(number, exercise.name, "broken", [sentence])
    taken = ready_made(file)
    if taken:
        sentence = (
            f"{file.name} imports {', '.join(taken)}; here you write the function yourself. Of this package, "
            "minilm.config alone may be imported"
        )
        return Report(number, exercise.name, "broken", [sentence])
    answer = getattr(module, exercise.name, None)
    if answer is None:
        sentence = f"{file.name} defines no {exercise.name}; the name must stay as it was"
        return Report(number, exercise.name, "broken", [sentence])
    solutions = sources.load_file(root / "solutions" / file.name, f"solution_{exercise.module}")
    return report(judge(exercise, answer, getattr(solutions, exercise.name), seed))


def ready_made(file: Path) -> list[str]:
    """What a file imports from places that hold the answers."""
    imported = []
    for node in ast.walk(ast.parse(file.read_text())):
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

    mapped = int(mapped_pages.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + extra_bytes, resource.RLIM_INFINITY))


def end_with(parent: int) -> None:
    """End this process soon after the runner that started it, whatever the learner's code is doing."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    root, folder, seed, results, *numbers = sys.argv[1:]
    torch.set_num_threads(1)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    limit_memory(int(os.environ["MINILM_COURSE_MEMORY"]))
    with open(results, "a") as file:
        if workspace := os.environ.get("MINILM_COURSE_WORKSPACE"):
            guard.confine(Path(workspace))
        for number in numbers:
            started = time.perf_counter()
            found = check(Path(root), Path(folder), number, int(seed))
            found.seconds = round(time.perf_counter() - started, 3)
            file.write(json.dumps(asdict(found)) + "\n")
            file.flush()
    os._exit(0)  # what the learner's code left behind, such as a thread, is not waited for


if __name__ == "__main__":
    main()
