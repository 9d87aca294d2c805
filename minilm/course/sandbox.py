"""Running the worker with limits, so that a learner's code can neither hang nor kill the runner."""

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from minilm import atomic
from minilm.course.spec import Exercise, Report

START = 120.0  # seconds that a slow machine may take to import torch, before a learner's code runs


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
    fork: bool = False,
) -> list[Report]:
    """Check exercises in a process of their own; after an accident the rest goes on in another one.

    workspace, stop, fork: see run_module. Files in folder may import each other where workspace is beside it.
    Raises: Stopped if stop was set.
    """
    limits, reports, remaining = limits or Limits(), [], list(exercises)
    root, folder = root.resolve(), folder.resolve()
    while remaining:
        started = time.monotonic()
        numbers = [exercise.number for exercise in remaining]
        arguments = [root, folder, seed, RESULTS, *numbers]
        worker = "minilm.course.worker"
        lines, ended = run_module(worker, root, arguments, limits, workspace, stop, fork)
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
    fork: bool = False,
) -> tuple[list[dict], str]:
    """Run a module that runs a learner's code: what it wrote, and in a sentence what ended it.

    workspace: the folder that the code runs in, and the only one in which it may change files (see guard);
               None lets it run in root, with all that the user may do.
    stop:      ends the process when it is set.
    fork:      copy this process, where the system can, rather than start a new one: that saves the seconds of
               importing torch. Only for a program without threads that has computed nothing yet.
    Raises:    Stopped if stop was set.
    """
    with atomic.folder(Path(tempfile.gettempdir()), "checking") as temporary:
        results, printed = temporary / "results", temporary / "printed"
        arguments = [str(results if argument is RESULTS else argument) for argument in arguments]
        with open(printed, "wb") as output:
            start = _fork if fork and hasattr(os, "fork") else _spawn
            process = start(
                module, arguments, workspace or root, output, _environment(root, limits, workspace)
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


def _spawn(
    module: str, arguments: list[str], folder: Path, output: BinaryIO, environment: dict[str, str]
) -> subprocess.Popen:
    """Run a module in a new Python."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # so that children of the learner's code end with it
    )


class Forked:
    """A copy of this process that runs a module, used like a subprocess.Popen."""

    def __init__(self, pid: int):
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        return self._wait(0)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _fork(
    module: str, arguments: list[str], folder: Path, output: BinaryIO, environment: dict[str, str]
) -> Forked:
    """Run a module in a copy of this process, set up like the process of _spawn."""
    sys.stdout.flush()  # what waits to be printed would be printed twice
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Forked(pid)
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ.update(environment)
        for target, source in (
            (0, os.open(os.devnull, os.O_RDONLY)),
            (1, output.fileno()),
            (2, output.fileno()),
        ):
            os.dup2(source, target)
        sys.argv = [module, *arguments]
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


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
    process: subprocess.Popen | Forked, results: Path, printed: Path, limits: Limits, stop: threading.Event
) -> str | None:
    """Wait for the worker; the clock starts when it opens its file of results, and anew with each of them."""
    judged, begun, computed = -1, time.monotonic(), 0.0
    started = begun
    while process.poll() is None:
        lines, computing = _read(results).count(b"\n"), _seconds_of_computing(process.pid)
        if lines != judged or (not results.exists() and time.monotonic() - begun < START):
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


def _kill(process: subprocess.Popen | Forked) -> None:
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
