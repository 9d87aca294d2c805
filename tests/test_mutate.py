"""The tool that changes the package to see whether its tests notice, on a small package of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import known_equivalents, mutants

ROOT = Path(__file__).parents[1]
MODULE = '''\
"""A module."""


def clip(x: int, low: int = 0, high: int = 9) -> int:
    """Into the interval."""
    if low > high:
        raise ValueError(f"low is {low}, high {high - 1}")
    return min(
        max(x, low),
        high,
    )


def positive(x: int) -> int:
    return x if x > 0 else 0
'''
TESTS = """\
from minilm.clip import clip


def test_above():
    assert clip(12) == 9


def test_below():
    assert clip(-3) == 0
"""
EQUIVALENT = """\
minilm/clip.py: return x if x > 0 else 0
x > 0 → x >= 0
    Both branches give 0 for 0.
"""


def test_what_it_changes():
    """Operators, constants, calls and conditions; no documentation, no messages, no annotations."""
    made = mutants("minilm/clip.py", MODULE.encode())
    assert [mutant.description for mutant in made if mutant.function == "clip"] == [
        "0 → 1",
        "9 → 10",
        "if low > high → if True",
        "if low > high → if False",
        "low > high → low >= high",
        "min → max",
        "max → min",
    ]
    assert {mutant.description for mutant in made if mutant.guards} == {
        "if low > high → if True",
        "if low > high → if False",
        "low > high → low >= high",
    }
    lines = MODULE.count("\n")
    for mutant in made:
        changed = mutant.changed(MODULE.encode())
        compile(changed, mutant.path, "exec")
        assert changed.count(b"\n") == lines  # functions are recognised by their first line


def test_a_list_of_equivalents_cannot_rot():
    """An entry must fit a change, and give a reason."""
    made = mutants("minilm/clip.py", MODULE.encode())
    assert len(known_equivalents("minilm/clip.py", made, EQUIVALENT)) == 1
    assert not known_equivalents("minilm/other.py", made, EQUIVALENT)
    for wrong in (EQUIVALENT.replace(">= 0", "> 1"), EQUIVALENT.split("    Both")[0]):
        with pytest.raises(ValueError, match="without reason or change"):
            known_equivalents("minilm/clip.py", made, wrong)


def test_it_finds_what_no_test_notices(tmp_path):
    """Killed: wrong limits, and wrong functions. Alive: what no test asks for, and what none executes."""
    (tmp_path / "minilm").mkdir()
    (tmp_path / "tests").mkdir()
    for name, text in {
        "minilm/__init__.py": "",
        "minilm/clip.py": MODULE,
        "tests/test_clip.py": TESTS,
        "tests/mutants_equivalent.txt": EQUIVALENT,
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    def mutate(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "tests.mutate", *words]
        settings = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=200
        )

    assert mutate("--record", "tests/test_clip.py").returncode == 0
    ended = mutate("minilm/clip.py", "--verbose")
    assert ended.returncode == 1, ended.stderr
    found = ended.stdout.splitlines()
    verdicts = {}
    for where, change in zip(found[:-2:2], found[1:-2:2], strict=True):
        _, kind, function = where.split(": ")[0].split()
        verdicts[function, change.strip().split("    ")[0]] = kind
    assert verdicts == {
        ("clip", "0 → 1"): "killed",
        ("clip", "9 → 10"): "killed",
        ("clip", "if low > high → if True"): "killed",
        ("clip", "if low > high → if False"): "guard",
        ("clip", "low > high → low >= high"): "guard",
        ("clip", "min → max"): "killed",
        ("clip", "max → min"): "killed",
        ("positive", "if x > 0 → if True"): "alive",
        ("positive", "if x > 0 → if False"): "alive",
        ("positive", "0 → 1"): "alive",
        ("positive", "0 → 1 #2"): "alive",
    }
    assert found[-1].split() == ["minilm/clip.py", "12", "12", "5", "0", "1", "4", "2"]


def test_the_list_of_equivalents_fits_the_package():
    """An entry whose line was changed has to be thought through again."""
    listed = (ROOT / "tests/mutants_equivalent.txt").read_text(encoding="utf-8")
    modules = {block.split(": ", 1)[0] for block in listed.strip().split("\n\n")}
    for path in modules:
        known = known_equivalents(path, mutants(path, (ROOT / path).read_bytes()), listed)
        assert len(known) == listed.count(f"{path}: "), path
