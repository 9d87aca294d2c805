"""The runner: python -m minilm.course check | hint | list | grade | build."""

import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from minilm import command_line
from minilm.course import grade, sandbox, sources
from minilm.course.worker import Report

app = command_line.make_app("Checks your answers to the exercises, and says what went wrong.")
console = Console()

SHOWN = 3  # failures of one exercise that are told; the rest is counted
COLOURS = {"passed": "green", "failed": "red", "unsolved": "dim", "broken": "red"}
Wanted = Annotated[str, typer.Argument(help="A unit, such as 8, or an exercise, such as 8.1.")]


@app.command()
def check(
    wanted: Wanted,
    folder: Annotated[Path | None, typer.Option(help="Whose answers; exercises/ by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat the inputs of an earlier check.")] = None,
) -> None:
    """Check your answers on fresh random inputs. Exit code 1 where one is not right yet."""
    root = sources.repository()
    seed = secrets.randbelow(10_000) if seed is None else seed
    reports = sandbox.run(root, folder or root / "exercises", sources.find(root, wanted), seed)
    for report in reports:
        tell(report)
    right = sum(report.status == "passed" for report in reports)
    console.print(f"{right} of {len(reports)} right, with the inputs of --seed {seed}", highlight=False)
    raise typer.Exit(0 if right == len(reports) else 1)


def tell(report: Report) -> None:
    """Print what a check found: the cause first, where it is known, and then what differs."""
    colour = COLOURS[report.status]
    console.print(f"[bold]{report.number}[/] {report.name}: [{colour}]{report.status}[/]", highlight=False)
    if report.mistake is not None:
        for key in ("meaning", "consequence"):
            console.print(f"    {escape(report.mistake[key])}", highlight=False, soft_wrap=True)
        console.print(f"    → {escape(report.mistake['read'])}", highlight=False, soft_wrap=True)
    for sentence in report.sentences[:SHOWN]:
        console.print(f"    [dim]-[/] {escape(sentence)}", highlight=False, soft_wrap=True)
    if len(report.sentences) > SHOWN:
        console.print(f"    [dim]and {len(report.sentences) - SHOWN} more[/]", highlight=False)


@app.command()
def hint(
    number: Annotated[str, typer.Argument(help="An exercise, such as 8.1.")],
    level: Annotated[int, typer.Option(min=1, max=3, help="1 points the way, 3 nearly tells.")] = 1,
) -> None:
    """Show one of an exercise's three hints."""
    found = sources.find(sources.repository(), number)
    if len(found) > 1:
        raise ValueError(
            f"{number} is a unit of {len(found)} exercises; a hint belongs to one, such as {number}.1"
        )
    console.print(f"hint {level} of 3: {escape(found[0].hints[level - 1])}", highlight=False, soft_wrap=True)


@app.command(name="list")
def list_exercises() -> None:
    """List the exercises that there are."""
    table = Table("exercise", "function", "minutes", "difficulty")
    for unit in sources.units(sources.repository()):
        for each in unit.exercises:
            table.add_row(each.number, each.name, str(each.minutes), "●" * each.difficulty)
    console.print(table)


@app.command()
def build() -> None:
    """For authors: write exercises/ anew from solutions/."""
    written = sources.build(sources.repository())
    console.print(
        f"written: {', '.join(path.name for path in written) or 'nothing had changed'}", highlight=False
    )


app.command("grade")(grade.command)


def main() -> None:
    """Run the command line."""
    command_line.run(app)


if __name__ == "__main__":
    main()
