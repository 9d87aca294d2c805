"""The course engine: exercises, what judges them, and what a learner is told.

In a notebook: `from minilm import course`, then `course.check("5.4")`, `course.hint("5.4")`, ….
"""

from minilm.course.api import assemble, check, exercises, hint, reset, solution, status
from minilm.course.lab import Lab
from minilm.course.swapping import swap

__all__ = ["Lab", "assemble", "check", "exercises", "hint", "reset", "solution", "status", "swap"]
