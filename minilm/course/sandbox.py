"""Running the worker with limits, so that a learner's code can neither hang nor kill the runner."""

import contextlib
import json
import multiprocessing
import os
import re
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
from typing import Any, BinaryIO, Literal, NoReturn

from minilm import atomic
from minilm.course.spec import Exercise, Report, printable

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


# What a signal that ends a process says to somebody who has never met one.
SIGNALS = {
    "SIGSEGV": "it reached for memory that is not its own, as an endless recursion does in the end",
    "SIGKILL": "as the system does where memory is short",
    "SIGABRT": "a library gave up",
}


# Where a worker comes from, if the system can copy processes; else it is a new one.
# new:      a Python that has yet to import torch, which takes seconds
# copy:     a copy of this process; only for a program without threads that has computed nothing yet
# prepared: a copy of a process that has imported torch and does nothing else; it is started when it is first
#           needed, and ends with this one
Start = Literal["new", "copy", "prepared"]
CAN_COPY = "forkserver" in multiprocessing.get_all_start_methods()


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
    start: Start = "new",
) -> list[Report]:
    """Check exercises in a process of their own; after an accident the rest goes on in another one.

    The files in folder may import each other where workspace is beside it. For the rest see run_module.
    Raises: Stopped if stop was set.
    """
    limits, reports, remaining = limits or Limits(), [], list(exercises)
    root, folder = root.resolve(), folder.resolve()
    while remaining:
        started = time.monotonic()
        numbers = [exercise.number for exercise in remaining]
        arguments = [root, folder, seed, RESULTS, *numbers]
        worker = "minilm.course.worker"
        lines, ended = run_module(worker, root, arguments, limits, workspace, stop, start)
        done = [Report(**line) for line in lines]
        for report in done:
            report.sentences = [readable(sentence) for sentence in report.sentences]
        reports += done
        remaining = remaining[len(done) :]
        if remaining:
            failed = remaining.pop(0)
            seconds = time.monotonic() - started - sum(each.seconds for each in done)
            reports.append(Report(failed.number, failed.name, "failed", [readable(ended)], seconds=seconds))
    return reports


def readable(sentence: str) -> str:
    """A sentence that any terminal can show, and that is the same each time, whatever a learner wrote."""
    return printable(re.sub(r" at 0x[0-9a-fA-F]+", "", sentence))  # where an object lies in memory


RESULTS = "RESULTS"  # among a module's arguments: the file that it writes a line of JSON to for each result


def run_module(
    module: str,
    root: Path,
    arguments: list,
    limits: Limits,
    workspace: Path | None = None,
    stop: threading.Event | None = None,
    start: Start = "new",
) -> tuple[list[dict], str]:
    """Run a module that runs a learner's code: what it wrote, and in a sentence what ended it.

    workspace: the folder that the code runs in, and the only one in which it may change files (see guard);
               None lets it run in root, and change all that the user may.
    stop:      ends the process when it is set.
    start:     where the process comes from, see Start.
    Raises:    Stopped if stop was set.
    """
    with atomic.folder(Path(tempfile.gettempdir()), "checking") as temporary:
        paths = temporary / "results", temporary / "printed"
        for path in paths:
            path.touch()
        # Opened now: what is open can still be read after a learner's code has removed it.
        with open(paths[0], "rb") as results, open(paths[1], "rb") as printed, open(paths[1], "wb") as output:
            arguments = [str(paths[0] if argument is RESULTS else argument) for argument in arguments]
            begin = {"new": _spawn, "copy": _fork, "prepared": _copy_prepared}[start if CAN_COPY else "new"]
            process = begin(
                module, arguments, workspace or root, output, _environment(root, limits, workspace)
            )
            try:
                ended = _wait(process, results, printed, limits, stop or threading.Event())
            finally:
                _kill(process)
            whole_lines = _read(results).rpartition(b"\n")[0].splitlines()
            ended = (
                ended or f"your code ended the process ({_how(process.returncode)}): {_last_line(printed)}"
            )
            return [json.loads(line) for line in whole_lines if line], ended


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
    _become(module, arguments, folder, output.name, environment)


def _become(
    module: str, arguments: list[str], folder: Path, output: str, environment: dict[str, str]
) -> NoReturn:
    """Let this process, which is a copy, run a module and end. It never returns, whatever happens."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ.update(environment)
        # What a new Python would do with its working directory and PYTHONPATH.
        sys.path[:0] = [str(folder), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        printed = os.open(output, os.O_WRONLY)
        for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, printed), (2, printed)):
            os.dup2(source, target)
        sys.argv = [module, *arguments]
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # whatever the learner's code made of them: a second runner must not go on from here
            os._exit(code)


class Prepared:
    """A copy of the prepared process, used like a subprocess.Popen."""

    lock = threading.Lock()  # multiprocessing looks at all its processes whenever one is started

    def __init__(self, *arguments: Any):
        context = multiprocessing.get_context("forkserver")
        with self.lock:
            context.set_forkserver_preload(["minilm.course.worker"])
            self.process = context.Process(target=_become, args=arguments)
            self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        with self.lock:
            return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int:
        while (code := self.returncode) is None:
            time.sleep(0.01)
        return code


def _copy_prepared(
    module: str, arguments: list[str], folder: Path, output: BinaryIO, environment: dict[str, str]
) -> Prepared | subprocess.Popen:
    """Run a module in a copy of a process that was prepared for it, set up like the process of _spawn."""
    try:
        return Prepared(module, arguments, folder, output.name, environment)
    except OSError:  # its socket cannot be made: the path of the temporary folder may be too long for one
        return _spawn(module, arguments, folder, output, environment)


def _environment(root: Path, limits: Limits, workspace: Path | None) -> dict[str, str]:
    """The variables that the worker sees: its limits, where it may write, where imports are looked for."""
    variables = {
        **os.environ,
        "MINILM_COURSE_MEMORY": str(limits.memory_bytes),
        "MINILM_COURSE_OUTPUT": str(limits.output_bytes),
        "MPLBACKEND": "agg",  # no window that somebody would have to close
        "PYTHONHASHSEED": "0",  # a set has the same order each time
    }
    if workspace is not None:
        variables["MINILM_COURSE_WORKSPACE"] = str(workspace)
        variables |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(workspace))
        known = os.environ.get("PYTHONPATH")
        places = [str(workspace.parent), str(root), *([known] if known else [])]
        variables["PYTHONPATH"] = os.pathsep.join(places)
    return variables


def _wait(
    process: subprocess.Popen | Forked | Prepared,
    results: BinaryIO,
    printed: BinaryIO,
    limits: Limits,
    stop: threading.Event,
) -> str | None:
    """Wait for the worker; the clock starts with the first line of its results, and anew with each."""
    judged, begun, computed = -1, time.monotonic(), 0.0
    started = begun
    while process.poll() is None:
        lines, computing = _read(results).count(b"\n"), _seconds_of_computing(process.pid)
        if lines != judged or (lines == 0 and time.monotonic() - begun < START):
            judged, started, computed = lines, time.monotonic(), computing
        waited = time.monotonic() - started
        endless = limits.patience > 1 and computing - computed > limits.seconds
        if endless or waited > limits.seconds * limits.patience:
            return f"your code ran for more than {limits.seconds:g} s and was stopped; does a loop never end?"
        if os.fstat(printed.fileno()).st_size > limits.output_bytes:
            return printed_too_much(limits.output_bytes)
        if stop.is_set():
            raise Stopped
        time.sleep(0.02)
    return None


def printed_too_much(output_bytes: int) -> str:
    return f"your code printed more than {output_bytes // 1024} KB; is there a print in a loop?"


def _seconds_of_computing(pid: int) -> float:
    """How long a process has computed; 0 where the system does not tell (it does on Linux)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _kill(process: subprocess.Popen | Forked | Prepared) -> None:
    """End the process and, where the system has process groups, all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _read(file: BinaryIO) -> bytes:
    """All that stands in a file that is open."""
    file.seek(0)
    return file.read()


def _how(code: int) -> str:
    """How a process ended, from what the system says of it."""
    if code >= 0:
        return f"code {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f"{name}, {SIGNALS[name]}" if name in SIGNALS else name
    return f"signal {-code}"


def _last_line(printed: BinaryIO) -> str:
    """The end of what was printed."""
    size = os.fstat(printed.fileno()).st_size
    printed.seek(max(0, size - 10_000))
    lines = printed.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it printed nothing"
