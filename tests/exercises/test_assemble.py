"""A model built from the solutions is the same model; with a known mistake it is not, or we know why."""

import functools
import math
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

from minilm import attention, checkpoint, compiled, course, cross_attention, generate, norm
from minilm.course import assembling, assembly, hidden, sandbox, seams, sources, trials
from minilm.course.swapping import swap
from minilm.families import FAMILIES

ROOT = Path(__file__).parents[2]
EXERCISES = {each.number: each for unit in sources.units(ROOT) for each in unit.exercises}
SMALL = (*FAMILIES, *trials.VARIANTS)
FP32, BF16 = torch.float32, torch.bfloat16
HALF_PRECISION = ("cached", "flash cached")  # of all models; enough to meet nearly every part in bf16


@pytest.fixture(scope="module", autouse=True)
def _unchecked_annotations():
    """The package's own tests check them; here they would take most of the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@functools.cache
def solutions() -> dict:
    """Every worked answer that has a place in the package."""
    files = {
        each.module: sources.load_file(ROOT / "solutions" / f"{each.module}.py", f"assembled_{each.module}")
        for each in EXERCISES.values()
    }
    return {
        seam.number: getattr(files[EXERCISES[seam.number].module], seam.name)
        for seam in seams.SEAMS
        if seam.number in EXERCISES
    }


@functools.cache
def random_model(name: str, dtype: torch.dtype, task: str):
    return trials.random_model(name, dtype, task)


@functools.cache
def tried(trial_name: str, name: str, dtype: torch.dtype):
    """A trial, its model, and what the package's own functions give."""
    each = trials.TRIALS[trial_name]
    model = random_model(name, dtype, each.task)
    return each, model, trials.expect(each, model)


# ------------------------------------------------------------------------------------------------------------
# The table


def test_every_exercise_has_a_place_or_a_reason():
    placed = {seam.number: seam.name for seam in seams.SEAMS}
    assert len(placed) == len(seams.SEAMS) and not set(placed) & set(seams.NO_PLACE)
    assert set(EXERCISES) == set(placed) | set(seams.NO_PLACE)
    for number, name in placed.items():
        assert EXERCISES[number].name == name
    assert {number for seam in seams.SEAMS for number in seam.covers} <= set(placed)
    assert {name for seam in seams.SEAMS for name in seam.trials} == set(trials.TRIALS)


def test_hidden_mistakes_exist():
    known = {(number, each.name) for number, one in EXERCISES.items() for each in one.mistakes}
    assert set(hidden.HIDDEN) <= known, set(hidden.HIDDEN) - known


# ------------------------------------------------------------------------------------------------------------
# The solutions


@pytest.mark.parametrize("name", SMALL)
def test_the_solutions_make_the_same_model(name):
    """In every trial, all of them together and without those that do the work of others."""
    wanted = [
        (trial_name, name, dtype)
        for trial_name, each in trials.TRIALS.items()
        for dtype in each.dtypes
        if name in (each.models or FAMILIES) and (dtype == each.dtypes[0] or trial_name in HALF_PRECISION)
    ]
    expected = {key: tried(*key) for key in wanted}
    covered = {number for seam in seams.SEAMS for number in seam.covers}
    needed = {trial_name for number in covered for trial_name in seams.find(number).trials}
    for count, parts in enumerate(assembly.make_rounds(solutions())):
        with swap(parts):
            found = {
                key: each.run(model)
                for key, (each, model, _) in expected.items()
                if count == 0 or key[0] in needed
            }
        for key, results in found.items():
            difference, allowed = trials.compare(results, expected[key][2])
            assert difference <= allowed, (key, difference, allowed)


@pytest.mark.parametrize("source", checkpoint.shipped())
def test_the_solutions_make_the_same_trained_model(source):
    model = checkpoint.load(source, dtype=FP32)
    with swap(solutions()):
        again = checkpoint.load(source, dtype=FP32)
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    chosen = [trials.TRIALS[name] for name in ("cached", "flash padded", "greedy")]
    expected = [trials.expect(each, model) for each in chosen]
    with swap(solutions()):
        found = [each.run(model) for each in chosen]
    for pair in zip(found, expected, strict=True):
        difference, allowed = trials.compare(*pair)
        assert difference <= allowed, (difference, allowed)


def test_a_part_whose_work_another_does_is_at_work_without_it():
    first, second = assembly.make_rounds(solutions())
    covered = {number for seam in seams.SEAMS for number in seam.covers}
    assert set(first) == set(solutions()) and covered <= set(second)
    idle = set(covered)
    wanted = {trial_name for number in covered for trial_name in seams.find(number).trials}
    runs = [tried(trial_name, name, FP32) for trial_name in wanted for name in FAMILIES]
    with swap(second) as calls:
        for each, model, _ in runs:
            each.run(model)
            idle = {number for number in idle if not calls[number]}
            if not idle:
                break
    assert not idle


# ------------------------------------------------------------------------------------------------------------
# The mistakes


def plan(seam: seams.Seam) -> list[tuple[str, str, torch.dtype]]:
    """Trials and models in which a part is at work: up to three models each, windows among them.

    fp32 first, since it shows more; bf16 on one model.
    """
    found = []
    for trial_name in seam.trials:
        each = trials.TRIALS[trial_name]
        names = [name for name in each.models or FAMILIES if is_called(seam.number, trial_name, name)]
        windows = [name for name in names[2:] if trials.structure(name).layer_windows]
        found += [(trial_name, name, each.dtypes[0]) for name in names[:2] + windows[-1:]]
        found += [(trial_name, name, dtype) for name in names[:1] for dtype in each.dtypes[1:]]
    return sorted(found, key=lambda one: one[2] == BF16)


def is_called(number: str, trial_name: str, name: str) -> bool:
    each = trials.TRIALS[trial_name]
    with swap({number: solutions()[number]}) as calls:
        each.run(random_model(name, each.dtypes[0], each.task))
    return calls[number] > 0


def shown(number: str, answer, trial_name: str, name: str, dtype: torch.dtype) -> bool:
    """Whether a model with this part gives something else, or stops."""
    each, model, expected = tried(trial_name, name, dtype)
    try:
        with swap({number: answer}):
            difference, allowed = trials.compare(each.run(model), expected)
    except Exception:
        return True
    return difference > allowed


@pytest.mark.parametrize("seam", seams.SEAMS, ids=lambda seam: seam.number)
def test_a_mistake_shows_or_is_explained(seam):
    places = plan(seam)
    wrong = []
    for mistake in EXERCISES[seam.number].mistakes:
        seen = any(shown(seam.number, mistake.answer, *place) for place in places)
        if seen == ((seam.number, mistake.name) in hidden.HIDDEN):
            wrong.append(f"{mistake.name}: {'shows, although HIDDEN has it' if seen else 'does not show'}")
    assert {trial_name for trial_name, *_ in places} == set(seam.trials)
    assert not wrong, wrong


# ------------------------------------------------------------------------------------------------------------
# Swapping


def test_the_package_is_itself_again_after_an_error():
    before = {seam.target: vars_of(seam) for seam in seams.SEAMS}
    imported = cross_attention.split_heads
    compiled._compiled["something"] = print
    with pytest.raises(KeyError), swap(solutions()):
        assert attention.split_heads is not imported
        assert cross_attention.split_heads is attention.split_heads  # imported by name, and replaced as well
        assert all(vars_of(seam) is not before[seam.target] for seam in seams.SEAMS)
        compiled._compiled["something"] = print
        raise KeyError
    assert {seam.target: vars_of(seam) for seam in seams.SEAMS} == before
    assert cross_attention.split_heads is imported and "something" not in compiled._compiled


def vars_of(seam: seams.Seam):
    """What stands in a place now."""
    module, _, path = seam.target.partition(":")
    swap_target = sys.modules.get(f"minilm.{module}") or __import__(f"minilm.{module}", fromlist=["x"])
    *outer, name = path.split(".")
    return vars(functools.reduce(getattr, outer, swap_target))[name]


def test_calls_are_counted_and_errors_say_whose_they_are():
    def scaled(x, weight, eps):
        if len(x) == 2:
            raise RuntimeError("two rows are too many for me")
        return norm_before(x, weight, eps)

    norm_before = norm.rms_norm
    model = random_model("plain", FP32, "causal-lm")
    with swap({"rms_norm": scaled}) as calls:
        model(torch.tensor([[1, 2, 3]]))
        assert calls == {"3.2": 2 * model.config.num_layers + 1}
        with pytest.raises(RuntimeError) as caught:
            model(torch.tensor([[1, 2], [3, 4]]))
    assert caught.value.__notes__ == ["raised in your rms_norm (exercise 3.2)"]


def test_swaps_can_be_nested():
    ids = torch.tensor([[1, 2, 3]])
    model = random_model("plain", FP32, "causal-lm")
    plain = model(ids).logits
    with swap({"3.2": lambda x, weight, eps: x}):
        outer = model(ids).logits
        with swap({"3.2": solutions()["3.2"]}):
            assert torch.equal(model(ids).logits, plain)
        assert torch.equal(model(ids).logits, outer) and not torch.equal(outer, plain)


@pytest.mark.parametrize("key, words", [("99.1", "no exercise '99.1'"), ("19.3", "no place in the model")])
def test_what_cannot_be_swapped_is_refused(key, words):
    with pytest.raises(ValueError, match=words), swap({key: print}):
        pass


def test_generate_is_the_module_and_not_the_function():
    assert callable(generate)  # the package's attribute hides the module of that name
    with swap({"10.5": lambda model, input_ids, steps: input_ids}):
        out = generate(random_model("plain", FP32, "causal-lm"), torch.tensor([[1, 2]]), eos_token_id=[])
    assert out.tolist() == [[1, 2]]


# ------------------------------------------------------------------------------------------------------------
# The report


def test_a_failure_names_the_part_and_the_operation():
    tiled = next(each for each in EXERCISES["8.1"].mistakes if "tile" in each.name)
    parts, lines = {"1.1": solutions()["1.1"], "8.1": tiled.answer}, []
    one = assembly.Assembly([parts], lines.append, dict.fromkeys(parts, 0))
    family = next(name for name in FAMILIES if trials.structure(name).groups > 1)
    assembly.try_model(one, family, random_model(family, FP32, "causal-lm"), ("eager",), "fp32")
    (result,) = (line for line in lines if line["kind"] == "result")
    (failure,) = (line for line in lines if line["kind"] == "failure")
    assert result["failed"] and result["difference"] > 100 * result["allowed"] > 0
    assert failure["alone"] == ["8.1"] and failure["near"] == ["8.1"]
    assert "layers.0.scores" in failure["divergence"]
    assert one.calls["8.1"] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_operations_may_differ_by_rounding(name):
    assert assembly.first_operation(random_model(name, FP32, "causal-lm"), solutions()) == (None, [])


def test_a_folder_is_assembled(tmp_path, capsys):
    """One unit is solved, one of its parts is spoiled, and all other files are missing."""
    text = (ROOT / "solutions" / "ex08_grouped_queries.py").read_text()
    (tmp_path / "ex08_grouped_queries.py").write_text(text.replace("scores.softmax", "(2 * scores).softmax"))
    outcome = assembling.assemble(ROOT, tmp_path, size="small")
    parts = {part.number: part for part in outcome.parts}
    assert [number for number, part in parts.items() if part.swapped] == ["8.1"] and parts["8.1"].calls > 0
    assert outcome.results and not outcome.failed and not outcome.texts
    assembling.tell(outcome)
    told = " ".join(capsys.readouterr().out.split())
    for text in (told, repr(outcome), outcome._repr_html_()):
        assert "1 parts are yours" in text and "does not pass its check" in text
    assert list(outcome.load()) == ["8.1"]


def test_quickly_every_part_is_at_work():
    """In the notebooks' form too: no part of the solutions is left out of the few trials."""
    outcome = course.assemble(ROOT / "solutions", size="quick")
    assert not outcome.failed and all(part.calls for part in outcome.parts if part.swapped)
    assert (
        set(outcome.load())
        == {seam.number for seam in seams.SEAMS}
        == {part.number for part in outcome.parts if part.swapped}
    )
    units, models = outcome.tables
    assert len(units.rows) == len(sources.units(ROOT))
    assert {row[0] for row in models.rows} == {f"small {name}" for name in SMALL}


def test_a_size_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="size is 'tiny'; it must be one of 'quick', 'small', 'all'"):
        course.assemble(tmp_path, size="tiny")


def test_nothing_to_assemble(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "run", lambda *args: [])
    outcome = assembling.assemble(ROOT, tmp_path)
    assert outcome.failed and not outcome.results
    assert assembling.NOTHING in repr(outcome) and assembling.NOTHING in outcome._repr_html_()


@pytest.mark.parametrize(
    "one, other, far",
    [
        ([1.0, math.inf], [1.0, math.inf], 0.0),
        ([1.0, math.nan], [1.0, math.nan], 0.0),
        ([1.0, math.nan], [1.0, 2.0], math.inf),
        ([1.0], [1.0, 2.0], math.inf),
        ([1.0, 2.0], [1.5, 2.0], 0.5),
    ],
)
def test_distances(one, other, far):
    assert trials.distance(torch.tensor(one), torch.tensor(other)) == far
