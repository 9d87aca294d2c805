"""A lab: every number is predicted before it is measured, and both are handed in as one file.

In a notebook:

    lab = course.Lab("19", {"copy": ("How fast does this machine read memory?", "GB/s")})
    lab.predict("copy", 10)
    lab.measure("copy", lambda: bench.memory_bandwidth() / 1e9)
    lab.hand_in("I had thought of the disk; memory is ten times as fast.")

`python -m minilm.course grade` collects what was handed in, for the whole class.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

from minilm import atomic
from minilm.course import curves, sources
from minilm.course.api import Text, answers_folder
from minilm.table import Table

HAND_IN = re.compile(r"lab_(\d\d)\.json")  # how a file is called that was handed in
NEAR = 2.0  # a prediction is near when the measured value is at most this many times as large or as small


@dataclass
class Question:
    """One number that a lab asks for.

    asks: the question in words; unit: of both numbers, such as "ms".
    """

    asks: str
    unit: str
    prediction: float | None = None
    measured: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times the prediction was measured; None before that, or where one of them is 0."""
        return self.measured / self.prediction if self.prediction and self.measured else None

    @property
    def is_near(self) -> bool:
        """Whether prediction and measurement differ by a factor of NEAR at most."""
        return self.ratio is not None and 1 / NEAR <= self.ratio <= NEAR


class Lab:
    """The predictions and measurements of one lab, in the order of its questions."""

    def __init__(self, number: str, questions: Mapping[str, tuple[str, str]]):
        """number: of the notebook, "19". questions: name -> what is asked, and the unit of the answer."""
        self.number = number
        self.questions = {name: Question(*question) for name, question in questions.items()}

    def question(self, name: str) -> Question:
        """Raises: ValueError for a name that the lab does not ask for."""
        if name not in self.questions:
            raise ValueError(f"lab {self.number} asks for {', '.join(self.questions)}; not for {name!r}")
        return self.questions[name]

    def predict(self, name: str, value: object) -> Text:
        """Note what you expect, before you measure it: a number in the question's unit.

        Raises: ValueError for what is no number, or where another value was predicted and then measured.
        """
        question = self.question(name)
        if not is_number(value):
            raise ValueError(f"predict {name!r} as a number in {question.unit}; got {value!r}")
        if question.measured is not None and value != question.prediction:
            raise ValueError(
                f"{name!r} is measured already, so the prediction stays "
                f"{in_unit(question.prediction, question)}. To begin anew, run the cell that makes the lab"
            )
        question.prediction = float(value)
        return Text(f"You predict {in_unit(value, question)}. {question.asks}")

    def measure(self, name: str, run: Callable[[], object]) -> Text:
        """Measure what was predicted: calls `run`, which returns the number in the question's unit.

        Raises: ValueError before a prediction, and where `run` returns no number.
        """
        question = self.question(name)
        if question.prediction is None:
            raise ValueError(f"predict first: lab.predict({name!r}, …), in {question.unit}. {question.asks}")
        value = run()
        if not is_number(value):
            raise ValueError(f"measuring {name!r} gave {value!r} instead of a number in {question.unit}")
        question.measured = float(value)
        return Text(
            f"measured {in_unit(value, question)}, predicted {in_unit(question.prediction, question)}"
        )

    def table(self) -> Table:
        """Both numbers of every question, and how many times the prediction was measured."""
        rows = []
        for question in self.questions.values():
            both = (in_unit(question.prediction, question), in_unit(question.measured, question))
            ratio = "" if question.ratio is None else f"{question.ratio:.2g} ×"
            rows.append((question.asks, *both, ratio))
        return Table(["question", "predicted", "measured", "measured / predicted"], rows)

    def hand_in(self, conclusion: str, folder: str | Path | None = None) -> Text:
        """Write what was predicted, measured and concluded beside the answers to exercises.

        conclusion: in a sentence or more, what you take from it.
        folder:     exercises/ by default. A file of an earlier run is kept in its .backup.
        Raises:     ValueError where a measurement or the conclusion is missing.
        """
        open_questions = [name for name, each in self.questions.items() if each.measured is None]
        if open_questions:
            raise ValueError(f"not measured yet: {', '.join(open_questions)}")
        if not isinstance(conclusion, str) or not conclusion.strip():
            raise ValueError("write a sentence on what you take from it: lab.hand_in('…')")
        from minilm import bench  # imports transformers, which the rest of the engine does without

        path = answers_folder(folder) / f"lab_{self.number}.json"
        text = json.dumps(
            {
                "lab": self.number,
                "questions": {name: asdict(each) for name, each in self.questions.items()},
                "conclusion": conclusion.strip(),
                "machine": bench.machine(),
            },
            indent=1,
        )
        if path.is_file():
            sources.back_up(path)
        atomic.write(path, text + "\n")
        near = sum(each.is_near for each in self.questions.values())
        return Text(
            f"handed in as {path.parent.name}/{path.name}: {len(self.questions)} measurements, {near} within "
            f"a factor of {NEAR:g} of the prediction"
        )


def is_number(value: object) -> bool:
    """Whether a value is a finite number; whole numbers too long for a float are none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    except OverflowError:
        return False


def in_unit(value: float | None, question: Question) -> str:
    """A number with three digits and its unit; empty for None."""
    return "" if value is None else f"{value:,.3g} {question.unit}"


def read(content: bytes) -> tuple[list[Question], str, str]:
    """A lab that was handed in: its questions, the conclusion, and the machine in a few words.

    Raises: ValueError where the file is not what hand_in writes.
    """
    try:
        found = json.loads(content.decode("utf-8"))
        questions = [Question(**each) for each in found["questions"].values()]
        conclusion, machine = str(found["conclusion"]), curves.processor(found["machine"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"is not what a lab hands in ({type(error).__name__}: {error})") from error
    for each in questions:
        numbers = each.prediction, each.measured
        if not all(map(is_number, numbers)):
            raise ValueError(f"holds {numbers} where two numbers belong")
        each.asks, each.unit = str(each.asks), str(each.unit)
    return questions, conclusion, machine
