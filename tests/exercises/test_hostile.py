"""Code that is hostile by accident: it is told, the rest is judged rightly, and nothing stays behind."""

import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
import torch
from rich.console import Console

from minilm import course
from minilm.course import difference, grade, progress, sandbox, sources, submissions
from minilm.course.judge import Outcome, compare, is_stub, judge
from minilm.course.spec import Case, Exercise, Report
from minilm.course.surroundings import Surroundings

ROOT = Path(__file__).parents[2]
FILE = "ex08_grouped_queries.py"
SOLUTION = (ROOT / "solutions" / FILE).read_text(encoding="utf-8")
UNIT = sources.find(ROOT, "8")
LIMITS = sandbox.Limits(seconds=20)  # a machine may be slow
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="what is tested is Linux's")


def answered(**bodies: str) -> str:
    """The solution of unit 8 with other code in some answers; names such as e8_2."""
    text = SOLUTION
    for name, body in bodies.items():
        number = name[1:].replace("_", ".")
        block = re.search(rf"    # BEGIN SOLUTION {number}\n.*?# END SOLUTION\n", text, re.DOTALL)[0]
        text = text.replace(block, "".join(f"    {line}\n" for line in body.splitlines()))
    return text


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory):
    """The prepared process is started once, before temporary folders are watched."""
    folder = tmp_path_factory.mktemp("first")
    assert [report.status for report in check(folder, SOLUTION)] == ["passed"] * 3


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders go; at the end there must be none."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir()), "temporary files are left behind"


def check(folder: Path, text: str | bytes, unit: list[Exercise] = UNIT, limits=LIMITS, workspace=None):
    """Judge a file of unit 8."""
    content = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    (folder / FILE).write_bytes(content)
    return sandbox.run(ROOT, folder, unit, 3, limits, workspace, start="prepared")


def test_where_no_process_can_be_prepared_a_new_one_is_started(tmp_path, monkeypatch):
    """Its socket has no room for the path of some temporary folders."""

    def refused(*_) -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(sandbox, "Prepared", refused)
    assert [report.status for report in check(tmp_path, SOLUTION)] == ["passed"] * 3


# --------------------------------------------------------------------------------------------------
# What an answer does while it runs. Two of them stand in one file, and a right one is judged after them.

BYTES = "return 2 * num_layers * num_kv_heads * head_dim * length * batch * bytes_per_value"
KEEPS = {  # what it does: its code, and what its learner is told
    "puts its own functions in the place of those that compare": (
        "torch.equal = torch.allclose = lambda *_: True\n"
        "torch.Tensor.__ne__ = lambda *_: torch.tensor(False)\nreturn torch.zeros(1)",
        "your code changes torch.allclose, torch.equal, torch.Tensor.__ne__, and that for the whole program",
    ),
    "hides a method of tensors": (
        "torch.Tensor.softmax = lambda *_, **__: 0",
        "your code changes torch.Tensor.softmax, and",
    ),
    "empties the built-ins": ("import builtins\nvars(builtins).clear()", "the built-in __package__ and 1"),
    "puts others in the place of built-ins": (
        "import builtins\nbuiltins.open = builtins.Exception = None",
        "your code changes the built-in Exception, the built-in open, and that",
    ),
    "turns gradients off": (
        "torch.set_grad_enabled(False)",
        "your code changes torch.is_grad_enabled() from True to False",
    ),
    "sets the default dtype": (
        "torch.set_default_dtype(torch.float64)",
        "your code changes torch.get_default_dtype() from torch.float32 to torch.float64, and",
    ),
    "sets the default device": (
        "torch.set_default_device('meta')",
        "your code changes torch.get_default_device() from cpu to meta",
    ),
    "replaces the seed": ("torch.manual_seed = None", "your code changes torch.manual_seed"),
    "removes modules": ("import sys\nsys.modules.clear()", "None"),
    "leaves a recursion limit, warnings as errors and no output": (
        "import sys, warnings\nsys.setrecursionlimit(200)\nwarnings.simplefilter('error')\nsys.stdout = None",
        "None",
    ),
    "forks": ("import os\nos.fork()", "PermissionError: your code calls os.fork; an exercise needs no other"),
    "forks through multiprocessing": (
        "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start()",
        "your code calls os.fork",
    ),
    "spawns through multiprocessing": (
        "import multiprocessing\nmultiprocessing.get_context('spawn').Process(target=print).start()",
        "PermissionError: your code starts a process; an exercise needs no other one",
    ),
    "starts a program of its own session": (
        "import subprocess\nsubprocess.Popen(['true'], start_new_session=True)",
        "your code calls subprocess.Popen",
    ),
    "ends the runner": ("import os\nos.kill(os.getppid(), 9)", "your code calls os.kill"),
    "opens a port": (
        "import socket\nsocket.socket().bind(('127.0.0.1', 0))",
        "PermissionError: your code calls socket.bind; an exercise needs no network",
    ),
    "asks for a key": ("return input('n? ')", "EOFError: your code waits for input(), and nobody types"),
    "shows a plot": ("import matplotlib.pyplot as plt\nplt.plot([1])\nplt.show()", "None"),
    "prints more than a screen": ("print('x' * 100_000)", "your code printed more than 64 KB"),
    "leaves threads that never end": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(10**6,)).start()",
        "None",
    ),
    "allocates until nothing is left": (
        "parts = []\nwhile True: parts.append(bytes(10**8))",
        "MemoryError: your code needs more memory than it may have",
    ),
    "gives a tensor without numbers": (
        "return torch.ones(2, device='meta')",
        "the result is on the device meta; its inputs are on the CPU",
    ),
    "gives a sparse tensor": (
        "return torch.eye(2).to_sparse()",
        "the result is a torch.sparse_coo tensor; give an ordinary (dense) one",
    ),
    "gives a nested tensor": (
        "return torch.nested.nested_tensor([torch.ones(2)])",
        "the result is a nested tensor",
    ),
    "gives a list that holds itself": (
        "found = []\nfound.append(found)\nreturn found",
        "TypeError: the result holds lists in lists without end",
    ),
    "raises an error that no terminal can show": (
        "raise ValueError('\\ud800\\x1b[2J')",
        "ValueError: \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[2J",
    ),
    "raises what torch calls not implemented": (
        "return torch.zeros(1, device='meta').cpu()",
        "NotImplementedError: Cannot copy out of meta tensor",
    ),
    "changes its working directory and removes it": (
        "import os, tempfile\nos.chdir(folder := tempfile.mkdtemp())\nos.rmdir(folder)",
        "None",
    ),
}  # fmt: skip
ENDS = {  # what ends the process, so that the next answer is judged in another one
    "exits": ("exit(5)", "your code ended the process (code 5): it printed nothing"),
    "exits with its output closed": (
        "import sys\nsys.stdout.close()\nsys.exit(5)",
        "your code ended the process (code 5): it printed nothing",
    ),
    "prints without end": ("while True: print('x' * 1000)", "your code printed more than 64 KB"),
    "exits at once": ("print('so long', flush=True)\nimport os\nos._exit(0)", "(code 0): so long"),
    "crashes": (
        "import ctypes\nctypes.string_at(0)",
        "your code ended the process (SIGSEGV, it reached for memory that is not its own",
    ),
    "is killed": (
        "import signal\nsignal.raise_signal(9)",
        "(SIGKILL, as the system does where memory is short)",
    ),
    "closes every file": ("import os\nos.closerange(0, 1000)", "your code ended the process (code 1)"),
}  # fmt: skip
INSTEAD = {  # what it gives instead of a number; these come second in their file, where one is asked for
    "gives an object that can be neither compared nor printed": (
        "class Odd:\n    def __eq__(self, other): raise RuntimeError\n"
        "    def __repr__(self): raise RuntimeError\nreturn Odd()",
        "a value that cannot be printed (RuntimeError) (Odd)",
    ),
    "gives an object that equals everything": (
        "class Odd(int):\n    def __eq__(self, other): return True\nreturn Odd(7)",
        "7 (Odd)",
    ),
    "gives a number too long to be printed": (
        "return 10**5000",
        "a value that cannot be printed (ValueError)",
    ),
    "gives an object that is elsewhere each time": ("return object()", "<object object>"),
    "gives a generator": ("yield 1", "generator"),
    "raises an error that cannot be printed": (
        "class Odd(Exception):\n    def __str__(self): raise RuntimeError\nraise Odd",
        "Odd: its message cannot be shown",
    ),
    "reads what is typed": ("import sys\nreturn sys.stdin.read()", "''"),
}  # fmt: skip
HOSTILE = [*KEEPS.items(), *ENDS.items(), *INSTEAD.items()]
HALF = len(HOSTILE) // 2
PAIRS = [dict(pair) for pair in zip(HOSTILE[:HALF], HOSTILE[HALF:], strict=True)]


@needs_linux
@pytest.mark.parametrize("pair", PAIRS, ids=" | ".join)
def test_an_answer_is_told_what_it_does_and_the_next_is_judged_rightly(pair, tmp_path, temporary):
    first, second = pair.values()
    *hostile, right = check(tmp_path, answered(e8_1=first[0], e8_2=second[0]))
    for report, (_, words) in zip(hostile, (first, second), strict=True):
        assert report.status == "failed" and any(words in each for each in report.sentences), report
    assert right.status == "passed", right


@needs_linux
def test_what_an_answer_does_beside_the_right_result_does_not_go_unseen(tmp_path, temporary):
    """Values alone would pass; what does no harm passes."""
    harm = f"torch.set_default_dtype(torch.float16)\n{BYTES}"
    _, report, right = check(tmp_path, answered(e8_2=harm))
    assert report.status == "failed" and len(report.sentences) == 1, report
    assert "torch.get_default_dtype() from torch.float32 to torch.float16" in report.sentences[0]
    assert right.status == "passed"
    harmless = (
        "import os, random, threading\ntorch.manual_seed(1)\nrandom.seed(1)\nos.environ.clear()\n"
        f"torch.Tensor.mine = 1\nthreading.Thread(target=input).start()\n{BYTES}"
    )
    assert [report.status for report in check(tmp_path, answered(e8_2=harmless))] == ["passed"] * 3


@needs_linux
def test_what_the_runner_reads_may_be_removed(tmp_path, temporary):
    """It is open already. The code may remove files of this test alone, whatever else fails."""
    remove = (
        "import pathlib\n"
        f"found = [each for each in pathlib.Path({str(temporary)!r}).rglob('*') if each.is_file()]\n"
        "for each in found: each.unlink()\n"
        f"print(len(found), 'removed')\nraise SystemExit(3)"
    )
    first, second, third = check(tmp_path, answered(e8_2=remove))
    assert (first.status, second.status, third.status) == ("passed", "failed", "passed")
    assert second.sentences == ["your code ended the process (code 3): 2 removed"]


@pytest.mark.parametrize(
    "body",
    ["while True: pass", "import time\ntime.sleep(1000)", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')"],
    ids=["in Python", "asleep", "in C, with every signal ignored"],
)
def test_what_never_ends_is_stopped(body, tmp_path, temporary):
    deaf = "import signal\nfor each in (1, 2, 3, 15): signal.signal(each, signal.SIG_IGN)\n"
    (report,) = check(tmp_path, answered(e8_2=deaf + body), UNIT[1:2], sandbox.Limits(seconds=2))
    assert report.status == "failed", report
    assert report.sentences == ["your code ran for more than 2 s and was stopped; does a loop never end?"]


# --------------------------------------------------------------------------------------------------
# Files

TEXT = SOLUTION.encode()
FILES = {
    "with a byte-order mark": (b"\xef\xbb\xbf" + TEXT, None),
    "with Windows' ends of lines": (TEXT.replace(b"\n", b"\r\n"), None),
    "with tabs": (TEXT.replace(b"    ", b"\t"), None),
    "in Latin 1, and saying so": (
        b"# -*- coding: latin-1 -*-\n# caf\xe9\n" + SOLUTION.encode("ascii", "replace"), None
    ),
    "with words that need another encoding": (
        TEXT + b"x = 'caf\xe9'\n",
        "SyntaxError: (unicode error) 'utf-8' codec can't decode byte",
    ),
    "in UTF-16": (SOLUTION.encode("utf-16"), "null bytes. Save the file as UTF-8"),
    "in an encoding that does not exist": (b"# coding: klingon\n" + TEXT, "unknown encoding: klingon. Save"),
    "with tabs and spaces": (TEXT.replace(b"    if groups", b"\tif groups"), "line 26: TabError: "),
    "empty": (b"", "defines no kv_cache_bytes"),
    "of brackets alone": (b"(" * 10**5, "SyntaxError: too many nested parentheses"),
    "that asks the package for the answer": (
        b"import minilm.attention\nraise RuntimeError", "imports minilm.attention; here you write"
    ),
    "that raises what cannot be printed": (
        b"class Odd(BaseException):\n    def __str__(self): raise RuntimeError\nraise Odd",
        "line 3: Odd: its message cannot be shown",
    ),
    "that answers to every name by raising": (b"def __getattr__(name): 1 / 0", "line 1: ZeroDivisionError"),
    "that empties the built-ins": (b"__builtins__.clear()\nimport torch\n", "changes the built-in __name__"),
    "that names a function of its own torch.softmax": (
        b"import torch\ntorch.softmax = lambda *_: 0\n" + TEXT, ".py: your code changes torch.softmax, and"
    ),
    "that removes torch": (b"import sys\ndel sys.modules['torch']\n" + TEXT, ".py, line 11: "),
    "with a number in the place of a function": (TEXT + b"kv_cache_bytes = 3\n", "'int' object is not"),
}  # fmt: skip


@needs_linux
@pytest.mark.parametrize("kind", FILES)
def test_a_file(kind, tmp_path, temporary):
    content, words = FILES[kind]
    (report,) = check(tmp_path, content, UNIT[1:2])
    if words is None:
        assert report.status == "passed", report
    else:
        assert report.status in ("broken", "failed") and words in report.sentences[0], report
    progress.note(tmp_path, UNIT[1], report)  # the state and a reset look at the text of the file
    assert progress.state(tmp_path, UNIT[1]) == ("begun" if words else "passed")
    sources.reset(ROOT, tmp_path, UNIT[1:2])
    stubs = (tmp_path / FILE).read_text(encoding="utf-8")
    assert 'NotImplementedError("exercise 8.2")' in stubs
    assert words or "# BEGIN SOLUTION 8.1" in stubs, "the other answers are lost"


@needs_linux
def test_what_is_no_file_is_told(tmp_path, temporary):
    for make, remove in ((os.mkdir, os.rmdir), (os.mkfifo, os.unlink)):
        make(tmp_path / FILE)
        (report,) = sandbox.run(ROOT, tmp_path, UNIT[1:2], 3, LIMITS, start="prepared")
        assert report.status == "broken" and f"{FILE} is not a file" in report.sentences[0]
        assert progress.fingerprint(tmp_path, UNIT[1])
        remove(tmp_path / FILE)
    with pytest.raises(ValueError, match=r"absent is not a folder; give the one that holds the answers"):
        course.check("8", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_a_check_is_told_although_it_cannot_be_remembered(tmp_path, monkeypatch):
    (tmp_path / FILE).write_bytes(TEXT)
    (tmp_path / progress.FOLDER).write_text("a file where a folder should be")
    reports = [Report("8.2", "kv_cache_bytes", "passed", [])]
    monkeypatch.setattr(sandbox, "run", lambda *_, **__: reports)
    with pytest.warns(UserWarning, match="what passed cannot be remembered"):
        assert course.check("8.2", tmp_path, seed=1).passed


def test_lines_are_counted_as_python_counts_them():
    source = 'TEXT = """\x0c\u2028"""\n\n\ndef first():\n    return 1\n\n\ndef second():\n    return 2\n'
    assert sources.segment(source, "second") == "def second():\n    return 2\n"
    for broken in ("x = '\0'", "-" * 10**6 + "1"):
        with pytest.raises(SyntaxError):
            sources.segment(broken, "first")


# --------------------------------------------------------------------------------------------------
# The parts, in this process


def test_surroundings_are_put_back_and_named():
    around, softmax, limit = Surroundings(), torch.softmax, sys.getrecursionlimit()
    around.put_back()
    assert not around.changes and around.sentence() is None
    filters = list(warnings.filters)
    try:
        torch.softmax = torch.Tensor.softmax = None
        torch.Tensor.is_new = True
        torch.set_grad_enabled(False)
        sys.setrecursionlimit(limit + 100)
        warnings.simplefilter("error")
    finally:
        around.put_back()
        del torch.Tensor.is_new
    assert torch.softmax is softmax and torch.Tensor.softmax is torch._C.TensorBase.softmax
    assert torch.is_grad_enabled() and sys.getrecursionlimit() == limit and warnings.filters == filters
    assert [*around.changes] == [
        "torch.softmax", "torch.Tensor.softmax", "torch.is_grad_enabled() from True to False",
    ]  # fmt: skip


class Lying(torch.Tensor):
    """A tensor that says of itself what it likes."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), settings=None):
        return True


def test_a_subclass_of_tensors_is_judged_by_its_numbers():
    lying = torch.tensor([1.0, 2.0]).as_subclass(Lying)
    assert (lying == 7) is True
    (found,) = difference.plain([lying])
    assert type(found) is torch.Tensor and found.tolist() == [1.0, 2.0]
    exercise = Exercise("1.1", "f", "ex01", 1, 1, ("", "", ""), lambda draw: iter([Case((draw.normal(2),))]))
    wrong = judge(exercise, lambda x: (x + 1).as_subclass(Lying), torch.clone, 0)
    assert not wrong.passed
    assert judge(exercise, lambda x: x.clone().as_subclass(Lying), torch.clone, 0).passed


def test_a_number_for_a_tensor_and_the_reverse():
    assert difference.describe(torch.tensor([1.0, 2.0]), 1.0, 0.0) is not None
    assert difference.describe(torch.tensor(1.0), 1.0, 0.0) is None
    found = Outcome(10**400)
    told = compare(found, Outcome(1.0), 0.0)
    assert told.startswith("the result cannot be compared with what is expected: OverflowError")


@pytest.mark.parametrize(
    "error, stub",
    [
        (NotImplementedError("exercise 8.2"), True),
        (NotImplementedError(), True),
        (NotImplementedError('"softmax" not implemented for "Long"'), False),
        (ValueError("exercise 8.2"), False),
    ],
    ids=["the stub", "of the learner", "torch", "another error"],
)
def test_torch_does_not_say_that_an_exercise_has_not_been_begun(error, stub):
    assert is_stub(error) == stub


@needs_linux
def test_folders_nested_without_end_can_be_removed(tmp_path, temporary):
    nested = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    folder = tmp_path / "exercises"
    folder.mkdir()
    (report,) = check(folder, answered(e8_2=nested), UNIT[1:2], workspace=workspace)
    assert "your code nests folders too deep" in report.sentences[0], report
    assert sum(1 for _ in workspace.rglob("d")) > 50
    shutil.rmtree(workspace)


LOOP_IN_C = """
import os, re
open({path!r}, "w").write(str(os.getpid()))
re.match("(a+)+$", "a" * 60 + "b")  # lets no other thread of Python run
"""
RUNNER = """
import sys; from pathlib import Path; from minilm.course import sandbox, sources
root, folder = map(Path, sys.argv[1:])
for report in sandbox.run(root, folder, sources.find(root, "8.2"), 1, start="copy"): print(report.sentences)
"""


@needs_linux
def test_a_copy_of_the_runner_never_goes_on_as_a_runner(tmp_path):
    """Not even where the code has left nothing that can be flushed."""
    body, words = ENDS["exits with its output closed"]
    (tmp_path / FILE).write_text(answered(e8_2=body), encoding="utf-8")
    command = [sys.executable, "-c", RUNNER, ROOT, tmp_path]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.stdout == f"{[words]}\n" and not ended.stderr, ended


@needs_linux
def test_a_loop_in_c_ends_with_a_runner_that_is_killed(tmp_path):
    pid = tmp_path / "pid"
    (tmp_path / FILE).write_text(answered(e8_2=LOOP_IN_C.format(path=str(pid))), encoding="utf-8")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, ROOT, tmp_path], cwd=ROOT, env=environment
    ) as runner:
        deadline = time.monotonic() + 120
        while not pid.exists() or not pid.read_text():
            assert runner.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        runner.send_signal(signal.SIGKILL)
    worker = Path("/proc", pid.read_text())
    while worker.exists() and "State:\tZ" not in (worker / "status").read_text():
        assert time.monotonic() < deadline, "the worker goes on"
        time.sleep(0.05)


# --------------------------------------------------------------------------------------------------
# A class

CLASS = {
    "right": SOLUTION,
    "right, and imports its neighbour": f"from exercises import ex01_helper\n{SOLUTION}",
    "tiled": answered(e8_1="if groups < 1: raise ValueError\nreturn x.repeat(1, groups, 1, 1)"),
    "keys only": answered(e8_2=BYTES.replace("2 * ", "")),
    "a loop": answered(e8_2="while True: pass"),
    "a patch": answered(e8_2=f"torch.equal = lambda *_: True\n{BYTES}"),
    "prints": answered(e8_2=f"print('x' * 100_000)\n{BYTES}"),
    "an address": answered(e8_2="return object()"),
    "random": answered(e8_2="import random\nreturn random.random()"),
    "exits": answered(e8_1="exit()"),
    "removes others": answered(e8_3="import shutil\nshutil.rmtree('SHARED')"),
    "no Python": "def (",
}


def grade_class(folder: Path, out: Path, *options: str) -> dict[str, list[list[str]] | str]:
    """What a grading says, without the times."""
    command = [sys.executable, "-m", "minilm.course", "grade", folder, "--out", out, "-e", "8"]
    command += ["--seed", "1000007", "--seconds", "4", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended
    told = {}
    for name in ("grades.csv", "summary.csv"):
        with open(out / name, newline="", encoding="utf-8") as file:
            told[name] = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    told["report.md"] = re.sub(r"\d+\.\d s", "", (out / "report.md").read_text(encoding="utf-8"))
    return told


@needs_linux
def test_a_class_at_once_is_graded_as_one_by_one(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    for name, text in CLASS.items():
        folder = tmp_path / "class" / name / "exercises"
        folder.mkdir(parents=True)
        (folder / FILE).write_text(text.replace("SHARED", str(temporary)), encoding="utf-8")
        (folder / "ex01_helper.py").write_text("")
    one_by_one = grade_class(tmp_path / "class", tmp_path / "one", "--jobs", "1")
    at_once = grade_class(tmp_path / "class", tmp_path / "more", "--jobs", "4")
    assert at_once == one_by_one
    assert not list(temporary.iterdir()), "something is left behind"
    found = {(row["submission"], row["exercise"]): row for row in at_once["grades.csv"]}
    assert [found["right, and imports its neighbour", each.number]["status"] for each in UNIT] == [
        "passed"
    ] * 3
    assert found["tiled", "8.1"]["mistake"] == "tiled" and found["keys only", "8.2"]["mistake"] == "keys only"
    for name, number, words in [
        ("a loop", "8.2", "ran for more than 4 s"), ("a patch", "8.2", "changes torch.equal"),
        ("prints", "8.2", "printed more than 64 KB"), ("an address", "8.2", "the result is <object object>"),
        ("exits", "8.1", "ended the process (code 0)"), ("removes others", "8.3", "may change only what"),
        ("no Python", "8.1", "line 1: SyntaxError"),
    ]:  # fmt: skip
        assert words in found[name, number]["detail"], found[name, number]
    wrong = {key for key, row in found.items() if row["status"] != "passed"}
    assert len(wrong) == 9 + 3 and ("right", "8.1") not in wrong


def test_a_grading_shows_how_far_it_is(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(grade, "console", Console(file=screen, force_terminal=True, width=100))
    learners = [submissions.Submission(name) for name in "abc"]
    report = Report("8.2", "kv_cache_bytes", "passed", [])
    monkeypatch.setattr(grade, "grade", lambda *_: ([grade.row(each, UNIT[1], report)] for each in learners))
    grading = grade.Grading(ROOT, tmp_path, grade.FIRST_SEED, LIMITS)
    rows = grade.follow(grading, learners, UNIT[1:2], everything=False)
    assert [row.submission for row in rows] == ["a", "b", "c"]
    assert "grading" in screen.getvalue() and "3/3" in screen.getvalue() and "exercises" in screen.getvalue()


@needs_linux
def test_names_that_no_table_can_hold(tmp_path):
    odd = os.fsdecode(b"a\xff\n\x1b[2J b")
    for place in ("x", "y"):
        folder = tmp_path / odd / f"{place}\udcff" / "exercises"
        folder.mkdir(parents=True)
        (folder / FILE).write_text("")
    (found,), _ = submissions.find(tmp_path, ["ex08_grouped_queries"])
    assert found.name == "a\N{REPLACEMENT CHARACTER}" * 1 + "\N{REPLACEMENT CHARACTER}" * 2 + "[2J b"
    assert "two folders of exercises" in found.problem
    assert found.problem.encode() and found.problem.isprintable()
