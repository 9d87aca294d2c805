"""The runner beside a learner: progress that survives, hints, solutions, resets, the look of reports."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minilm import course
from minilm.course import progress, sandbox, show, sources
from minilm.course.spec import Report

ROOT = Path(__file__).parents[2]
FILE = "ex08_grouped_queries.py"
TILED = "return x.repeat(1, groups, 1, 1)"


def stubs(folder: Path, **answers: str) -> Path:
    """A folder with the stubs of unit 8, with some bodies written; names such as e8_1."""
    text = sources.stub((ROOT / "solutions" / FILE).read_text())
    for name, body in answers.items():
        mark = f'raise NotImplementedError("exercise {name[1:].replace("_", ".")}")'
        assert mark in text
        text = text.replace(mark, body)
    (folder / FILE).write_text(text)
    return folder


@pytest.fixture
def judged(monkeypatch):
    """Reports without a process: what each exercise number is said to be; all else is unsolved."""
    outcomes: dict[str, str] = {}

    def run(root, folder, exercises, seed, start="new"):
        return [Report(e.number, e.name, outcomes.get(e.number, "unsolved"), []) for e in exercises]

    monkeypatch.setattr(sandbox, "run", run)
    return outcomes


def states(folder: Path) -> list[str]:
    """The states of unit 8."""
    return next(unit.states for unit in course.status(folder).units if unit.number == 8)


def test_status_follows_checks_and_edits(judged, tmp_path):
    """Open, begun, passed; and changed once the code of a passed answer is another, not when its file is."""
    stubs(tmp_path)
    course.check("8", tmp_path)
    assert states(tmp_path) == ["open"] * 3 and not (tmp_path / ".progress").exists()
    judged["8.1"], judged["8.2"] = "passed", "failed"
    course.check("8", tmp_path)
    assert states(tmp_path) == ["passed", "begun", "open"]
    found = course.status(tmp_path)
    assert found.following.number == "1.1"
    assert next(unit.minutes_left for unit in found.units if unit.number == 8) == 5 + 20
    assert "08  grouped queries  ■ ▪ □  25" in repr(found) and "1 of 71 passed" in repr(found)
    assert ">■ ▪ □</td>" in found._repr_html_()
    stubs(tmp_path, e8_2="return 1")
    assert states(tmp_path) == ["passed", "begun", "open"]
    stubs(tmp_path, e8_1="return x")
    assert states(tmp_path) == ["changed", "begun", "open"]
    judged["8.1"] = "failed"
    course.check("8.1", tmp_path)
    assert states(tmp_path)[0] == "changed"


def test_a_record_that_cannot_be_read_is_none(tmp_path):
    """A file that another program cut short costs one record, and not the course."""
    progress.write(tmp_path, progress.Record("8.1", attempts=2))
    assert progress.read(tmp_path, "8.1").attempts == 2
    for broken in ("", "{", "[]", '{"nubmer": 1}'):
        (tmp_path / ".progress" / "8.1.json").write_text(broken)
        assert progress.read(tmp_path, "8.1") == progress.Record("8.1")


WRITE = """
import sys
from pathlib import Path
from minilm.course import progress
for attempts in range(10**9):
    progress.write(Path(sys.argv[1]), progress.Record("8.1", passed="x" * 5000, attempts=attempts))
    print("written", flush=True)
"""


def test_a_kill_leaves_a_whole_record(tmp_path):
    """Killed while it writes without a pause, at any moment."""
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as writer:
        writer.stdout.readline()
        last, deadline = -1, time.monotonic() + 60
        while last < 20 and time.monotonic() < deadline:
            time.sleep(0.003)
            writer.send_signal(signal.SIGSTOP)
            record = json.loads((tmp_path / ".progress" / "8.1.json").read_text())
            assert record["attempts"] >= last and len(record["passed"]) == 5000
            last = record["attempts"]
            writer.send_signal(signal.SIGCONT)
        writer.kill()
    assert progress.read(tmp_path, "8.1").attempts >= last >= 20


def test_hints_come_one_after_the_other(tmp_path):
    """Asked again, the next one; the third stays; a level may be named."""
    stubs(tmp_path)
    assert [course.hint("8.1", folder=tmp_path)[:11] for _ in range(4)] == [
        "hint 1 of 3", "hint 2 of 3", "hint 3 of 3", "hint 3 of 3",
    ]  # fmt: skip
    assert course.hint("8.1", 1, tmp_path).startswith("hint 1 of 3: Write down")
    with pytest.raises(ValueError, match="no hint 4"):
        course.hint("8.1", 4, tmp_path)
    with pytest.raises(ValueError, match=r"unit of 3 exercises; give one, such as 8\.1"):
        course.hint("8", folder=tmp_path)


def test_the_solution_is_shown_after_passing_or_giving_up(judged, tmp_path):
    stubs(tmp_path, e8_1=TILED)
    with pytest.raises(ValueError, match=r"8.1 has not passed yet.*--give-up"):
        course.solution("8.1", folder=tmp_path)
    shown = course.solution("8.1", give_up=True, folder=tmp_path)
    assert f"-    {TILED}" in shown and "+    copies = x[:, :, None].expand(" in shown
    assert progress.read(tmp_path, "8.1").gave_up
    judged["8.2"] = "passed"
    course.check("8.2", tmp_path)
    assert "+++ the solution" in course.solution("8.2", folder=tmp_path)
    assert not progress.read(tmp_path, "8.2").gave_up


def test_reset_takes_one_answer_and_keeps_the_file(tmp_path):
    """The other answers stay; the file as it was is in .backup, under a name of its own each time."""
    stubs(tmp_path, e8_1=TILED, e8_2="return 7")
    before = (tmp_path / FILE).read_text()
    assert course.reset("8.1", tmp_path).startswith("begun anew: 8.1 repeat_kv; your file as it was: ")
    after = (tmp_path / FILE).read_text()
    assert TILED not in after and "return 7" in after and 'NotImplementedError("exercise 8.1")' in after
    course.reset("8", tmp_path)
    assert (tmp_path / FILE).read_text() == sources.stub((ROOT / "solutions" / FILE).read_text())
    copies = sorted(path.read_text() for path in (tmp_path / ".backup").iterdir())
    assert copies == sorted([before, after])


@pytest.mark.parametrize("broken", ["def repeat_kv(:\n", "", None])
def test_reset_mends_a_file_that_is_no_python(broken, tmp_path):
    """Or is empty, or gone. What stood there is kept."""
    if broken is not None:
        (tmp_path / FILE).write_text(broken)
    course.reset("8", tmp_path)
    text = (tmp_path / FILE).read_text()
    compile(text, FILE, "exec")
    assert all(f'NotImplementedError("exercise 8.{place}")' in text for place in (1, 2, 3))
    kept = [path.read_text() for path in (tmp_path / ".backup").glob("*")]
    assert kept == ([] if broken is None else [broken])


def test_a_check_in_a_notebook(tmp_path):
    """As text and as HTML: the cause first, then what differs, and the picture of both outputs."""
    stubs(tmp_path, e8_1=TILED)
    reports = course.check("8.1", tmp_path, seed=3)
    assert not reports.passed
    text = repr(reports)
    assert text.startswith("✘ 8.1 repeat_kv: not right yet\n    Your heads are tiled, not repeated")
    assert text.endswith("0 of 1 right, with the inputs of seed 3")
    page = reports._repr_html_()
    assert (
        "Your heads are tiled" in page and 'src="data:image/png;base64,' in page and 'alt="three heat' in page
    )
    picture = reports[0].picture
    assert len(picture["found"]) == len(picture["expected"]) > 0
    assert picture["found"] != picture["expected"]
    assert states(tmp_path)[0] == "begun"


def test_html_is_safe_and_numbers_that_are_none_stay_grey():
    """What a learner's exception says may hold markup; NaN and infinity are no numbers."""
    picture = {"found": [[float("nan"), 1.0]], "expected": [[float("inf"), 2.0]], "label": "<b>"}
    page = show.as_html(Report("1.1", "f", "failed", ["<script>", "2", "3", "4"], picture=picture))
    assert "<script>" not in page and "&lt;script&gt;" in page and "and 1 more" in page
    assert "data:image/png" in page
    assert "[bold]" not in show.rich_text(Report("1.1", "f", "failed", ["[bold]x"])).replace(
        "[bold]1.1[/]", ""
    ).replace("\\[bold]", "")


def test_watch_sees_what_was_changed(tmp_path):
    """A saved file whose second answer is another: that exercise alone is checked."""
    stubs(tmp_path)
    command = [sys.executable, "-m", "minilm.course", "watch", "8", "--folder", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    # A shell lets what it starts in the background ignore Ctrl-C, and its children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    signal.signal(signal.SIGINT, before)
    with watching:
        try:
            assert "watching 3 exercises" in watching.stdout.readline()
            time.sleep(0.2)
            stubs(tmp_path, e8_2="return 7")
            assert "8.2 kv_cache_bytes: not right yet" in watching.stdout.readline()
        finally:
            watching.send_signal(signal.SIGINT)
            rest = watching.stdout.read()
    assert watching.returncode == 130 and "8.1" not in rest and "8.3" not in rest


def test_status_on_the_command_line(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "minilm.course", "status", "--folder", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "0 of 71 passed" in ended.stdout and "next: 1.1 split_heads" in ended.stdout
    assert "\x1b[" not in ended.stdout  # no colours in a pipe
