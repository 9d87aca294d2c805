"""Every stub fails, every solution passes, every named mistake is caught and named; nothing cheap passes."""

import subprocess
from pathlib import Path

import pytest

from minilm.course import sources
from minilm.course.judge import judge

ROOT = Path(__file__).parents[2]
UNITS = sources.units(ROOT)
EXERCISES = [exercise for unit in UNITS for exercise in unit.exercises]
MISTAKES = [(exercise, mistake) for exercise in EXERCISES for mistake in exercise.mistakes]
every_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda each: each.number)


def answer_in(folder: str, exercise):
    """The answer to an exercise in solutions/ or exercises/."""
    file = ROOT / folder / f"{exercise.module}.py"
    return getattr(sources.load_file(file, f"{folder}_{exercise.module}"), exercise.name)


@every_exercise
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_answer_passes(exercise, seed, pytestconfig):
    answer, solution = (
        answer_in(folder, exercise) for folder in (pytestconfig.getoption("impl"), "solutions")
    )
    verdict = judge(exercise, answer, solution, seed)
    assert verdict.passed, verdict


@every_exercise
def test_the_stub_is_unsolved(exercise, tmp_path):
    stub = tmp_path / f"{exercise.module}.py"
    stub.write_text(sources.stub((ROOT / "solutions" / stub.name).read_text()))
    answer = getattr(sources.load_file(stub, f"stub_{exercise.module}"), exercise.name)
    assert judge(exercise, answer, answer_in("solutions", exercise), 0).unsolved


@every_exercise
def test_it_names_enough_mistakes_and_gives_three_hints(exercise):
    assert len(exercise.mistakes) >= 3 and len(exercise.hints) == 3 and exercise.minutes > 0


@pytest.mark.parametrize(
    "exercise, mistake", MISTAKES, ids=lambda each: getattr(each, "number", None) or each.name
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_mistake_is_caught_and_named(exercise, mistake, seed):
    verdict = judge(exercise, mistake.answer, answer_in("solutions", exercise), seed)
    assert not verdict.passed and verdict.mistake is mistake, verdict


@every_exercise
def test_cheap_answers_fail(exercise):
    for cheap in (lambda *args: args[0], lambda *args: args[0] * 0, lambda *args: None):
        assert not judge(exercise, cheap, answer_in("solutions", exercise), 0).passed


def test_exercises_are_made_from_solutions():
    command = ["git", "status", "--porcelain", "exercises"]
    changed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if changed.returncode == 0 and changed.stdout:
        pytest.skip("exercises/ holds answers of yours, so it need not be what solutions/ makes of it")
    for solution in (ROOT / "solutions").glob("ex*.py"):
        stub = sources.stub(solution.read_text())
        assert (ROOT / "exercises" / solution.name).read_text() == stub
        assert "BEGIN SOLUTION" not in stub
