"""The learner's parts in the place of the package's: is it still the same model, and what does it write?

Every part that passed its check is swapped in, in a process of its own. Each model then does what it did
before, and its results are compared with those that the package's own functions gave on the same backend. The
package computes what transformers computes (`python -m minilm parity`), so that is the reference too. A right
part may order its sums otherwise: results may differ by a few times the package's own rounding, which is
measured on each model as the distance to itself in a wider dtype.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from minilm import checkpoint
from minilm.course import hidden, sandbox, seams, sources
from minilm.course.sandbox import Limits
from minilm.course.spec import Exercise
from minilm.course.worker import Report

# A trial may take longer than a check: a model of 135 million parameters runs it, twice.
LIMITS = Limits(seconds=300.0, memory_bytes=8 * 2**30, output_bytes=16 * 2**20)
STATUS = {"unsolved": "not begun", "failed": "does not pass its check", "broken": "its file cannot be run"}
NOTHING = "nothing to assemble: no part with a place in the model has passed its check yet"
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
    """What came of an assembly."""

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


def has_smollm2() -> bool:
    """Whether it has been fetched."""
    return (checkpoint.cache_dir() / "smollm2" / "config.json").is_file()


def assemble(root: Path, folder: Path, seed: int = 0, failed: bool = False, small: bool = False) -> Outcome:
    """Check a learner's parts, swap those that pass into the package, and run models with them.

    failed: swap in what fails its check as well, to see what it does to a model.
    small:  use small random models alone, and write no text.
    Raises: ValueError where there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the one that holds the answers, such as exercises")
    every = [exercise for unit in sources.units(root) for exercise in unit.exercises]
    placed = {seam.number for seam in seams.SEAMS}
    checked = [each for each in every if each.number in placed and (folder / f"{each.module}.py").is_file()]
    reports = {report.number: report for report in sandbox.run(root, folder, checked, seed)}
    wanted = {"passed", "failed"} if failed else {"passed"}
    parts = [Part(exercise, found := reports.get(exercise.number), bool(found and found.status in wanted))
             for exercise in every]  # fmt: skip
    numbers = [part.number for part in parts if part.swapped]
    if not numbers:
        return Outcome(parts, [], [], [])
    size = "small" if small else "all"
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
    return Outcome(parts, of("result"), of("failure"), of("text"), accident)


# ------------------------------------------------------------------------------------------------------------
# Telling


def command(
    folder: Annotated[Path | None, typer.Option(help="Whose answers; exercises/ by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the inputs on which the parts are checked first.")] = 0,
    failed: Annotated[
        bool, typer.Option("--failed", help="Swap in what fails its check as well, to see what it does.")
    ] = False,
    small: Annotated[
        bool, typer.Option("--small", help="Small random models alone: one minute instead of several.")
    ] = False,
) -> None:
    """Build the model from your own parts, and see whether it still is the same model. Exit code 1 if not."""
    root = sources.repository()
    with console.status("checking your parts, and running models with them", spinner="line"):
        outcome = assemble(root, folder or root / "exercises", seed, failed, small)
    tell(outcome, small)
    raise typer.Exit(1 if outcome.failed else 0)


def tell(outcome: Outcome, small: bool = False) -> None:
    """Print the parts, the comparison, what went wrong and what the models write."""
    console.print(parts_table(outcome.parts, finished=outcome.accident is None))
    if not any(part.swapped for part in outcome.parts):
        console.print(NOTHING)
        return
    if outcome.results:
        console.print(parity_table(outcome.results))
    for line in outcome.failures:
        tell_failure(line, outcome.parts)
    if outcome.accident is not None:
        say(f"[red]stopped:[/] {escape(outcome.accident)}")
    tell_hidden(outcome.parts)
    for text in outcome.texts:
        verdict = "" if text["same"] else "  [red]the package's own functions write something else[/]"
        say(f"[bold]{text['model']}[/] {escape(text['prompt'])}▸[cyan]{escape(text['text'])}[/]{verdict}")
    if not small and not has_smollm2():
        say("smollm2 takes part once it has been fetched: `python -m minilm fetch smollm2`")
    own = sum(part.swapped for part in outcome.parts)
    same = sum(not line["failed"] for line in outcome.results)
    total = len(outcome.results)
    say(f"{own} parts are yours; {same} of {total} results are the package's own, up to rounding")


def say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def parts_table(parts: list[Part], finished: bool = True) -> Table:
    """Each exercise: whose part is in the model, and how often it was called."""
    table = Table("exercise", "part", "whose", "where it is at work", "calls", box=None, padding=(0, 2, 0, 0))
    for part in parts:
        table.add_row(
            part.number, part.exercise.name, *state(part, finished), f"{part.calls:,}" * bool(part.calls)
        )
    return table


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


def parity_table(results: list[dict]) -> Table:
    """The largest difference of each model and dtype from the package's own functions."""
    title = f"difference from the package's own functions (allowed: {rounding_words(results)})"
    table = Table(
        "model", "dtype", *GROUPS, box=None, padding=(0, 2, 0, 0), title=title, title_justify="left"
    )
    for model, dtype in dict.fromkeys((line["model"], line["dtype"]) for line in results):
        cells = []
        for name in GROUPS:
            lines = [x for x in results if (x["model"], x["dtype"], group(x)) == (model, dtype, name)]
            cells.append(cell(lines))
        table.add_row(model, dtype, *cells)
    return table


def cell(lines: list[dict]) -> str:
    """The worst of several results: beyond what is allowed first, then the largest."""
    if not lines:
        return ""
    worst = max(lines, key=lambda line: (line["failed"], line["difference"]))
    difference = worst["difference"]
    if "error" in worst:
        words = "error"
    elif worst["tokens"]:
        words = "differ" if difference else "same"
    else:
        words = "no number" if math.isinf(difference) else "0" if difference == 0 else f"{difference:.0e}"
    return f"[red]{words}[/]" if worst["failed"] else words


def rounding_words(results: list[dict]) -> str:
    """How far results may lie apart, as it was measured."""
    words = []
    for dtype in dict.fromkeys(line["dtype"] for line in results):
        allowed = [line["allowed"] for line in results if line["dtype"] == dtype and line["allowed"]]
        if allowed:
            words.append(f"{dtype} {sorted(allowed)[len(allowed) // 2]:.0e}")
    return f"8 times its own rounding, about {' and '.join(words)}; tokens must be the same"


def tell_failure(line: dict, parts: list[Part]) -> None:
    """What is known about one failure: the part, and the first operation that differs."""
    names = {part.number: part.exercise.name for part in parts}
    say(f"[red]{line['model']}, {line['dtype']}, {line['trial']}[/] is not what it was")
    if line["alone"]:
        say(f"    wrong alone: {', '.join(f'{number} {names[number]}' for number in line['alone'])}")
    else:
        say("    each part alone is right here; together they are not")
    if line.get("divergence"):
        say(f"    {escape(line['divergence'])}")
    if line.get("near"):
        near = ", ".join(f"{number} {names[number]}" for number in line["near"])
        say(f"    your parts nearest to it: {near}")


def tell_hidden(parts: list[Part]) -> None:
    """For parts that fail their check by a known mistake: why a model does not show it."""
    for part in parts:
        if part.report is None or part.report.mistake is None:
            continue
        reason = hidden.HIDDEN.get((part.number, part.report.mistake["name"]))
        if reason is not None:
            say(f"{part.number} {part.exercise.name}: its mistake does not show in a model: {reason}")
