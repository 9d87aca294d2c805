"""Would the tests notice a mistake? Changes a module in one place, and runs the tests that execute it.

    python -m tests.mutate --record tests/test_cache.py tests/test_laws.py    once, and after each change
    python -m tests.mutate minilm/masks.py minilm/rope.py --sample 60         as often as you like

A change that the tests notice is killed. One that they do not is a survivor: a test is missing, the code says
more than it needs to, or the change makes no difference; the last kind stands in mutants_equivalent.txt, with
the reason. No file is touched, and nothing is imported twice that need not be:

    main process      has imported torch and transformers, but not minilm
     ├─ fork          collects the tests once
     │   └─ fork      for each change inside a function: gives the function its new code, runs tests
     └─ fork          for each change that matters on import: imports the changed module, runs tests
"""

import argparse
import gc
import hashlib
import importlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import hypothesis
import pytest

from tests.mutants import Mutant, known_equivalents, mutants

ROOT = Path.cwd()  # the repository
RECORD = ROOT / ".mutants.json"  # what --record finds: the tests of each line, and their seconds
QUIET = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
LIBRARIES = "torch transformers hypothesis beartype jaxtyping einops safetensors tokenizers numpy".split()
KILLS = ROOT / ".mutants.killed.jsonl"  # what was killed once is not tried again, unless its module changes
SURVIVED, NO_TEST, TIME_LIMIT = "survived", "no test", "time limit"


@dataclass
class Trial:
    """A change, the tests that may notice it, the most seconds that they may take, and what came of it."""

    mutant: Mutant
    source: bytes  # of the changed module
    tests: list[str]
    limit: float
    verdict: str = ""


class Recorder:
    """A pytest plugin: which lines of minilm each test executes, and how many seconds it takes."""

    def __init__(self, coverage):
        self.coverage, self.seconds, self.left_out = coverage, Counter(), set()

    def pytest_deselected(self, items):
        """What -k or -m left out keeps its place in the record."""
        self.left_out |= {item.nodeid for item in items}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """Lines count for the test that runs them, in its fixtures as well."""
        self.coverage.switch_context(item.nodeid)
        result = yield
        self.coverage.switch_context("")
        return result

    def pytest_runtest_logreport(self, report):
        """Only a test that passes can notice a change."""
        self.seconds[report.nodeid] += report.duration if report.passed else float("inf")


def record(test_files: list[str]) -> None:
    """Run these test files once, and add what they execute to the record."""
    from coverage import Coverage

    coverage = Coverage(source=[str(ROOT / "minilm")], data_file=None, config_file=False)
    recorder = Recorder(coverage)
    coverage.start()
    pytest.main([*QUIET[1:], *test_files], plugins=[recorder])
    coverage.stop()
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {"seconds": {}, "modules": {}}
    for test in set(known["seconds"]) - recorder.left_out:
        if test.split("::")[0] in test_files:
            del known["seconds"][test]
    known["seconds"] |= {test: taken for test, taken in recorder.seconds.items() if taken < float("inf")}
    data = coverage.get_data()
    for file in data.measured_files():
        path = str(Path(file).relative_to(ROOT))
        module = known["modules"].get(path)
        if module is None or module["digest"] != digest(path):
            module = known["modules"][path] = {"digest": digest(path), "lines": {}}
        for line, tests in data.contexts_by_lineno(file).items():
            found = set(module["lines"].get(str(line), [])) | {test for test in tests if test}
            module["lines"][str(line)] = sorted(found)
    known["libraries"] = sorted(name for name in sys.modules if name.split(".")[0] in LIBRARIES)
    RECORD.write_text(json.dumps(known))


def digest(path: str) -> str:
    """Which state of a module a record belongs to."""
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


def make_trial(known: dict, mutant: Mutant, source: bytes, budget: float) -> Trial:
    """With the tests that execute the changed statement, until they take budget seconds: the quickest first,
    but the twentieth case of a test not before the first one of a test that takes twenty times as long.

    What runs while the module is imported concerns every test that uses the module.
    """
    lines, seconds = known["modules"][mutant.path]["lines"], known["seconds"]
    concerned = [str(line) for line in mutant.lines] if mutant.lines else list(lines)
    tests = {test for line in concerned for test in lines.get(line, ()) if test in seconds}
    cases: dict[str, list[str]] = {}
    for test in sorted(tests, key=lambda test: (seconds[test], test)):
        cases.setdefault(test.split("[")[0], []).append(test)
    turns = [(n * seconds[test], test) for each in cases.values() for n, test in enumerate(each, start=1)]
    chosen, total = [], 0.0
    for _, test in sorted(turns):
        if total > budget:
            break
        chosen.append(test)
        total += seconds[test]
    return Trial(mutant, mutant.changed(source), chosen, limit=30 + 5 * total)


def in_fork(work: Callable[[int], int], limit: float) -> str:
    """Run work in a fork: "survived" where it returns 0, else the line that it wrote, or how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()  # so that what the tests start ends with them
        resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        code = 1
        try:
            code = work(writer)
        finally:
            os._exit(code)
    os.close(writer)
    deadline = time.monotonic() + limit
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if ended == (0, 0):
        os.waitpid(child, 0)
        os.close(reader)
        return TIME_LIMIT
    with os.fdopen(reader) as lines:
        witness = lines.readline().strip()
    code = os.waitstatus_to_exitcode(ended[1])
    return SURVIVED if code == 0 else witness or f"ended with {code}"


class Witness:
    """A pytest plugin that writes the name of a test that fails."""

    def __init__(self, writer: int):
        self.writer = writer

    def pytest_runtest_logreport(self, report):
        """The first is the last: pytest stops there."""
        if report.failed:
            os.write(self.writer, f"{report.nodeid}\n".encode())


def import_and_run(trial: Trial, writer: int) -> int:
    """Run the tests where the next import of the module compiles this source, import hooks included."""
    get_code = SourceFileLoader.get_code

    def changed(loader: SourceFileLoader, name: str) -> CodeType:
        if Path(loader.path) == ROOT / trial.mutant.path:
            return loader.source_to_code(trial.source, loader.path)
        return get_code(loader, name)

    SourceFileLoader.get_code = changed
    return pytest.main([*QUIET, *trial.tests], plugins=[Witness(writer)])


class Collected:
    """A pytest plugin: once the tests are collected, each change is tried on them in a fork."""

    def __init__(self, trials: list[Trial], writer: int):
        self.trials, self.writer, self.functions = trials, writer, {}

    def pytest_runtestloop(self, session):
        """Takes the place of running the tests; writes a line for each change: verdict, or nothing."""
        items = {item.nodeid: item for item in session.items}
        lost = {test for trial in self.trials for test in trial.tests} - items.keys()
        os.write(self.writer, f"{' '.join(sorted(lost))}\n".encode())
        for function in gc.get_objects():
            if type(function) is FunctionType:
                self.functions.setdefault(function.__code__.co_filename, []).append(function)
        gc.freeze()
        for trial in self.trials:
            verdict = ""
            renewed = self.renewed(trial)
            if renewed is not None:

                def work(writer: int, trial: Trial = trial, renewed: list = renewed) -> int:
                    for function, code in renewed:
                        function.__code__ = code
                    session.config.pluginmanager.register(Witness(writer))
                    chosen = [items[test] for test in trial.tests]
                    for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                        if session.testsfailed:
                            return 1
                    return 0

                verdict = in_fork(work, trial.limit)
            os.write(self.writer, f"{verdict}\n".encode())
        return True

    def renewed(self, trial: Trial) -> list[tuple[FunctionType, CodeType]] | None:
        """The functions of the module with their new code; None where only an import can tell."""
        name = trial.mutant.path.removesuffix(".py").replace("/", ".")
        if trial.mutant.on_import or name not in sys.modules:
            return None
        loader = sys.modules[name].__spec__.loader
        codes = {}
        for code in nested_code(loader.source_to_code(trial.source, loader.path)):
            codes.setdefault((code.co_qualname, code.co_firstlineno), []).append(code)
        renewed = []
        for function in self.functions.get(loader.path, []):
            found = codes.get((function.__code__.co_qualname, function.__code__.co_firstlineno), [])
            if len(found) != 1 or found[0].co_freevars != function.__code__.co_freevars:
                return None
            renewed.append((function, found[0]))
        return renewed


def nested_code(code: CodeType) -> Iterator[CodeType]:
    """The code of all functions and classes inside."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from nested_code(constant)


def try_all(trials: list[Trial]) -> Iterator[Trial]:
    """Give every trial its verdict, first those that need no new import."""
    tried = [trial for trial in trials if trial.tests]
    for trial in trials:
        if not trial.tests:
            trial.verdict = NO_TEST
            yield trial
    files = sorted({test.split("::")[0] for trial in tried for test in trial.tests})
    reader, writer = os.pipe()
    collector = os.fork() if tried else 0
    if tried and collector == 0:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os._exit(pytest.main([*QUIET, "-s", *files], plugins=[Collected(tried, writer)]))
    os.close(writer)
    with os.fdopen(reader) as verdicts:
        lost = verdicts.readline().strip()
        if lost:
            raise SystemExit(f"these tests exist no more, so run --record again: {lost}")
        for trial, verdict in zip(tried, verdicts, strict=False):
            trial.verdict = verdict.strip()
            if trial.verdict:
                yield trial
    for trial in tried:
        if not trial.verdict:
            trial.verdict = in_fork(lambda writer, trial=trial: import_and_run(trial, writer), trial.limit)
            yield trial
    if tried:
        os.waitpid(collector, 0)


def read_kills() -> dict[tuple[str, ...], str]:
    """Earlier kills: state of the module, path, line and change, and what noticed it."""
    lines = KILLS.read_text(encoding="utf-8").splitlines() if KILLS.exists() else []
    return {tuple(key): verdict for *key, verdict in map(json.loads, lines)}


def main(words: list[str] | None = None) -> int:
    """Record, or try; returns how many changes survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", help="modules; with --record, test files")
    parser.add_argument("--record", action="store_true", help="find out what these test files execute")
    parser.add_argument("--sample", type=int, help="try so many changes of each module; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--match", default="", help="only changes whose 'function: old → new' holds this")
    parser.add_argument("--seconds", type=float, default=30, help="of tests to spend on one change")
    parser.add_argument("--verbose", action="store_true", help="show the killed, too, and what killed them")
    arguments = parser.parse_args(words)
    hypothesis.settings.register_profile(  # the same examples every time, and no shrinking of failures
        "mutate", derandomize=True, database=None, deadline=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )  # fmt: skip
    hypothesis.settings.load_profile("mutate")
    if arguments.record:
        record(arguments.paths)
        return 0
    os.environ.pop("PYTEST_ADDOPTS", None)  # a -k of the recording would leave out what is chosen here
    known = json.loads(RECORD.read_text())
    for name in known["libraries"]:
        with suppress(Exception):  # some modules only exist while another one is imported
            importlib.import_module(name)
    listed = (ROOT / "tests/mutants_equivalent.txt").read_text(encoding="utf-8")
    killed = read_kills()
    trials, counts = [], {}
    for path in arguments.paths:
        if known["modules"].get(path, {}).get("digest") != digest(path):
            raise SystemExit(f"{path} is not what was recorded; run --record with the test files that use it")
        source = (ROOT / path).read_bytes()
        made = mutants(path, source)
        equivalent = known_equivalents(path, made, listed)
        chosen = [mutant for mutant in made if arguments.match in f"{mutant.function}: {mutant.description}"]
        if arguments.sample and arguments.sample < len(chosen):
            chosen = random.Random(arguments.seed).sample(chosen, arguments.sample)
        chosen.sort(key=lambda mutant: mutant.start)
        count = counts[path] = Counter(made=len(made), tried=len(chosen))
        for mutant in chosen:
            verdict = killed.get((digest(path), *mutant.key), "")
            if mutant in equivalent:
                count["equivalent"] += 1
            elif verdict:
                count["killed"] += 1
                count["time"] += verdict == TIME_LIMIT
            else:
                trials.append(make_trial(known, mutant, source, arguments.seconds))
    for trial in try_all(trials):
        mutant, alive = trial.mutant, trial.verdict in (SURVIVED, NO_TEST)
        kind = ("guard" if mutant.guards else "alive") if alive else "killed"
        counts[mutant.path][kind] += 1
        counts[mutant.path]["time"] += trial.verdict == TIME_LIMIT
        if alive or arguments.verbose:
            print(f"{mutant.path}:{mutant.line} {kind} {mutant.function}: {mutant.source_line}")
            print(f"    {mutant.description}    [{trial.verdict}, {len(trial.tests)} tests]", flush=True)
        if not alive:
            with KILLS.open("a", encoding="utf-8") as kills:
                kills.write(json.dumps([digest(mutant.path), *mutant.key, trial.verdict]) + "\n")
    columns = ("made", "tried", "killed", "time", "equivalent", "alive", "guard")
    print(f"{'module':<28}" + "".join(f"{column:>11}" for column in columns))
    for path, count in counts.items():
        print(f"{path:<28}" + "".join(f"{count[column]:>11}" for column in columns))
    return sum(count["alive"] + count["guard"] for count in counts.values())


if __name__ == "__main__":
    sys.exit(min(main(), 1))
