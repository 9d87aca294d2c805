"""What a learner's code changes around itself, found out and put back: torch.softmax, a built-in, a setting.

Code that is judged shares its process with what judges it. A function that somebody calls torch.equal would
otherwise make every answer right, and a line that empties the built-ins would end the check.
"""

import builtins
import copy
import functools
import itertools
import json
import math
import operator
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from operator import is_
from typing import Any

import torch

BUILTINS = vars(builtins)
SPACES = {
    "copy": copy, "functools": functools, "itertools": itertools, "json": json, "math": math,
    "operator": operator, "os": os, "random": random, "time": time, "torch": torch,
    "torch.autograd": torch.autograd, "torch.linalg": torch.linalg, "torch.nn": torch.nn,
    "torch.nn.functional": torch.nn.functional, "torch.special": torch.special, "torch.Tensor": torch.Tensor,
    "torch.nn.Module": torch.nn.Module,
}  # fmt: skip
# Libraries change the first ones to show tensors in colour; the last one follows the default dtype.
LEFT_ALONE = {"__repr__", "__str__", "__format__", "__doc__", "Storage"}
CPU = torch.device("cpu")
ABSENT = object()

# What of torch holds for a whole program: how it is called, how it is read, how it is set.
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch.get_default_dtype()": (torch.get_default_dtype, torch.set_default_dtype),
    "torch.get_default_device()": (
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device == CPU else device),
    ),
    "torch.is_grad_enabled()": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch.are_deterministic_algorithms_enabled()": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
}


class Surroundings:
    """Modules, classes and settings as they are when it is made; `put_back` makes them so again."""

    def __init__(self):
        self.builtins = dict(BUILTINS)
        self.spaces = [(called, space, dict(vars(space))) for called, space in SPACES.items()]
        self.settings = [(name, read(), read, change) for name, (read, change) in SETTINGS.items()]
        self.modules, self.filters = dict(sys.modules), list(warnings.filters)
        self.recursion, self.streams = sys.getrecursionlimit(), (sys.stdout, sys.stderr)
        self.changes: dict[str, None] = {}  # what was put back so far, in words, each once

    def put_back(self) -> None:
        """Undo what was changed. What was added does no harm, and stays."""
        now = BUILTINS.copy()
        BUILTINS.update(self.builtins)  # up to here without any of them: they may be gone
        for name, value in self.builtins.items():
            if now.get(name, ABSENT) is not value:
                self.changes[f"the built-in {name}"] = None
        sys.modules.update(self.modules)
        for called, space, before in self.spaces:
            now = vars(space)
            if len(now) != len(before) or not all(map(is_, now.values(), before.values())):
                self.put_names_back(called, space, before)
        for name, before, read, change in self.settings:
            now = read()
            if str(now) != str(before):
                change(before)
                self.changes[f"{name} from {before} to {now}"] = None
        warnings.filters[:] = self.filters
        sys.setrecursionlimit(self.recursion)
        sys.stdout, sys.stderr = self.streams

    def put_names_back(self, called: str, space: Any, before: dict[str, Any]) -> None:
        """Undo what was changed in a module or a class."""
        now = dict(vars(space))
        for name, value in before.items():
            found = now.get(name, ABSENT)
            # Parts of torch that are imported late put functions such as torch.manual_seed into wrappers.
            same = found is value or getattr(found, "__wrapped__", ABSENT) is value
            if not same and name not in LEFT_ALONE:
                setattr(space, name, value)
                self.changes[f"{called}.{name}"] = None
        for name in now if isinstance(space, type) else ():
            # torch.Tensor has softmax from a class above it, and one of its own would hide that.
            inherited = any(name in vars(parent) for parent in space.__mro__[1:])
            if name not in before and inherited and name not in LEFT_ALONE:
                delattr(space, name)
                self.changes[f"{called}.{name}"] = None

    def sentence(self, shown: int = 3) -> str | None:
        """What was put back, for a learner; None where nothing was changed."""
        if not self.changes:
            return None
        names = list(self.changes)
        more = f" and {len(names) - shown} more" if len(names) > shown else ""
        return (
            f"your code changes {', '.join(names[:shown])}{more}, and that for the whole program, not for "
            "itself alone: give what you write a name of its own, and set back what you set"
        )
