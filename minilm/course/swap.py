"""Putting a learner's functions in the place of the package's, and taking them out again."""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from minilm import compiled
from minilm.course import seams
from minilm.course.seams import Seam


@contextlib.contextmanager
def swap(answers: Mapping[str, Callable | type]) -> Iterator[dict[str, int]]:
    """Let the package compute with these answers inside the with block, and with its own functions after it.

    answers: what stands for which exercise, by number ("3.2") or name ("rms_norm").
    Returns: how often each answer has been called so far, by the exercise's number.
    Raises:  ValueError for an exercise that does not exist or has no place in the model. An error inside an
             answer keeps its type and gets a note that names the exercise.

        with swap({"rms_norm": my_rms_norm}) as calls:
            print(minilm.generate(model, ids), calls["3.2"])
    """
    chosen = {(seam := seams.find(key)).number: (seam, answer) for key, answer in answers.items()}
    calls = dict.fromkeys(chosen, 0)
    ordered = [chosen[seam.number] for seam in seams.SEAMS if seam.number in chosen]
    with contextlib.ExitStack() as undo:
        undo.callback(compiled.forget)  # what was compiled holds the functions that it was made of
        for seam, answer in ordered:
            put(seam, Counted(seam, answer, calls), undo)
        compiled.forget()
        yield calls


def put(seam: Seam, answer: Callable, undo: contextlib.ExitStack) -> None:
    """Put one answer in its place, and everywhere where another module has imported what stood there."""
    module_name, _, path = seam.target.partition(":")
    # From sys.modules: as an attribute of the package, minilm.generate is the function of that name.
    importlib.import_module(f"minilm.{module_name}")
    module = sys.modules[f"minilm.{module_name}"]
    *outer, name = path.split(".")
    owner = functools.reduce(getattr, outer, module)
    present = vars(owner)[name]
    replacement = seam.adapt(answer, present)
    holders = [(owner, name)]
    if not outer:
        holders += [
            (other, attribute)
            for other in imported_modules()
            for attribute, value in vars(other).items()
            if value is present and other is not module
        ]
    for holder, attribute in holders:
        undo.callback(setattr, holder, attribute, present)
        setattr(holder, attribute, replacement)


def imported_modules() -> list[Any]:
    """The modules of this package that have been imported so far."""
    return [module for name, module in list(sys.modules.items())
            if module is not None and name.partition(".")[0] == "minilm"]  # fmt: skip


@dataclass
class Counted:
    """An answer that counts its calls (of a cache: its updates), and whose errors say whose they are."""

    seam: Seam
    answer: Callable | type
    calls: dict[str, int]

    def __call__(self, *args: Any, **settings: Any) -> Any:
        if isinstance(self.answer, type):
            return CountedCache(self, self.guarded(self.answer, *args))
        self.calls[self.seam.number] += 1
        return self.guarded(self.answer, *args, **settings)

    def guarded(self, function: Callable, *args: Any, **settings: Any) -> Any:
        try:
            return function(*args, **settings)
        except Exception as error:
            error.add_note(f"raised in your {self.seam.name} (exercise {self.seam.number})")
            raise


@dataclass
class CountedCache:
    """A cache that an answer has made."""

    counted: Counted
    held: Any

    def update(self, *args: Any) -> Any:
        self.counted.calls[self.counted.seam.number] += 1
        return self.counted.guarded(self.held.update, *args)
