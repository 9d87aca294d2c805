"""Running the worker with limits, so that a learner's code can neither hang nor kill the runner."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from minilm.course.spec import Exercise, Report


@dataclass(frozen=True)
class Limits:
    """What the code of one exercise may use."""

    seconds: float = 30.0
    memory_bytes: int = 4 * 2**30  # beyond what torch itself maps
    output_bytes: int = 64 * 1024


def run(
    root: Path, folder: Path, exercises: list[Exercise], seed: int, limits: Limits | None = None
) -> list[Report]:
    """Check exercises in a process of their own; after an accident the rest goes on in another one."""
    limits, reports, remaining = limits or Limits(), [], list(exercises)
    while remaining:
        done, accident = _run_worker(root, folder, remaining, seed, limits)
        reports += done
        remaining = remaining[len(done) :]
        if remaining and accident is not None:
            failed = remaining.pop(0)
            reports.append(Report(failed.number, failed.name, "failed", [accident]))
    return reports


def _run_worker(
    root: Path, folder: Path, exercises: list[Exercise], seed: int, limits: Limits
) -> tuple[list[Report], str | None]:
    """The reports of one worker, and what ended it early."""
    numbers = [exercise.number for exercise in exercises]
    lines, ended = run_module("minilm.course.worker", root, [root, folder, seed, RESULTS, *numbers], limits)
    reports = [Report(**line) for line in lines]
    return reports, None if len(reports) == len(exercises) else ended


RESULTS = "RESULTS"  # among a module's arguments: the file that it writes a line of JSON to for each result


def run_module(module: str, root: Path, arguments: list, limits: Limits) -> tuple[list[dict], str]:
    """Run a module that runs a learner's code: what it wrote, and in a sentence what ended it."""
    with tempfile.TemporaryDirectory() as temporary:
        results, printed = Path(temporary, "results"), Path(temporary, "printed")
        results.touch()
        arguments = [str(results if argument is RESULTS else argument) for argument in arguments]
        with open(printed, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "MINILM_COURSE_MEMORY": str(limits.memory_bytes)},
                start_new_session=True,  # so that children of the learner's code end with it
            )
        ended = _wait(process, results, printed, limits)
        _kill(process)
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        code = process.returncode
        return lines, ended or f"your code ended the process (code {code}): {_last_line(printed)}"


def _wait(process: subprocess.Popen, results: Path, printed: Path, limits: Limits) -> str | None:
    """Wait for the worker; the clock starts anew with each exercise that it has judged."""
    judged, started = -1, time.monotonic()
    while process.poll() is None:
        lines = results.read_bytes().count(b"\n")
        if lines != judged:
            judged, started = lines, time.monotonic()
        if time.monotonic() - started > limits.seconds:
            return f"your code ran for more than {limits.seconds:g} s and was stopped; does a loop never end?"
        if printed.stat().st_size > limits.output_bytes:
            return f"your code printed more than {limits.output_bytes // 1024} KB and was stopped"
        time.sleep(0.02)
    return None


def _kill(process: subprocess.Popen) -> None:
    """End the process and, where the system has process groups, all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _last_line(printed: Path) -> str:
    lines = printed.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it printed nothing"
