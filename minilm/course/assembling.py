"""The learner's parts in the place of the package's: is it still the same model, and what does it write?

Every part that passed its check is swapped in, in a process of its own. Each model then does what it did
before, and its results are compared with those that the package's own functions gave on the same backend. The
package computes what transformers computes (`python -m minilm parity`), so that is the reference too. A right
part may order its sums otherwise: results may differ by a few times the package's own rounding, which is
measured on each model as the distance to itself in a wider dtype.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape as html
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from minilm import checkpoint, table
from minilm.course import hidden, sandbox, seams, sources
from minilm.course.sandbox import Limits
from minilm.course.spec import Exercise
from minilm.course.worker import Report

# A trial may take longer than a check: a model of 135 million parameters runs it, twice.
LIMITS = Limits(seconds=300.0, memory_bytes=8 * 2**30, output_bytes=16 * 2**20)
STATUS = {"unsolved": "not begun", "failed": "does not pass its check", "broken": "its file cannot be run"}
NOTHING = "nothing to assemble: no part with a place in the model has passed its check yet"
# What is run. quick: small random models in fp32, each trial once; half a minute, most of it for the checks.
# small: these models in every trial and in bf16 too. all: trained models as well, and they write something.
Size = Literal["quick", "small", "all"]
console = Console()


@dataclass
class Part:
    """One exercise in the report."""

    exercise: Exercise
    report: Report | None  # None: it was not checked, for it has no place in the model, or no file
    swapped: bool
    calls: int = 0

    @property
    def number(self) -> str:
        return self.exercise.number


@dataclass
class Outcome:
    """What came of an assembly. A notebook shows it as tables, print() as text."""

    folder: Path  # whose parts
    size: Size
    parts: list[Part]
    results: list[dict]
    failures: list[dict]
    texts: list[dict]
    accident: str | None = None  # what ended it early

    @property
    def failed(self) -> bool:
        """Whether a model is not what it was, or nothing could be tried."""
        different = any(line["failed"] for line in self.results) or any(
            not text["same"] for text in self.texts
        )
        return different or self.accident is not None or not any(part.swapped for part in self.parts)

    def load(self) -> dict[str, Callable | type]:
        """The parts that were swapped in, by number, for `course.swap`; they then run in this process."""
        swapped = [part.exercise for part in self.parts if part.swapped]
        return load_parts(self.folder, swapped)

    @property
    def tables(self) -> list[table.Table]:
        """Whose the parts of each unit are; and how far each model is from what it was."""
        units = dict.fromkeys(part.exercise.module for part in self.parts)
        rows = [
            unit_row(unit, [part for part in self.parts if part.exercise.module == unit]) for unit in units
        ]
        found = [table.Table(["unit", "yours", "the package's", "calls of yours"], rows)]
        if self.results:
            cells = [
                [*key, *(words + " ✘" * too_far for words, too_far in row)]
                for key, row in parity_rows(self.results)
            ]
            found.append(table.Table(["model", "dtype", *GROUPS], cells))
        return found

    @property
    def notes(self) -> list[str]:
        """All that is to be said besides the tables."""
        if not any(part.swapped for part in self.parts):
            return [NOTHING]
        told = [f"allowed differences: {rounding_words(self.results)}"] if self.results else []
        for line in self.failures:
            told += failure_lines(line, self.parts)
        told += [f"stopped: {self.accident}"] * (self.accident is not None)
        told += hidden_lines(self.parts)
        for text in self.texts:
            verdict = "" if text["same"] else " (the package's own functions write something else)"
            told.append(f"{text['model']}: {text['prompt']}▸{text['text']}{verdict}")
        return [*told, self.summary]

    @property
    def summary(self) -> str:
        """How much is the learner's, and how much of it is right, in a line."""
        own = sum(part.swapped for part in self.parts)
        same = sum(not line["failed"] for line in self.results)
        total = len(self.results)
        return f"{own} parts are yours; {same} of {total} results are the package's own, up to rounding"

    def __repr__(self) -> str:
        return "\n\n".join([*map(repr, self.tables), "\n".join(self.notes)])

    def _repr_html_(self) -> str:
        blocks = [each._repr_html_() for each in self.tables]
        return "".join([*blocks, *(f"<div>{html(note)}</div>" for note in self.notes)])


def has_smollm2() -> bool:
    """Whether it has been fetched."""
    return (checkpoint.cache_dir() / "smollm2" / "config.json").is_file()


def assemble(root: Path, folder: Path, seed: int = 0, failed: bool = False, size: Size = "all") -> Outcome:
    """Check a learner's parts, swap those that pass into the package, and run models with them.

    failed: swap in what fails its check as well, to see what it does to a model.
    size:   how much is run, see Size.
    Raises: ValueError where there is no such folder or size.
    """
    if size not in get_args(Size):
        raise ValueError(f"size is {size!r}; it must be one of {', '.join(map(repr, get_args(Size)))}")
    folder = folder.resolve()  # the processes that read it start elsewhere
    every = [exercise for unit in sources.units(root) for exercise in unit.exercises]
    placed = {seam.number for seam in seams.SEAMS}
    checked = [each for each in every if each.number in placed and (folder / f"{each.module}.py").is_file()]
    reports = {report.number: report for report in sandbox.run(root, folder, checked, seed)}
    wanted = {"passed", "failed"} if failed else {"passed"}
    parts = [Part(exercise, found := reports.get(exercise.number), bool(found and found.status in wanted))
             for exercise in every]  # fmt: skip
    numbers = [part.number for part in parts if part.swapped]
    if not numbers:
        return Outcome(folder, size, parts, [], [], [])
    arguments = [root, folder, sandbox.RESULTS, size, *numbers]
    lines, ended = sandbox.run_module("minilm.course.assembly", root, arguments, LIMITS)

    def of(kind: str) -> list[dict]:
        return [line for line in lines if line["kind"] == kind]

    accident = None
    if not of("calls"):  # the last line is missing
        doing = of("doing")
        accident = f"{doing[-1]['what']}: {ended}" if doing else ended
    calls = of("calls")[0]["calls"] if of("calls") else {}
    for part in parts:
        part.calls = calls.get(part.number, 0)
    return Outcome(folder, size, parts, of("result"), of("failure"), of("text"), accident)


def load_parts(folder: Path, exercises: list[Exercise]) -> dict[str, Callable | type]:
    """A learner's functions, by number."""
    modules = sorted({exercise.module for exercise in exercises})
    files = {module: sources.load_file(folder / f"{module}.py", f"learner_{module}") for module in modules}
    return {each.number: getattr(files[each.module], each.name) for each in exercises}


# ------------------------------------------------------------------------------------------------------------
# Telling


def tell(outcome: Outcome) -> None:
    """Print the parts, the comparison, what went wrong and what the models write."""
    console.print(parts_table(outcome.parts, finished=outcome.accident is None))
    if not any(part.swapped for part in outcome.parts):
        console.print(NOTHING)
        return
    if outcome.results:
        console.print(parity_table(outcome.results))
    for line in outcome.failures:
        first, *rest = failure_lines(line, outcome.parts)
        say("\n    ".join([f"[red]{escape(first)}[/]", *map(escape, rest)]))
    if outcome.accident is not None:
        say(f"[red]stopped:[/] {escape(outcome.accident)}")
    for line in hidden_lines(outcome.parts):
        say(escape(line))
    for text in outcome.texts:
        verdict = "" if text["same"] else "  [red]the package's own functions write something else[/]"
        say(f"[bold]{text['model']}[/] {escape(text['prompt'])}▸[cyan]{escape(text['text'])}[/]{verdict}")
    if outcome.size == "all" and not has_smollm2():
        say("smollm2 takes part once it has been fetched: `python -m minilm fetch smollm2`")
    say(outcome.summary)


def say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def unit_row(module: str, parts: list[Part]) -> list[str]:
    """One unit in the table for notebooks: which parts are the learner's, which the package's, and why."""
    own = [part for part in parts if part.swapped]
    others = [part for part in parts if not part.swapped and part.number not in seams.NO_PLACE]
    reasons: dict[str, list[str]] = {}
    for part in others:
        reasons.setdefault(state(part, finished=True)[1].removeprefix("yours "), []).append(
            part.exercise.name
        )
    why = [f"{reason}: {', '.join(names)}" for reason, names in reasons.items()]
    calls = sum(part.calls for part in own)
    title = module.removeprefix("ex").replace("_", " ")
    if not own and not others:
        return [title, "–", "none has a place in a model", ""]
    return [
        title,
        ", ".join(part.exercise.name for part in own) or "–",
        "; ".join(why),
        f"{calls:,}" if own else "",
    ]


def parts_table(parts: list[Part], finished: bool = True) -> Table:
    """Each exercise: whose part is in the model, and how often it was called."""
    shown = Table("exercise", "part", "whose", "where it is at work", "calls", box=None, padding=(0, 2, 0, 0))
    for part in parts:
        shown.add_row(
            part.number, part.exercise.name, *state(part, finished), f"{part.calls:,}" * bool(part.calls)
        )
    return shown


def state(part: Part, finished: bool) -> tuple[str, str]:
    """Whose part is in the model, and where it is at work, or why it is not."""
    if part.number in seams.NO_PLACE:
        return "[dim]no place[/]", f"[dim]{seams.NO_PLACE[part.number]}[/]"
    where = seams.find(part.number).where
    if part.report is None:
        return "the package's", f"{part.exercise.module}.py is missing"
    if not part.swapped:
        return "the package's", f"yours {STATUS[part.report.status]}"
    if part.report.status != "passed":
        where += "; it fails its check"
    if finished and part.calls == 0:
        return "[yellow]yours[/]", f"[yellow]never called[/]: {where}"
    return "[green]yours[/]", where


GROUPS = ("eager", "sdpa", "flash", "tokens", "other")


def group(line: dict) -> str:
    """The column of a result."""
    first = line["trial"].partition(" ")[0]
    if line["tokens"]:
        return "tokens" if line["trial"] != "loaded" else "other"
    return {"sdpa": "sdpa", "flash": "flash", "eager": "eager", "padded": "eager", "cached": "eager",
            "chunks": "eager", "right": "eager"}.get(first, "other")  # fmt: skip


def parity_rows(results: list[dict]) -> list[tuple[tuple[str, str], list[tuple[str, bool]]]]:
    """Model and dtype, and for each group of trials the worst result: in words, and whether it is too far."""
    rows = []
    for key in dict.fromkeys((line["model"], line["dtype"]) for line in results):
        of_model = [line for line in results if (line["model"], line["dtype"]) == key]
        rows.append((key, [worst([x for x in of_model if group(x) == name]) for name in GROUPS]))
    return rows


def parity_table(results: list[dict]) -> Table:
    """The largest difference of each model and dtype from the package's own functions."""
    title = f"difference from the package's own functions (allowed: {rounding_words(results)})"
    shown = Table(
        "model", "dtype", *GROUPS, box=None, padding=(0, 2, 0, 0), title=title, title_justify="left"
    )
    for key, row in parity_rows(results):
        shown.add_row(*key, *(f"[red]{words}[/]" if failed else words for words, failed in row))
    return shown


def worst(lines: list[dict]) -> tuple[str, bool]:
    """The worst of several results: beyond what is allowed first, then the largest."""
    if not lines:
        return "", False
    found = max(lines, key=lambda line: (line["failed"], line["difference"]))
    difference = found["difference"]
    if "error" in found:
        words = "error"
    elif found["tokens"]:
        words = "differ" if difference else "same"
    else:
        words = "no number" if math.isinf(difference) else "0" if difference == 0 else f"{difference:.0e}"
    return words, found["failed"]


def rounding_words(results: list[dict]) -> str:
    """How far results may lie apart, as it was measured."""
    words = []
    for dtype in dict.fromkeys(line["dtype"] for line in results):
        allowed = [line["allowed"] for line in results if line["dtype"] == dtype and line["allowed"]]
        if allowed:
            words.append(f"{dtype} {sorted(allowed)[len(allowed) // 2]:.0e}")
    return f"8 times its own rounding, about {' and '.join(words)}; tokens must be the same"


def failure_lines(line: dict, parts: list[Part]) -> list[str]:
    """What is known about one failure: the part, and the first operation that differs."""
    names = {part.number: part.exercise.name for part in parts}
    told = [f"{line['model']}, {line['dtype']}, {line['trial']} is not what it was"]
    if line["alone"]:
        told.append(f"wrong alone: {', '.join(f'{number} {names[number]}' for number in line['alone'])}")
    else:
        told.append("each part alone is right here; together they are not")
    if line.get("divergence"):
        told.append(line["divergence"])
    if line.get("near"):
        near = ", ".join(f"{number} {names[number]}" for number in line["near"])
        told.append(f"your parts nearest to it: {near}")
    return told


def hidden_lines(parts: list[Part]) -> list[str]:
    """For parts that fail their check by a known mistake: why a model does not show it."""
    told = []
    for part in parts:
        if part.report is None or part.report.mistake is None:
            continue
        reason = hidden.HIDDEN.get((part.number, part.report.mistake["name"]))
        if reason is not None:
            told.append(f"{part.number} {part.exercise.name}: its mistake does not show in a model: {reason}")
    return told
