"""Code that loops, exits, prints or eats without end gives one clear report each, and the rest is judged."""

import subprocess
import sys
from pathlib import Path

import pytest

from minilm.course import sandbox, sources

ROOT = Path(__file__).parents[2]
LIMITS = sandbox.Limits(seconds=6)

ACCIDENTS = {
    "while True: pass": "ran for more than 6 s",
    "import sys; sys.exit(3)": "ended the process (code 3)",
    "import os; os._exit(4)": "ended the process (code 4)",
    "while True: print('x' * 1000)": "printed more than 64 KB",
    "return torch.ones(10**10)": "RuntimeError",
    "return [0] * 10**10": "MemoryError",
    "import absent_module": "ModuleNotFoundError: No module named 'absent_module'",
    "return input()": "EOFError",
    "return kv_cache_bytes(*[None] * 6)": "RecursionError",
}


@pytest.mark.parametrize("body", ACCIDENTS)
def test_an_accident_is_reported_and_the_rest_goes_on(body, tmp_path):
    text = sources.stub((ROOT / "solutions" / "ex08_grouped_queries.py").read_text())
    broken = text.replace('raise NotImplementedError("exercise 8.2")', body)
    assert broken != text
    (tmp_path / "ex08_grouped_queries.py").write_text(broken)
    first, second, third = sandbox.run(ROOT, tmp_path, sources.find(ROOT, "8"), 0, LIMITS)
    assert (first.status, second.status, third.status) == ("unsolved", "failed", "unsolved")
    assert ACCIDENTS[body] in second.sentences[0], second


@pytest.mark.parametrize(
    "text, words",
    [
        ("def f(:\n", "line 1: SyntaxError"),
        ("import absent\n", "line 1: ModuleNotFoundError"),
        ("exit()\n", "SystemExit"),
        ("x = 1\n", "defines no repeat_kv"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_cannot_be_used(text, words, tmp_path):
    if text is not None:
        (tmp_path / "ex08_grouped_queries.py").write_text(text)
    (report,) = sandbox.run(ROOT, tmp_path, sources.find(ROOT, "8.1"), 0, LIMITS)
    assert report.status == "broken" and words in report.sentences[0], report


def test_solutions_pass_in_the_sandbox():
    reports = sandbox.run(ROOT, ROOT / "solutions", sources.find(ROOT, "8"), 5)
    assert [report.status for report in reports] == ["passed"] * 3


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "minilm.course", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_names_the_mistake_first(tmp_path):
    text = sources.stub((ROOT / "solutions" / "ex08_grouped_queries.py").read_text())
    tiled = text.replace('raise NotImplementedError("exercise 8.1")', "return x.repeat(1, groups, 1, 1)")
    (tmp_path / "ex08_grouped_queries.py").write_text(tiled)
    ended = command("check", "8", "--folder", str(tmp_path), "--seed", "3")
    assert ended.returncode == 1 and "0 of 3 right, with the inputs of seed 3" in ended.stdout, ended
    title = "✘ 8.1 repeat_kv: not right yet\n    Your heads are tiled, not repeated"
    assert ended.stdout.startswith(title), ended
    assert "○ 8.2 kv_cache_bytes: not begun" in ended.stdout
    (tmp_path / "ex08_grouped_queries.py").write_text(
        (ROOT / "solutions" / "ex08_grouped_queries.py").read_text()
    )
    ended = command("check", "8", "--folder", str(tmp_path))
    assert ended.returncode == 0 and "3 of 3 right" in ended.stdout, ended


def test_accidents_in_a_copied_process(tmp_path):
    """The command copies itself rather than start another Python; what goes wrong is told all the same."""
    text = (ROOT / "solutions" / "ex08_grouped_queries.py").read_text()
    text = sources.stub(text)
    for number, body in (
        ("8.1", "import os; os._exit(4)"),
        ("8.2", "return [0] * 10**10"),
        ("8.3", "return input()"),
    ):
        text = text.replace(f'raise NotImplementedError("exercise {number}")', body)
    (tmp_path / "ex08_grouped_queries.py").write_text(text)
    ended = command("check", "8", "--folder", str(tmp_path))
    assert ended.returncode == 1 and ended.stdout.count("not right yet") == 3, ended
    for words in ("ended the process (code 4): it printed nothing", "MemoryError", "EOFError"):
        assert words in ended.stdout, ended


def test_what_does_not_exist_is_refused():
    for arguments in (("check", "99"), ("hint", "8.9"), ("hint", "8")):
        ended = command(*arguments)
        assert ended.returncode == 1 and ended.stderr.startswith("error: "), ended
    assert command("hint", "8.1", "--level", "3").stdout.startswith("hint 3 of 3: x[:, :, None]")
    assert "grouped_attention" in command("list").stdout
