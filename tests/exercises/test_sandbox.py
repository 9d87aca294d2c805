"""Code that loops, exits, prints or eats without end gives one clear report each, and the rest is judged."""

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
