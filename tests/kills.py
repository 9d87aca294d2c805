"""Kills work at each of its steps and at random moments, looks at what is left, and lets it go on.

    python tests/kills.py --times 100 --seed 0 --only save,train

Each kind of work (killed_work.py) has a state of its files before and one after. Wherever it is killed, what
it leaves must be one of the two, or whole between them; and the next call must end with all of the new,
without doing again what was kept, and without anything left over. A kill comes in one of three ways:

- at every step: before the 1st, 2nd, 3rd … time that it opens a file for writing, renames or removes one.
  Python tells an audit hook of these (PEP 578). The next call is killed as well, at a step that is drawn;
- in the middle of every file: the system ends a process that writes more than so many bytes (RLIMIT_FSIZE),
  from its beginning, or from the step at which it opens a file;
- at moments drawn from the time that the work takes.
"""

import argparse
import gc
import importlib
import json
import os
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

KILLED, TOO_LARGE, ENDED = -signal.SIGKILL, -signal.SIGXFSZ, 0
CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
STEPS = "os.chmod os.link os.mkdir os.remove os.rename os.rmdir os.symlink os.truncate".split()
STATES = ("old", "between", "new")
BEGUN = 5  # bytes of a file that are more than nothing and less than all


@dataclass(frozen=True)
class Work:
    """Something to kill. Its functions get the folder that it works in.

    prepare: makes what is there before.
    act:     is killed. Called again it goes on, or begins anew.
    look:    tells the state of what is there, one of STATES; raises where something is not whole.
    keeps:   what there is by now that the next call must leave as it is: name -> content.
    """

    name: str
    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    look: Callable[[Path], str]
    keeps: Callable[[Path], dict] = lambda folder: {}


@dataclass
class Outcome:
    """What was seen of one kind of work."""

    work: str
    steps: int = 0  # kills of each kind
    files: int = 0
    moments: int = 0
    late: int = 0  # of the moments: the work had ended before
    states: Counter = field(default_factory=Counter)  # of what the killed left
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0  # that the work takes when nobody kills it


# ----------------------------------------------------------------------------------------------------------
# Killing


def run(
    act: Callable[[Path], object],
    folder: Path,
    arm: Callable[[], object] = lambda: None,
    delay: float | None = None,
) -> int:
    """Do work in a copy of this process; returns its exit code, negative for the signal that ended it.

    arm:   is called in the copy before the work begins.
    delay: seconds after which it is killed.
    """
    begun, begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            # Slow, and only of use where power fails: the system keeps what a killed process has written.
            os.fsync = lambda file: None
            arm()
            os.write(begin, b"begun")
            act(folder)
            code = ENDED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(begin)
    os.read(begun, 5)
    os.close(begun)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)  # of no effect where it has ended; until waitpid its number is its own
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def watch(see: Callable[[int, str], object]) -> None:
    """Call a function before each change of a file by this process: with its number from 1, and its name."""
    numbers, me = count(1), os.getpid()

    def hook(event: str, arguments: tuple) -> None:
        changing = event in STEPS or (event == "open" and (arguments[2] or 0) & CHANGING)
        if changing and os.getpid() == me:
            see(next(numbers), event)

    sys.addaudithook(hook)


def record(path: Path) -> Callable[[], None]:
    """Write down the names of this process's steps, a line each."""

    def arm() -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        watch(lambda _, event: os.write(file, f"{event}\n".encode()))

    return arm


def at_step(number: int) -> Callable[[], None]:
    """Let this process kill itself just before a step."""

    def arm() -> None:
        watch(lambda each, _: each == number and os.kill(os.getpid(), signal.SIGKILL))

    return arm


def in_file(size: int) -> Callable[[], None]:
    """Let the system end this process when it has written so many bytes to a file and wants to write more."""
    return in_opened(0, size)


def in_opened(number: int, size: int) -> Callable[[], None]:
    """The same from the step of this number on, which opens a file; 0 for the beginning."""

    def limit() -> None:
        _, highest = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, highest))  # its children may set their own

    def arm() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python would get an error instead
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number:
            watch(lambda each, _: each == number and limit())
        else:
            limit()

    return arm


# ----------------------------------------------------------------------------------------------------------
# Looking


class Trial:
    """One kind of work, killed in many ways, each time from the same state."""

    def __init__(self, work: Work, place: Path, draw: random.Random):
        self.work, self.place, self.draw, self.outcome = work, place, draw, Outcome(work.name)
        self.before = place / "before"
        self.before.mkdir()
        work.prepare(self.before)
        assert work.look(self.before) == "old", f"{work.name}: it begins with something else"
        work.act(self.fresh())  # imports what it needs, so that no copy of this process has to
        gc.collect()
        gc.freeze()  # a collection in a copy would touch, and so copy, the memory of all that is there
        assert run(work.act, self.fresh(), record(place / "steps")) == ENDED
        self.steps = (place / "steps").read_text().split()
        self.outcome.seconds = statistics.median(self.seconds() for _ in range(3))
        folder = self.fresh()
        self.go_on(folder, "nobody killed it")
        self.sizes = {path.stat().st_size for path in folder.rglob("*") if path.is_file()} - {0}

    def fresh(self) -> Path:
        """A new copy of the state before."""
        folder = self.place / "work"
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(self.before, folder))

    def seconds(self) -> float:
        """How long the work takes, without the time for copying this process."""
        note, folder = self.place / "seconds", self.fresh()

        def timed(folder: Path) -> None:
            start = time.perf_counter()
            self.work.act(folder)
            note.write_text(str(time.perf_counter() - start))

        assert run(timed, folder) == ENDED
        return float(note.read_text())

    @property
    def hopeless(self) -> bool:
        """Whether enough has been seen."""
        return len(self.outcome.problems) >= 10

    def at_steps(self, stride: int) -> None:
        """Kill it at every step, or at every stride-th, and once more when it goes on."""
        number = 1 + self.draw.randrange(stride)
        while not self.hopeless and self.kill(
            f"at step {number}", at_step(number), again=at_step(self.draw.randint(1, number + 8))
        ):
            self.outcome.steps += 1
            number += stride

    def in_files(self, stride: int) -> None:
        """Kill it in the middle of files and just before their ends, or at every stride-th such place."""
        places = sorted({place for size in self.sizes for place in (size // 2, size - 1)})
        kills = [(f"in a file, at byte {place}", in_file(place)) for place in places]
        opened = [number for number, step in enumerate(self.steps, start=1) if step == "open"]
        kills += [(f"in the file of step {number}", in_opened(number, BEGUN)) for number in opened]
        for when, arm in kills[self.draw.randrange(min(stride, len(kills))) :: stride]:
            self.outcome.files += self.kill(when, arm)

    def at_moments(self, times: int) -> None:
        """Kill it at moments drawn from the time that it takes, and a little more."""
        for _ in range(times):
            if self.hopeless:
                break
            delay = self.draw.uniform(0, 1.1) * self.outcome.seconds
            self.outcome.moments += 1
            self.outcome.late += not self.kill(f"after {delay:.4f} s", delay=delay)

    def kill(
        self,
        when: str,
        arm: Callable[[], object] = lambda: None,
        delay: float | None = None,
        again: Callable[[], object] | None = None,
    ) -> bool:
        """Kill it once, and let it go on; returns whether it was killed before it had ended."""
        folder = self.fresh()
        code = run(self.work.act, folder, arm, delay)
        if code not in (KILLED, TOO_LARGE, ENDED):
            self.outcome.problems.append(f"{when}: it failed with code {code}")
        if code != ENDED:
            self.look(folder, when)
        if again is not None and run(self.work.act, folder, again) == KILLED:
            self.look(folder, f"{when}, and again")
        self.go_on(folder, when)
        return code != ENDED

    def look(self, folder: Path, when: str) -> None:
        """Note the state that a kill has left."""
        try:
            self.outcome.states[self.work.look(folder)] += 1
        except Exception as error:
            self.outcome.problems.append(f"{when}: {type(error).__name__}: {error}")

    def go_on(self, folder: Path, when: str) -> None:
        """Let the work come to its end, which must be the same whatever happened before."""
        try:
            kept = self.work.keeps(folder)
            code, now = run(self.work.act, folder), self.work.keeps(folder)
            assert code == ENDED, f"the next call failed with code {code}"
            state = self.work.look(folder)
            assert state == "new", f"the next call ended with what is {state}"
            changed = [name for name, content in kept.items() if now.get(name) != content]
            assert not changed, f"the next call changed {', '.join(changed)}"
            left = [path.name for path in folder.rglob(".minilm-*")]
            assert not left, f"the next call left {', '.join(left)}"
        except Exception as error:
            self.outcome.problems.append(f"{when}: {type(error).__name__}: {error}")


def try_all(works: list[Work], times: int, seed: int = 0, stride: int = 1) -> Iterator[Outcome]:
    """Kill every kind of work in each of the three ways; `times` is the number of random moments."""
    for work in works:
        with tempfile.TemporaryDirectory() as place:
            trial = Trial(work, Path(place), random.Random(f"{seed} {work.name}"))
            trial.at_steps(stride)
            trial.in_files(stride)
            trial.at_moments(times)
            yield trial.outcome


# ----------------------------------------------------------------------------------------------------------
# The command


COLUMNS = "{:34} {:>6} {:>7} {:>7} {:>7} {:>6}  {:>5} {:>7} {:>5}  {}"
TITLES = ("work", "ms", "steps", "files", "moments", "late", *STATES, "")


def as_line(outcome: Outcome) -> str:
    """A row of the table."""
    kills = outcome.steps, outcome.files, outcome.moments, outcome.late
    states = (outcome.states[state] for state in STATES)
    verdict = f"{len(outcome.problems)} BROKEN" if outcome.problems else "intact"
    return COLUMNS.format(outcome.work, f"{1e3 * outcome.seconds:.0f}", *kills, *states, verdict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100, help="random moments for each kind of work")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--stride", type=int, default=1, help="take one of N steps and files")
    parser.add_argument("--only", default="", help="beginnings of names, separated by commas")
    parser.add_argument("--works", default="killed_work", help="the module in tests/ that defines the work")
    parser.add_argument("--json", type=Path, help="a file to write what was seen to")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))  # this copy of minilm, whichever is installed
    every = importlib.import_module(options.works).WORKS
    works = [work for work in every if work.name.startswith(tuple(options.only.split(",")))]
    if not works:
        parser.error(f"--only {options.only} fits none of {', '.join(work.name for work in every)}")
    print(COLUMNS.format(*TITLES), flush=True)
    outcomes = []
    for outcome in try_all(works, options.times, options.seed, options.stride):
        print("\n    ".join([as_line(outcome), *outcome.problems]), flush=True)
        outcomes.append(outcome)
    if options.json:
        options.json.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1))
    sys.exit(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    main()
