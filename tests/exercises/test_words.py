"""Whatever values an answer returns, how they differ can be said."""

from pathlib import Path

import pytest
import torch

from minilm.course import difference, judge, sources, worker

INF, NAN = torch.inf, torch.nan


@pytest.mark.parametrize(
    "expected", [[INF, 1.0], [-INF, INF], [NAN, 2.0], [0.0, 0.0], [1e38, -1e38], [3.0, 3.0]]
)
@pytest.mark.parametrize("found", [[INF, 2.0], [INF, INF], [NAN, NAN], [0.0, 1.0], [-1e38, INF], [1.0, 2.0]])
def test_odd_numbers_are_put_into_words(found, expected):
    for dtype in (torch.float32, torch.bfloat16):
        x, y = torch.tensor(found, dtype=dtype), torch.tensor(expected, dtype=dtype)
        assert difference.describe(x, y, 1e-6).startswith("the result ")


def test_empty_values_are_put_into_words():
    empty = torch.zeros(0, 3)
    assert difference.describe(empty, empty.clone(), 0.0) is None
    assert "shape" in difference.describe(empty, torch.zeros(1, 3), 0.0)


X = torch.arange(24.0).view(4, 6) ** 2 % 17 - 5
CAUSAL = torch.ones(5, 5).tril().bool()
HOLE = CAUSAL.clone().index_put((torch.tensor([2]), torch.tensor([1])), torch.tensor(False))

SENTENCES = [
    (-X, X, "has every sign reversed"),
    (2 * X, X, "is everywhere 2 times what is expected"),
    (6 * X, X, "is everywhere 6 times what is expected"),
    (X / 6**0.5, X, "is everywhere 0.408248 (1/√6) times what is expected"),
    (X.roll(-1, 0), X, "is shifted by -1 along axis 0"),
    (X.flip(1), X, "is reversed along axis 1"),
    (X[[2, 0, 3, 1]], X, "has axis 0 in another order: [2, 0, 3, 1]"),
    (X[[2, 2, 2, 2]], X, "has what belongs to place 2 of axis 0 at every place of it"),
    (X.T, X, "has shape [6, 4], expected [4, 6] (transposed?)"),
    (X[:, :4].T, X[:, :4], "has axes 0 and 1 exchanged"),
    (X.bfloat16(), X, "is torch.bfloat16, expected torch.float32"),
    (X + (X[1, 2] == X) * torch.eye(4, 6).roll(1, 1)[1], X, "differs at"),
    (X.masked_fill(X > 8, NAN), X, "is NaN at"),
    (X.masked_fill(X > 8, -INF), X, "is -inf where a number is expected at"),
    (X, X.masked_fill(X > 8, -INF), "is a number where -inf is expected at"),
    (None, X, "should be a tensor, and is None; is there a return at the end?"),
    (~CAUSAL, CAUSAL, "has True and False exchanged everywhere"),
    (torch.ones(5, 5).tril(1).bool(), CAUSAL, "is shifted by -1 along axis 0"),
    (HOLE, CAUSAL, "is False where True is expected at 1 of 25 places"),
    ((X, 2 * X), (2 * X, X), "has its values 1 and 2 exchanged"),
    (X, (X, X), "should be a tuple of 2, and is a Tensor"),
    ([1, 2.00000001], [1, 3.0], "is [1, 2.0], expected [1, 3.0]"),
    (480.0, 480, "is 480.0 (float), expected 480 (int)"),
    (INF, 3.0, "is inf, expected 3"),
    ({"a": 1}, {"b": 1}, "lacks 'b' and should not have 'a'"),
    (torch.tensor(1.47), torch.tensor(1.39), "differs everywhere; most at []: 1.47 instead of 1.39"),
]  # fmt: skip


@pytest.mark.parametrize("found, expected, words", SENTENCES, ids=[words for *_, words in SENTENCES])
def test_a_difference_is_named(found, expected, words):
    """And the right value is not accused."""
    assert difference.describe(found, expected, 1e-6).startswith(f"the result {words}")
    assert difference.describe(expected, expected, 1e-6) is None


def test_equal_numbers_that_are_none():
    assert difference.describe(INF, INF, 0.0) is None
    assert difference.describe(NAN, NAN, 0.0) is None
    assert difference.describe(NAN, 1.0, 0.0) == "the result is nan, expected 1"


def test_what_an_answer_calls_is_to_blame(tmp_path):
    """A right answer that calls a wrong one: the report says where to begin."""
    root = Path(__file__).parents[2]
    name = "ex05_rotary_embeddings.py"
    text = sources.stub((root / "solutions" / name).read_text())
    answers = {
        "5.3": "return x",
        "5.4": (
            "cos, sin = cos[:, None], sin[:, None]\n"
            "    return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin"
        ),
    }
    for number, body in answers.items():
        text = text.replace(f'raise NotImplementedError("exercise {number}")', body)
    (tmp_path / name).write_text(text)
    unit = sources.find(root, "5")
    (exercise,) = sources.find(root, "5.4")
    found = worker.check(root, tmp_path, exercise, unit, 0, 2**20)
    assert (
        found.sentences[0] == "it calls your rotate_half (exercise 5.3), which is not right yet: begin there"
    )


def test_only_half_precision_goes_wrong():
    """The report asks which step must be computed in fp32; where only the dtype is wrong, it says that."""
    root = Path(__file__).parents[2]
    (exercise,) = sources.find(root, "3.2")
    solution = sources.load_file(root / "solutions" / f"{exercise.module}.py", "solution").rms_norm

    def narrow(x, weight, eps):
        return x * (x.pow(2).mean(-1, keepdim=True) + eps).pow(-0.5) * weight

    def wide(x, weight, eps):
        return solution(x, weight, eps).float()

    first = [judge.judge(exercise, answer, solution, 0).failures[0].sentence for answer in (narrow, wide)]
    assert first[0] == judge.ONLY_HALF and "is torch.float32, expected torch.bfloat16" in first[1]


def test_a_mistake_is_named_although_some_inputs_fail():
    """view() fails on a tensor with exchanged axes; on the others its values say what went wrong."""
    root = Path(__file__).parents[2]
    (exercise,) = sources.find(root, "1.1")
    solution = sources.load_file(root / "solutions" / f"{exercise.module}.py", "solution").split_heads

    def view(x, num_heads):
        return x.view(x.shape[0], num_heads, x.shape[1], x.shape[2] // num_heads)

    verdict = judge.judge(exercise, view, solution, seed=0)
    assert any("view size is not compatible" in failure.sentence for failure in verdict.failures)
    assert verdict.mistake.name == "view without a transpose"
