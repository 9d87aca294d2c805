"""What an exercise is: inputs to try, laws to keep, wrong answers that people really give.

A unit's file in tests/exercises/ describes its exercises with these classes; the runner judges a learner's
functions with them, and the test run proves that they judge rightly.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Draw:
    """A source of random inputs. The same seed draws the same inputs; a teacher's seed is nobody's else."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """A tensor of normal numbers."""
        return (scale * torch.randn(shape, generator=self.generator)).to(dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """A tensor of integers from low up to high - 1."""
        return torch.randint(low, high, shape, generator=self.generator)

    def integer(self, low: int, high: int) -> int:
        """One integer from low to high, both included."""
        return self.random.randint(low, high)

    def mask(self, batch: int, length: int, side: str = "left", empty_row: bool = False) -> Tensor:
        """A padding mask [batch, length] of ragged rows, 1 = real; the first row is full."""
        lengths = [length, *(self.integer(1, length - 1) for _ in range(batch - 1))]
        if empty_row:
            lengths[-1] = 0
        real = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
        return (real if side == "right" else real.flip(1)).long()


@dataclass
class Case:
    """One input. What the worked solution makes of it is what is expected.

    label:    what is special about it, for the report: "bf16", "a row of padding alone"
    use:      how the answer is used, where that is more than one call: use(answer, *args) -> what to compare
    gradient: compare the gradients as well: of all floating inputs, or of the arguments named by index
    exact:    every bit counts; else what rounding alone may change is allowed (see judge.tolerance)
    refused:  why the input is wrong; the answer must raise a ValueError
    """

    args: tuple
    label: str = ""
    use: Callable | None = None
    gradient: bool | tuple[int, ...] = False
    exact: bool = False
    refused: str | None = None

    def __post_init__(self):
        self.label = self.label or self.refused or ""

    @property
    def trained_arguments(self) -> tuple[int, ...]:
        """The indices of the arguments whose gradients are compared."""
        return tuple(range(len(self.args))) if self.gradient is True else tuple(self.gradient or ())


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that people give, recognised by the values it computes."""

    name: str
    meaning: str  # what the learner's values say that they did
    consequence: str  # why it matters in a real model
    read: str  # where to read on
    answer: Callable | type


@dataclass
class Exercise:
    """One function or class that the learner writes."""

    number: str  # "5.4"
    name: str  # "apply_rope"
    module: str  # "ex05_rotary_embeddings"
    minutes: int
    difficulty: int  # 1 to 3
    hints: tuple[str, str, str]
    cases: Callable[[Draw], Iterator[Case]] | None = None
    laws: list[tuple[str, Callable[[Any, Draw], None]]] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)

    def inputs(self, function: Callable[[Draw], Iterator[Case]]) -> Callable:
        """Decorates the generator of cases."""
        self.cases = function
        return function

    def law(self, statement: str) -> Callable:
        """Decorates a check(answer, draw) that asserts what holds for every right answer."""

        def add(check: Callable[[Any, Draw], None]) -> Callable:
            self.laws.append((statement, check))
            return check

        return add

    def mistake(self, name: str, meaning: str, consequence: str, read: str) -> Callable:
        """Decorates a wrong answer."""

        def add(answer: Callable | type) -> Callable | type:
            self.mistakes.append(Mistake(name, meaning, consequence, read, answer))
            return answer

        return add


class Unit:
    """The exercises of one notebook, in their order."""

    def __init__(self, number: int, name: str):
        self.number, self.module = number, f"ex{number:02}_{name}"
        self.exercises: list[Exercise] = []

    def exercise(self, name: str, minutes: int, difficulty: int, hints: tuple[str, str, str]) -> Exercise:
        """Add the next exercise; its number follows from its place."""
        number = f"{self.number}.{len(self.exercises) + 1}"
        exercise = Exercise(number, name, self.module, minutes, difficulty, hints)
        self.exercises.append(exercise)
        return exercise


@dataclass
class Report:
    """A verdict without its tensors: what a learner is told."""

    number: str
    name: str
    status: str  # "passed", "failed", "unsolved" or "broken": the file itself cannot be run
    sentences: list[str]
    mistake: dict[str, str] | None = None
    seconds: float = 0.0  # that the check took
    picture: dict | None = None  # "found" and "expected", two tables of numbers, and "label"


def printable(text: str) -> str:
    """A text without what a terminal or a table cannot show."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
