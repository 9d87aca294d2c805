"""Running the worker with limits, so that a learner's code can neither hang nor kill the runner."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from minilm.course.spec import Exercise
from minilm.course.worker import Report


@dataclass(frozen=True)
class Limits:
    """What the code of one exercise may use."""

    seconds: float = 30.0
    memory_bytes: int = 4 * 2**30  # beyond what torch itself maps
    output_bytes: int = 64 * 1024


class Stopped(Exception):
    """The caller wanted an end before all was judged."""


def run(
    root: Path,
    folder: Path,
    exercises: list[Exercise],
    seed: int,
    limits: Limits | None = None,
    workspace: Path | None = None,
    stop: threading.Event | None = None,
) -> list[Report]:
    """Check exercises in a process of their own; after an accident the rest goes on in another one.

    workspace: the folder that the code runs in, and the only one in which it may change files (see guard);
               None lets it run in root, with all that the user may do.
    stop:      ends the process when it is set.
    Raises:    Stopped if stop was set.
    """
    limits, reports, remaining = limits or Limits(), [], list(exercises)
    root, folder, stop = root.resolve(), folder.resolve(), stop or threading.Event()
    while remaining:
        done, accident, seconds = _run_worker(root, folder, remaining, seed, limits, workspace, stop)
        reports += done
        remaining = remaining[len(done) :]
        if remaining and accident is not None:
            failed = remaining.pop(0)
            reports.append(Report(failed.number, failed.name, "failed", [accident], seconds=seconds))
    return reports


def _run_worker(
    root: Path,
    folder: Path,
    exercises: list[Exercise],
    seed: int,
    limits: Limits,
    workspace: Path | None,
    stop: threading.Event,
) -> tuple[list[Report], str | None, float]:
    """The reports of one worker, what ended it early, and for how long it ran without reporting."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        results, printed = Path(temporary, "results"), Path(temporary, "printed")
        results.touch()
        numbers = [exercise.number for exercise in exercises]
        command = [
            sys.executable,
            "-m",
            "minilm.course.worker",
            str(root),
            str(folder),
            str(seed),
            str(results),
        ]
        with open(printed, "wb") as output:
            process = subprocess.Popen(
                [*command, *numbers],
                cwd=workspace or root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(root, folder, limits, workspace),
                start_new_session=True,  # so that children of the learner's code end with it
            )
        try:
            ended, seconds = _wait(process, results, printed, limits, stop)
        finally:
            _kill(process)
        whole_lines = _read(results).rpartition(b"\n")[0].splitlines()
        reports = [Report(**json.loads(line)) for line in whole_lines]
        if len(reports) == len(exercises):
            return reports, None, seconds
        ended = ended or f"your code ended the process (code {process.returncode}): {_last_line(printed)}"
        return reports, ended, seconds


def _environment(root: Path, folder: Path, limits: Limits, workspace: Path | None) -> dict[str, str]:
    """The variables that the worker sees: its limits, where it may write, where imports are looked for."""
    variables = {**os.environ, "MINILM_COURSE_MEMORY": str(limits.memory_bytes)}
    if workspace is not None:
        variables["MINILM_COURSE_WORKSPACE"] = str(workspace)
        variables |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(workspace))
        # Outside of root, too, files of exercises may import each other, and this package is found.
        variables["PYTHONPATH"] = os.pathsep.join([str(folder.parent), str(root)])
    return variables


def _wait(
    process: subprocess.Popen, results: Path, printed: Path, limits: Limits, stop: threading.Event
) -> tuple[str | None, float]:
    """Wait for the worker: why it has to be stopped, and the time since its last result.

    The clock starts anew with each exercise that it has judged.
    """
    judged, started = -1, time.monotonic()
    while process.poll() is None:
        lines = _read(results).count(b"\n")
        if lines != judged:
            judged, started = lines, time.monotonic()
        passed = time.monotonic() - started
        if passed > limits.seconds:
            sentence = (
                f"your code ran for more than {limits.seconds:g} s and was stopped; does a loop never end?"
            )
            return sentence, round(passed, 3)
        if len(_read(printed)) > limits.output_bytes:
            sentence = f"your code printed more than {limits.output_bytes // 1024} KB and was stopped"
            return sentence, round(passed, 3)
        if stop.is_set():
            raise Stopped
        time.sleep(0.02)
    return None, round(time.monotonic() - started, 3)


def _kill(process: subprocess.Popen) -> None:
    """End the process and, where the system has process groups, all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _read(path: Path) -> bytes:
    """What stands in a file; nothing where the learner's code has removed it."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def _last_line(printed: Path) -> str:
    lines = _read(printed).decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it printed nothing"
