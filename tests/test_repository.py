"""What holds for the repository as a whole: its style, its front page, and what it must not contain."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_ruff_is_content():
    """The rules of pyproject.toml, and its format."""
    for command in (["check"], ["format", "--check"]):
        ended = subprocess.run(
            [sys.executable, "-m", "ruff", *command], cwd=ROOT, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stdout


def test_the_readme_shows_the_family_file_as_it_is():
    """The example of how to add a family is the file itself, and short enough to be one."""
    source = (ROOT / "minilm/families/mistral.py").read_text(encoding="utf-8")
    assert f"```python\n{source}```" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 90


def test_the_readme_names_files_that_exist():
    """Every module that it mentions."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\b[a-z_]+\.py\b", text):
        assert any(list((ROOT / folder).rglob(name)) for folder in ("minilm", "tests")), name


def test_core_modules_stay_short():
    """Read in one sitting: no file over 500 lines, and the core together under 2200."""
    core = "config norm mlp rope masks cache unpad attention backends model heads loss generate".split()
    paths = ROOT.glob("minilm/*.py")
    lengths = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert max(lengths.values()) <= 520
    assert sum(lengths[name] for name in core) < 2200


def test_exercises_are_handed_out_unanswered():
    """Running the labs writes hand-ins beside the exercises; none of them belongs to the repository."""
    ended = subprocess.run(
        ["git", "ls-files", "exercises"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        pytest.skip("not a git checkout, so nothing says which files belong to the repository")
    assert ended.stdout.split() == sorted(
        f"exercises/{path.name}" for path in (ROOT / "solutions").glob("ex*.py")
    )
