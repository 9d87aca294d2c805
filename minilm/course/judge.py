"""Judging an answer: run it beside the worked solution, and say what its values reveal.

Nothing looks at how an answer is written. What it computes is compared with what the solution computes, and
where it differs, with what each known mistake computes on the same inputs.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minilm.course import difference
from minilm.course.spec import Case, Draw, Exercise, Mistake
from minilm.course.surroundings import Surroundings

ONLY_HALF = (
    "only inputs in bf16 or fp16 go wrong, and fp32 is right: which step has to be computed in fp32, and "
    "where does the result go back to the input's dtype?"
)
ROOM = 8  # a right answer may be so many times noisier than the solution: it may sum in any order


@dataclass
class Outcome:
    """What an answer made of a case: a value, or an exception."""

    value: Any = None
    error: BaseException | None = None
    gradients: dict[int, list] = field(default_factory=dict)  # argument -> those of its tensors


@dataclass
class Failure:
    """One case or law that an answer did not pass."""

    label: str
    sentence: str
    found: Any = None  # what the answer computed, for the picture beside the right one
    expected: Any = None


@dataclass
class Verdict:
    """What came out of checking one exercise."""

    number: str
    name: str
    failures: list[Failure] = field(default_factory=list)
    mistake: Mistake | None = None
    unsolved: bool = False

    @property
    def passed(self) -> bool:
        return not self.failures and not self.unsolved


def judge(exercise: Exercise, answer: Any, solution: Any, seed: int) -> Verdict:
    """Check an answer to an exercise. The same seed tries the same inputs."""
    verdict, around = Verdict(exercise.number, exercise.name), Surroundings()
    trials = list(try_cases(exercise, answer, solution, seed, around))
    if any(is_stub(outcome.error) for _, _, outcome, _ in trials):
        verdict.unsolved = True
        return verdict
    sentences = [fault(*trial) for trial in trials]
    for (case, expected, outcome, _), sentence in zip(trials, sentences, strict=True):
        if sentence is not None:
            verdict.failures.append(Failure(case.label, sentence, outcome.value, expected.value))
    if only_half(trials, sentences):
        verdict.failures.insert(0, Failure("", ONLY_HALF))
    for index, (statement, check) in enumerate(exercise.laws):
        try:
            try:
                check(answer, Draw(seed + 1000 + index))
            finally:
                around.put_back()
        except AssertionError as error:
            verdict.failures.append(
                Failure("", f"this should hold for every input, and does not: {statement}. {error}".strip())
            )
        except Exception as error:
            verdict.failures.append(Failure("", f"while checking that {statement}: {in_words(error)}"))
    if verdict.failures:
        verdict.mistake = recognise(exercise, trials)
    if around.changes:
        verdict.failures.insert(0, Failure("", around.sentence()))
    return verdict


def is_stub(error: BaseException | None) -> bool:
    """Whether an error says that an answer has not been written; torch raises this type for other reasons."""
    return isinstance(error, NotImplementedError) and re.match(r"exercise \d|$", str(error)) is not None


def only_half(trials: list[tuple[Case, Outcome, Outcome, float]], sentences: list[str | None]) -> bool:
    """Whether fp32 inputs came out right, and bf16 or fp16 inputs wrong for more than the result's dtype."""
    right = {True: 0, False: 0}  # half precision -> how many cases passed
    wrong = {True: 0, False: 0}
    for (case, expected, outcome, _), sentence in zip(trials, sentences, strict=True):
        another_dtype = dtypes(outcome.value) != dtypes(expected.value)
        (right if sentence is None or another_dtype else wrong)[is_half(case)] += 1
    return bool(wrong[True] and right[False] and not wrong[False])


def dtypes(value: Any) -> list[torch.dtype]:
    """The dtypes of all tensors in a value, in their order."""
    return [tensor.dtype for tensor in difference.tensors(value)]


def is_half(case: Case) -> bool:
    """Whether bf16 or fp16 occurs in the input."""
    named = [leaf for leaf in difference.leaves(case.args) if isinstance(leaf, torch.dtype)]
    return bool({torch.bfloat16, torch.float16} & {*dtypes(case.args), *named})


def try_cases(
    exercise: Exercise, answer: Any, solution: Any, seed: int, around: Surroundings
) -> Iterator[tuple[Case, Outcome, Outcome, float]]:
    """Each case with the expected outcome, the answer's, and how far values may lie apart."""
    for case in exercise.cases(Draw(seed)):
        expected = run(solution, case)
        yield case, expected, run(answer, case, around), tolerance(solution, case, expected)


def run(answer: Any, case: Case, around: Surroundings | None = None) -> Outcome:
    """Use an answer on its own copy of a case's inputs; a changed input is an error.

    around: put back before anything looks at what the answer gave; a learner's code may have changed it.
    """
    args = copy.deepcopy(case.args)
    trained = {
        index: [tensor for tensor in difference.tensors(args[index]) if tensor.is_floating_point()]
        for index in case.trained_arguments
    }
    for tensor in difference.tensors(list(trained.values())):
        tensor.requires_grad_()
    # Copies of what is trained: torch would refuse to write into it, in words that tell a learner less.
    args = tuple(difference.map_leaves(copy_trained, arg) if index in trained else arg
                 for index, arg in enumerate(args))  # fmt: skip
    try:
        try:
            value = case.use(answer, *args) if case.use else answer(*args)
        finally:
            if around is not None:
                around.put_back()
        value = difference.plain(value)
        computed = gradients(value, trained) if trained else {}
    except Exception as error:
        return Outcome(error=error.with_traceback(None))  # which would hold all that the answer allocated
    for index, (before, after) in enumerate(zip(case.args, args, strict=True)):
        if difference.describe(comparable(after), comparable(before), 0.0) is not None:
            return Outcome(difference.detach(value), InputChanged(index))
    return Outcome(difference.detach(value), gradients=difference.detach(computed))


def comparable(value: Any) -> Any:
    """What can be compared of an input: tensors, numbers and words, but not models and other objects."""
    kinds = (Tensor, int, float, str)
    return difference.map_leaves(lambda x: x if isinstance(x, kinds) else None, difference.detach(value))


def copy_trained(leaf: Any) -> Any:
    """A tensor that hands its gradient on; everything else as it is."""
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.requires_grad else leaf


class NoGradient(RuntimeError):
    """The result does not depend on the inputs, as far as autograd can see."""

    def __init__(self):
        super().__init__(
            "no gradient reaches the inputs; detach(), .data, .item(), torch.no_grad and torch.tensor cut it"
        )


class InputChanged(Exception):
    """The answer wrote into a tensor that it was given."""

    def __init__(self, index: int):
        super().__init__(
            f"argument {index + 1} is not the same after the call. Write into a new tensor: the caller still "
            "needs the old one"
        )


def gradients(value: Any, inputs: dict[int, list[Tensor]]) -> dict[int, list[Tensor | None]]:
    """The gradients of a weighted sum of all outputs; a plain sum would hide what adds up to a constant."""
    outputs = [output for output in difference.tensors(value) if output.is_floating_point()]
    if not any(output.requires_grad for output in outputs):
        raise NoGradient
    total = sum((output.double() * weights_like(output)).sum() for output in outputs)
    flat = [tensor for tensors in inputs.values() for tensor in tensors]
    found = iter(torch.autograd.grad(total, flat, allow_unused=True))
    return {index: [next(found) for _ in tensors] for index, tensors in inputs.items()}


def weights_like(output: Tensor) -> Tensor:
    """A different weight for every place of a tensor."""
    return torch.linspace(0.5, 1.5, output.numel(), dtype=torch.float64).view(output.shape)


def tolerance(solution: Any, case: Case, expected: Outcome) -> float:
    """How far a right answer may be off: ROOM times the solution's own rounding error on this input.

    That error is its distance from itself in fp64 (for half precisions from itself in fp32).
    """
    if case.exact or case.refused or expected.error is not None:
        return 0.0
    wider = copy.copy(case)
    wider.args = difference.map_leaves(widen, case.args)
    better = run(solution, wider)
    values, finer = [expected.value, expected.gradients], [better.value, better.gradients]
    noise = difference.largest(finer, values)
    floor = max((torch.finfo(t.dtype).eps * difference.size(t) for t in difference.tensors(values)
                 if t.is_floating_point()), default=0.0)  # fmt: skip
    return ROOM * max(noise, floor)


def widen(arg: Any) -> Any:
    """A tensor or dtype with more bits."""
    wider = {torch.float32: torch.float64, torch.bfloat16: torch.float32, torch.float16: torch.float32}
    if isinstance(arg, torch.dtype):
        return wider.get(arg, arg)
    if isinstance(arg, Tensor) and arg.dtype in wider:
        return arg.to(wider[arg.dtype])
    return arg


def fault(case: Case, expected: Outcome, outcome: Outcome, allowed: float) -> str | None:
    """What is wrong with an outcome, as a sentence; None where nothing is."""
    if case.refused:
        if isinstance(outcome.error, ValueError):
            return None
        got = "returned a value" if outcome.error is None else f"raised {in_words(outcome.error)}"
        return f"this input is wrong ({case.refused}) and a ValueError should say so, but your answer {got}"
    if outcome.error is not None:
        return in_words(outcome.error)
    return compare(outcome, expected, allowed)


def compare(found: Outcome, expected: Outcome, allowed: float) -> str | None:
    """How an outcome without error differs from another, as a sentence: the result first, then gradients."""
    try:
        sentence = difference.describe(found.value, expected.value, allowed)
    except Exception as error:  # an object may be such that it cannot even be looked at
        return f"the result cannot be compared with what is expected: {in_words(error)}"
    for index, gradient in expected.gradients.items():
        what = f"the result is right, but the gradient of argument {index + 1}"
        sentence = sentence or difference.describe(found.gradients.get(index), gradient, allowed, what)
    return sentence


def in_words(error: BaseException) -> str:
    """An exception in one line."""
    try:
        said = str(error).strip()
    except Exception:
        said = "its message cannot be shown"
    usual = "your code needs more memory than it may have" if isinstance(error, MemoryError) else "no message"
    return f"{type(error).__name__}: {said or usual}".splitlines()[0]


def recognise(exercise: Exercise, trials: list[tuple[Case, Outcome, Outcome, float]]) -> Mistake | None:
    """The known mistake that computes what the answer computed, on every case and at least one wrong one.

    Inputs that must be refused do not count: who forgets to refuse them makes the mistake all the same.
    """
    trials = [trial for trial in trials if trial[0].refused is None]
    # Who makes a mistake in other steps than the bank does rounds differently in half precision.
    full = [trial for trial in trials if not is_half(trial[0])]
    # An input on which it fails has found something else, such as a view of what a view cannot show.
    answered = [trial for trial in full if trial[2].error is None]
    named = (matching(exercise.mistakes, seen) for seen in (trials, full, answered))
    return next((mistake for mistake in named if mistake is not None), None)


def matching(mistakes: list[Mistake], trials: list[tuple[Case, Outcome, Outcome, float]]) -> Mistake | None:
    """The first mistake with the answer's outcome in every trial, of which at least one is wrong."""
    for mistake in mistakes:
        wrong = 0
        for case, expected, outcome, allowed in trials:
            theirs = run(mistake.answer, case)
            if not alike(theirs, outcome, allowed):
                break
            wrong += fault(case, expected, theirs, allowed) is not None
        else:
            if wrong:
                return mistake
    return None


def alike(a: Outcome, b: Outcome, allowed: float) -> bool:
    """Whether two outcomes are the same: equal values, or errors of one kind."""
    if a.error is not None or b.error is not None:
        return type(a.error) is type(b.error)
    # Wrong values may be larger than right ones, and are rounded accordingly.
    larger = max((difference.size(t) for t in difference.tensors([a.value, a.gradients])), default=0.0)
    return compare(b, a, allowed + 1e-6 * larger * bool(allowed)) is None
