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

from minilm.course.spec import Exercise, Report


@dataclass(frozen=True)
class Limits:
    """What the code of one exercise may use.

    seconds:  by the clock on the wall
    patience: more than 1 where others compute as well: so many times as long by that clock, and seconds of
              computing, where the system tells (Linux)
    """

    seconds: float = 30.0
    memory_bytes: int = 4 * 2**30  # beyond what torch itself maps
    output_bytes: int = 64 * 1024
    patience: float = 1.0


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

    workspace, stop: see run_module. Files in folder may import each other where workspace lies beside it.
    Raises:          Stopped if stop was set.
    """
    limits, reports, remaining = limits or Limits(), [], list(exercises)
    root, folder = root.resolve(), folder.resolve()
    while remaining:
        started = time.monotonic()
        numbers = [exercise.number for exercise in remaining]
        arguments = [root, folder, seed, RESULTS, *numbers]
        lines, ended = run_module("minilm.course.worker", root, arguments, limits, workspace, stop)
        done = [Report(**line) for line in lines]
        reports += done
        remaining = remaining[len(done) :]
        if remaining:
            failed = remaining.pop(0)
            seconds = time.monotonic() - started - sum(each.seconds for each in done)
            reports.append(Report(failed.number, failed.name, "failed", [ended], seconds=seconds))
    return reports


RESULTS = "RESULTS"  # among a module's arguments: the file that it writes a line of JSON to for each result


def run_module(
    module: str,
    root: Path,
    arguments: list,
    limits: Limits,
    workspace: Path | None = None,
    stop: threading.Event | None = None,
) -> tuple[list[dict], str]:
    """Run a module that runs a learner's code: what it wrote, and in a sentence what ended it.

    workspace: the folder that the code runs in, and the only one in which it may change files (see guard);
               None lets it run in root, with all that the user may do.
    stop:      ends the process when it is set.
    Raises:    Stopped if stop was set.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        results, printed = Path(temporary, "results"), Path(temporary, "printed")
        results.touch()
        arguments = [str(results if argument is RESULTS else argument) for argument in arguments]
        with open(printed, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=workspace or root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(root, limits, workspace),
                start_new_session=True,  # so that children of the learner's code end with it
            )
        try:
            ended = _wait(process, results, printed, limits, stop or threading.Event())
        finally:
            _kill(process)
        whole_lines = _read(results).rpartition(b"\n")[0].splitlines()
        code = process.returncode
        return [json.loads(line) for line in whole_lines], ended or (
            f"your code ended the process (code {code}): {_last_line(printed)}"
        )


def _environment(root: Path, limits: Limits, workspace: Path | None) -> dict[str, str]:
    """The variables that the worker sees: its limits, where it may write, where imports are looked for."""
    variables = {**os.environ, "MINILM_COURSE_MEMORY": str(limits.memory_bytes)}
    if workspace is not None:
        variables["MINILM_COURSE_WORKSPACE"] = str(workspace)
        variables |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(workspace))
        known = os.environ.get("PYTHONPATH")
        places = [str(workspace.parent), str(root), *([known] if known else [])]
        variables["PYTHONPATH"] = os.pathsep.join(places)
    return variables


def _wait(
    process: subprocess.Popen, results: Path, printed: Path, limits: Limits, stop: threading.Event
) -> str | None:
    """Wait for the worker; the clock starts anew with each exercise that it has judged."""
    judged, started, computed = -1, time.monotonic(), 0.0
    while process.poll() is None:
        lines, computing = _read(results).count(b"\n"), _seconds_of_computing(process.pid)
        if lines != judged:
            judged, started, computed = lines, time.monotonic(), computing
        waited = time.monotonic() - started
        endless = limits.patience > 1 and computing - computed > limits.seconds
        if endless or waited > limits.seconds * limits.patience:
            return f"your code ran for more than {limits.seconds:g} s and was stopped; does a loop never end?"
        if len(_read(printed)) > limits.output_bytes:
            return f"your code printed more than {limits.output_bytes // 1024} KB and was stopped"
        if stop.is_set():
            raise Stopped
        time.sleep(0.02)
    return None


def _seconds_of_computing(pid: int) -> float:
    """How long a process has computed; 0 where the system does not tell (it does on Linux)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


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
