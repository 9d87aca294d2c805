"""Whatever values an answer returns, how they differ can be said."""

import pytest
import torch

from minilm.course import difference

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
