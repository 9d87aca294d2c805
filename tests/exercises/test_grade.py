"""A class is graded whatever its code does: it harms nobody else, is told apart, and is not judged twice."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from minilm.course import class_report, grade, guard, sandbox, sources, submissions
from minilm.course.class_report import Row

ROOT = Path(__file__).parents[2]
FILE = "ex08_grouped_queries.py"
SOLUTION = (ROOT / "solutions" / FILE).read_text(encoding="utf-8")
MODULES = ["ex08_grouped_queries", "ex09_masks"]
SEED = str(grade.FIRST_SEED + 7)


def answered(body: str, number: str = "8.2") -> str:
    """The file of unit 8 with one exercise answered."""
    stub = sources.stub(SOLUTION)
    text = stub.replace(f'raise NotImplementedError("exercise {number}")', body)
    assert text != stub
    return text


def hand_in(folder: Path, name: str, text: str) -> None:
    place = folder / name / "exercises"
    place.mkdir(parents=True)
    (place / FILE).write_text(text, encoding="utf-8")


def command(*arguments: str | Path, code: int = 0) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "minilm.course", "grade", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert ended.returncode == code, ended
    return ended.stdout + ended.stderr


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def standings(out: Path) -> dict[tuple[str, str], tuple[str, str, str]]:
    """What grades.csv says, without the times."""
    return {
        (row["submission"], row["exercise"]): (row["status"], row["mistake"], row["detail"])
        for row in table(out / "grades.csv")
    }


def test_a_class_is_graded_and_only_what_changed_again(tmp_path):
    folder, out, other = tmp_path / "class", tmp_path / "grades", tmp_path / "precious"
    other.write_text("keep me")
    hand_in(folder, "anna", f"open('left_here', 'w').write('x')\n{SOLUTION}")
    hand_in(folder, "Zoë | O'Neil, [b]", answered("return x.repeat(1, groups, 1, 1)", "8.1"))
    hand_in(folder, "remover", answered(f"import os; os.remove({str(other)!r})"))
    hand_in(folder, "importer", "import shutil\nshutil.rmtree('..')\n")
    (folder / "empty").mkdir()
    report = command(folder, "--out", out, "--exercises", "8", "--seed", SEED)
    assert not (ROOT / "left_here").exists() and not (folder / "left_here").exists()
    assert other.read_text() == "keep me" and "5 submissions, 1 of them not to be graded" in report
    found = standings(out)
    assert found["anna", "8.3"] == ("passed", "", "")
    status, mistake, detail = found["Zoë | O'Neil, [b]", "8.1"]
    assert (status, mistake) == ("failed", "tiled") and detail.startswith("Your heads are tiled")
    status, _, detail = found["remover", "8.2"]
    assert status == "failed" and f"your code wants to change {other.resolve()}" in detail
    status, _, detail = found["importer", "8.1"]
    assert status == "broken" and "line 2: PermissionError" in detail
    assert found["empty", "8.1"] == ("missing", "", "it is empty")
    points = {row["submission"]: (row["points"], row["max_points"]) for row in table(out / "summary.csv")}
    assert points["anna"] == ("4", "4") and points["empty"] == ("0", "4")
    text = (out / "report.md").read_text(encoding="utf-8")
    assert f"`--seed {SEED}`" in text and "Zoë \\| O'Neil, \\[b]" in text and "tiled (1)" in text

    kept = {path: path.stat().st_mtime_ns for path in out.rglob("ex08*.json")}
    assert len(kept) == 4
    hand_in(folder, "late", SOLUTION)
    (folder / "remover" / "exercises" / FILE).write_text(SOLUTION, encoding="utf-8")
    report = command(folder, "--out", out, "--exercises", "8")
    assert f"--seed {SEED}" in report, "the seed of the first grading is taken up"
    assert standings(out)["remover", "8.2"][0] == standings(out)["late", "8.2"][0] == "passed"
    changed = [path.parent.name for path, when in kept.items() if path.stat().st_mtime_ns != when]
    assert len(changed) == 1 and changed[0].startswith("remover-")


def test_being_stopped_keeps_what_is_done_and_leaves_nothing(tmp_path, monkeypatch):
    folder, out, temporary = tmp_path / "class", tmp_path / "grades", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    hand_in(folder, "a", SOLUTION)
    hand_in(folder, "b", answered("while True: pass"))
    process = subprocess.Popen(
        [sys.executable, "-m", "minilm.course", "grade", folder, "--out", out, "-e", "8.2", "--jobs", "1"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    results = out / "results"
    while not (results.exists() and list(results.rglob("*.json"))):
        assert process.poll() is None, "it ended before the loop was reached"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=100)
    assert process.returncode == 130 and re.search(r"stopped after [01] of 2 exercises", printed), printed
    assert not list(temporary.iterdir()), "copies are left behind"
    kept = {str(path): path.read_text() for path in results.rglob("*.json")}
    assert len(kept) == 1, kept
    assert json.loads(*kept.values())["reports"]["8.2"]["status"] == "passed"


def test_what_judges_must_not_change_meanwhile(tmp_path, monkeypatch):
    grading = grade.Grading(ROOT, tmp_path, grade.FIRST_SEED, sandbox.Limits())
    keys = iter(["before", "after"])
    monkeypatch.setattr(grade.Grading, "key", lambda *_: next(keys))
    monkeypatch.setattr(grade, "run", lambda *_: [])
    unit = sources.find(ROOT, "8.1")
    with pytest.raises(ValueError, match="files of the course changed while ex08"):
        grade.grade_unit(
            grading, submissions.Submission("a", {FILE: b""}), unit, False, grade.threading.Event()
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [0, 9_999, grade.FIRST_SEED - 1])
def test_seeds_that_learners_see_are_refused(seed, tmp_path):
    with pytest.raises(ValueError, match="is too small"):
        grade.choose_seed(seed, tmp_path)


def test_a_fresh_seed_is_kept(tmp_path):
    seed = grade.choose_seed(None, tmp_path)
    assert seed >= grade.FIRST_SEED and grade.choose_seed(None, tmp_path) == seed
    assert grade.choose_seed(seed + 1, tmp_path) == seed + 1 == grade.choose_seed(None, tmp_path)


# What stops an accident, in a process that ends afterwards.
CONFINED = """
import os, pathlib, shutil, subprocess, sys, tempfile
from minilm.course import guard
home, outside = map(pathlib.Path, sys.argv[1:])
os.chdir(home)
(home / "link").symlink_to(outside)
folder = os.open(outside, os.O_RDONLY)
guard.confine(home)
attempts = [
    lambda: open(outside / "file", "w"),
    lambda: os.open(outside / "new", os.O_CREAT | os.O_WRONLY),
    lambda: open(home / "link" / "file", "a"),
    lambda: (outside / "file").write_text("gone"),
    lambda: os.remove("../homeless/file"),
    lambda: os.remove(os.fsencode(outside / "file")),
    lambda: os.unlink("file", dir_fd=folder),
    lambda: os.rename(outside / "file", "mine"),
    lambda: os.truncate(outside / "file", 0),
    lambda: os.chmod(outside / "file", 0),
    lambda: os.link(outside / "file", "linked"),
    lambda: shutil.rmtree(outside),
    lambda: shutil.rmtree("."),
    lambda: os.mkdir(outside / "folder"),
    lambda: os.system("true"),
    lambda: os.fork(),
    lambda: os.kill(os.getppid(), 9),
    lambda: subprocess.run(["true"]),
]
for number, attempt in enumerate(attempts):
    try:
        attempt()
    except PermissionError as error:
        assert "your code" in str(error), (number, error)
    else:
        raise AssertionError(f"attempt {number} was not refused")
(home / "mine").write_text("free")
(home / "mine").rename(home / "other")
with tempfile.TemporaryDirectory(dir=home) as temporary:
    pathlib.Path(temporary, "inner").mkdir()
open(outside / "file").read(), open(os.devnull, "w").write("x")
print("confined")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell where an open folder lies")
def test_a_confined_process_changes_only_its_own_folder(tmp_path):
    home, outside = tmp_path / "home", tmp_path / "homeless"  # a name that begins alike
    home.mkdir()
    outside.mkdir()
    (outside / "file").write_text("keep me")
    ended = subprocess.run(
        [sys.executable, "-c", CONFINED, home, outside], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert ended.stdout == "confined\n", ended
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "keep me"


def test_the_worker_ends_with_the_runner(tmp_path):
    """A runner that is killed leaves no loop that runs forever."""
    hand_in(tmp_path, "a", answered("open('started', 'w')\n    while True: pass"))
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    script = (
        "import sys; from pathlib import Path; from minilm.course import sandbox, sources\n"
        "root, folder, workspace = map(Path, sys.argv[1:])\n"
        "sandbox.run(root, folder, sources.find(root, '8.2'), 1, sandbox.Limits(200), workspace)"
    )
    arguments = [sys.executable, "-c", script, ROOT, tmp_path / "a" / "exercises", workspace]
    runner = subprocess.Popen(arguments, cwd=ROOT)
    deadline = time.monotonic() + 100
    while not (workspace / "started").exists():
        assert runner.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    runner.kill()
    runner.wait()
    processes = Path("/proc")
    while processes.exists() and any(
        str(workspace) in environment(each) for each in processes.glob("[0-9]*")
    ):
        assert time.monotonic() < deadline, "the worker goes on"
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell")
def test_computing_counts_and_waiting_does_not():
    time.sleep(0.5)
    assert sandbox._seconds_of_computing(os.getpid()) == pytest.approx(time.process_time(), abs=0.2)
    assert sandbox._seconds_of_computing(-1) == 0


def environment(process: Path) -> str:
    """The variables that a process was started with; nothing for one that has ended."""
    try:
        return (process / "environ").read_text(errors="replace")
    except OSError:
        return ""


# --------------------------------------------------------------------------------------------------
# What people hand in


def one(folder: Path) -> submissions.Submission:
    (found,), _ = submissions.find(folder, MODULES)
    return found


@pytest.mark.parametrize(
    "files, taken",
    [
        (["ex08_grouped_queries.py"], "ex08_grouped_queries.py"),
        (["exercises/ex09_masks.py", "solutions/ex08_grouped_queries.py"], "exercises/ex09_masks.py"),
        (["repo-main/exercises/ex09_masks.py", "README.md"], "repo-main/exercises/ex09_masks.py"),
        (
            ["exercises/ex08_grouped_queries.py", "ex08_grouped_queries.py"],
            "exercises/ex08_grouped_queries.py",
        ),
        (["ex09_masks.py", "backup/ex09_masks.py", ".git/ex09_masks.py"], "ex09_masks.py"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_the_folder_of_exercises_is_found(files, taken, zipped, tmp_path):
    if zipped:
        with zipfile.ZipFile(tmp_path / "anna.zip", "w") as archive:
            for name in files:
                archive.writestr(name, name)
            archive.writestr("__MACOSX/exercises/ex08_grouped_queries.py", "not this one")
    else:
        for name in files:
            path = tmp_path / "anna" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    found = one(tmp_path)
    assert found.name == "anna" and found.problem is None
    assert found.files == {taken.split("/")[-1]: taken.encode()}


@pytest.mark.parametrize(
    "files, problem",
    [
        ([], "it is empty"),
        (["hw.ipynb"], "it holds a notebook (hw.ipynb)"),
        (
            ["notes.txt", "solutions/ex09_masks.py"],
            "it holds no file of exercises, such as ex08_grouped_queries.py",
        ),
        (
            ["a/exercises/ex09_masks.py", "b/exercises/ex09_masks.py"],
            "two folders of exercises, a/exercises and b",
        ),
    ],
)
def test_what_cannot_be_graded_is_told(files, problem, tmp_path):
    (tmp_path / "anna").mkdir()
    for name in files:
        (tmp_path / "anna" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "anna" / name).write_text("")
    assert problem in one(tmp_path).problem


def test_odd_files_do_no_harm(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"PK, but no more")
    (tmp_path / "roster.csv").write_text("")
    (tmp_path / "ben.ipynb").write_text("{}")
    big = tmp_path / "big" / FILE
    big.parent.mkdir()
    big.write_bytes(b"#" * (submissions.FILE_BYTES + 1))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(FILE, b"#" * (50 * submissions.FILE_BYTES))
        archive.writestr("../../escaped.py", "")
    secret = tmp_path / "link" / FILE
    secret.parent.mkdir()
    secret.symlink_to(ROOT / "solutions" / FILE)
    found, ignored = submissions.find(tmp_path, MODULES)
    assert ignored == ["roster.csv"]
    by_name = {each.name: each for each in found}
    assert "cannot be opened" in by_name["bad"].problem
    assert "a single .ipynb file" in by_name["ben.ipynb"].problem
    assert by_name["big"].unread == by_name["bomb"].unread == {FILE: "is larger than 1 MB"}
    assert by_name["link"].problem == "it is empty"


def test_names_are_told_apart(tmp_path):
    for name in ("anna", "b\x1b[31m", "b\x07[31m"):
        (tmp_path / name).mkdir()
    with zipfile.ZipFile(tmp_path / "anna.zip", "w") as archive:
        archive.writestr(FILE, "")
    found, _ = submissions.find(tmp_path, MODULES)
    names = [each.name for each in found]
    assert sorted(names) == ["anna", "anna.zip", "b\ufffd[31m", "b\ufffd[31m (2)"]
    grading = grade.Grading(ROOT, tmp_path, grade.FIRST_SEED, sandbox.Limits())
    assert len({grading.kept(each, "ex08") for each in found}) == 4


@pytest.mark.parametrize("wrong", ["nothing", "file", "one learner"])
def test_what_is_no_folder_of_submissions_is_refused(wrong, tmp_path):
    if wrong == "one learner":
        (tmp_path / FILE).write_text("")
    folder = Path(__file__) if wrong == "file" else tmp_path
    with pytest.raises(ValueError, match=r"holds no submission|is not a folder|folder of one learner"):
        submissions.find(folder, MODULES)


def test_the_report_counts(tmp_path):
    rows = [
        Row(learner, "8.1", "repeat_kv", status, mistake, 0, 2, seconds, 10, "Tiled." if mistake else "")
        for learner, status, mistake, seconds in [
            ("a", "passed", "", 1.0), ("b", "failed", "tiled", 3.0), ("c", "failed", "tiled", 9.0),
            ("d", "failed", "", 2.0), ("e", "missing", "", 0.0),
        ]
    ]  # fmt: skip
    (line,) = class_report.exercise_lines(rows)
    assert line == [
        "8.1", "repeat_kv", "1 of 5 (20%)", "3 failed, 1 missing", "2.5 s", "tiled (2), no known mistake (1)",
    ]  # fmt: skip
    assert class_report.mistake_lines(rows) == [["2", "8.1", "tiled", "Tiled."]]
    text = class_report.markdown(class_report.Findings(rows, [], {"e": "it is empty"}, 1))
    assert "5 submissions, 1 of them not to be graded; 1 of 5 answers passed (20%)" in text
    assert "| e | it is empty |" in text


def test_a_sentence_stays_readable():
    told = grade.readable("\ud800\x1b[2J" + "x" * 10_000)
    assert told.startswith("?\ufffd[2J") and len(told) <= grade.TEXT_LENGTH + 1 and told.encode()


def test_paths_of_open_files_are_not_asked_for():
    assert guard.real_path(3, None) is None and guard.real_path("a", None) == str(Path("a").resolve())


# --------------------------------------------------------------------------------------------------
# The guide

GUIDE = (ROOT / "notebooks" / "teachers_guide.md").read_text(encoding="utf-8")


def test_the_workflow_in_the_guide_checks_each_exercise():
    workflow = yaml.safe_load(re.search(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)[1])
    steps = workflow["jobs"]["run-autograding-tests"]["steps"]
    graders = {step["id"]: step["with"] for step in steps if "command-grader" in step.get("uses", "")}
    exercises = sources.find(ROOT, "8")
    assert [each["test-name"] for each in graders.values()] == [f"{e.number} {e.name}" for e in exercises]
    assert [each["max-score"] for each in graders.values()] == [e.difficulty for e in exercises]
    for exercise, step in zip(exercises, graders.values(), strict=True):
        assert step["command"] == f"python -m minilm.course check {exercise.number}"
    reporter = steps[-1]
    assert reporter["with"]["runners"] == ",".join(graders)
    assert reporter["env"] == {
        f"{name.upper()}_RESULTS": f"${{{{ steps.{name}.outputs.result }}}}" for name in graders
    }


def test_the_cells_in_the_guide_pass_and_name_the_mistake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer, test = re.search(
        r"```python\n%%writefile (ex08.*?)```.*?```python\n(.*?)```", GUIDE, re.DOTALL
    ).groups()
    name, _, code = answer.partition("\n")
    Path(name).write_text(code)
    exec(test, {})
    Path(name).write_text(code.replace("x.repeat_interleave(groups, dim=1)", "x.repeat(1, groups, 1, 1)"))
    with pytest.raises(AssertionError, match="Your heads are tiled"):
        exec(test, {})


def test_the_guide_names_what_there_is():
    told = command("--help")
    for option in set(re.findall(r"--[a-z]+", GUIDE.partition("## GitHub")[0])):
        assert option in told, option
    for file in class_report.FILES:
        assert f"`{file}`" in GUIDE
