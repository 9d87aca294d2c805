"""The runner: python -m minilm.course status | check | hint | solution | reset | watch | assemble | …."""

import contextlib
import signal
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from minilm import command_line
from minilm.course import api, assembling, grade, notebooks, progress, show, sources
from minilm.course.spec import Exercise

app = command_line.make_app("Checks your answers to the exercises, and says what went wrong.")
console = Console()

Wanted = Annotated[str, typer.Argument(help="A unit, such as 8, or an exercise, such as 8.1.")]
Number = Annotated[str, typer.Argument(help="An exercise, such as 8.1.")]
Folder = Annotated[Path | None, typer.Option(help="Whose answers; exercises/ by default.")]


def say(text: str) -> None:
    """Print a line with markup, however long."""
    console.print(text, highlight=False, soft_wrap=True)


@app.command()
def status(folder: Folder = None) -> None:
    """Show what is done, what comes next, and how long it takes."""
    found = api.status(folder)
    table = Table("unit", "", "exercises", "minutes left", box=None, padding=(0, 2, 0, 0))
    for number, title, boxes, minutes in found.rows():
        table.add_row(number, title, boxes.replace("■", "[green]■[/]"), minutes)
    console.print(table)
    for note in found.notes():
        say(note)


@app.command()
def check(
    wanted: Wanted,
    folder: Folder = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Repeat the inputs of an earlier check.")] = None,
) -> None:
    """Check your answers on fresh random inputs. Exit code 1 where one is not right yet."""
    reports = api.check(wanted, folder, seed, start="copy")
    for report in reports:
        say(show.rich_text(report))
    say(reports.summary)
    raise typer.Exit(0 if reports.passed else 1)


@app.command()
def hint(
    number: Number,
    level: Annotated[int | None, typer.Option(min=1, max=3, help="1 points the way, 3 nearly tells.")] = None,
    folder: Folder = None,
) -> None:
    """Show an exercise's next hint; there are three."""
    console.print(api.hint(number, level, folder), markup=False, highlight=False, soft_wrap=True)


@app.command()
def solution(
    number: Number,
    give_up: Annotated[bool, typer.Option("--give-up", help="Show it before your own has passed.")] = False,
    folder: Folder = None,
) -> None:
    """Show how the worked answer differs from yours."""
    colours = {"+": "green", "-": "red"}
    for line in api.solution(number, give_up, folder).splitlines():
        console.print(line, style=colours.get(line[:1], ""), markup=False, highlight=False, soft_wrap=True)


@app.command()
def reset(wanted: Wanted, folder: Folder = None) -> None:
    """Begin an exercise or a unit anew; your file as it was is kept."""
    console.print(api.reset(wanted, folder), markup=False, highlight=False, soft_wrap=True)


@app.command()
def watch(
    wanted: Annotated[str | None, typer.Argument(help="A unit or an exercise; all by default.")] = None,
    folder: Folder = None,
) -> None:
    """Check an answer again whenever you save it, until you press Ctrl-C."""
    place = api.answers_folder(folder)
    exercises = sources.find(sources.repository(), wanted) if wanted else sources.all_exercises()
    say(f"watching {len(exercises)} exercises in {place}; save a file to have it checked, Ctrl-C ends")
    for changed in changes(place, exercises):
        for exercise in changed:
            for report in api.check(exercise.number, place, start="copy"):
                say(show.rich_text(report))


def changes(folder: Path, exercises: list[Exercise], pause: float = 0.5):
    """Wait for files to be saved; give the exercises whose own code is another than before."""

    def saved() -> dict[str, float]:
        times = {}
        for module in {exercise.module for exercise in exercises}:
            with contextlib.suppress(OSError):  # it is not there, or an editor is about to replace it
                times[module] = (folder / f"{module}.py").stat().st_mtime
        return times

    times = saved()
    prints = {exercise.number: progress.fingerprint(folder, exercise) for exercise in exercises}
    while True:
        time.sleep(pause)
        now = saved()
        if now == times:
            continue
        times = now
        changed = []
        for exercise in exercises:
            found = progress.fingerprint(folder, exercise)
            if found != prints[exercise.number]:
                prints[exercise.number] = found
                changed.append(exercise)
        yield changed


@app.command(name="list")
def list_exercises() -> None:
    """List the exercises that there are."""
    found = api.exercises()
    table = Table(*found.columns)
    for row in found.rows:
        table.add_row(*row)
    console.print(table)


@app.command()
def assemble(
    folder: Folder = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the inputs on which the parts are checked first.")] = 0,
    failed: Annotated[
        bool, typer.Option("--failed", help="Swap in what fails its check as well, to see what it does.")
    ] = False,
    small: Annotated[
        bool, typer.Option("--small", help="Small random models alone: one minute instead of several.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Try everything just once: half a minute.")] = False,
) -> None:
    """Build the model from your own parts, and see whether it still is the same model. Exit code 1 if not."""
    size = "quick" if quick else "small" if small else "all"
    with console.status("checking your parts, and running models with them", spinner="line"):
        outcome = api.assemble(folder, size, failed, seed)
    assembling.tell(outcome)
    raise typer.Exit(1 if outcome.failed else 0)


@app.command()
def build() -> None:
    """For authors: write exercises/ anew from solutions/. Answers that stand there go to .backup."""
    written = sources.build(sources.repository())
    say(f"written: {', '.join(path.name for path in written) or 'nothing had changed'}")


app.command("grade")(grade.command)


@app.command()
def sync() -> None:
    """For authors: refresh the cells of notebooks that hold the package's code (# %load -s …)."""
    changed = notebooks.sync(sources.repository())
    say(f"refreshed: {', '.join(path.name for path in changed) or 'nothing had changed'}")


@app.command()
def execute(
    names: Annotated[
        list[str] | None, typer.Argument(help="Beginnings of names, such as 05; all by default.")
    ] = None,
) -> None:
    """For authors: run notebooks and store their outputs."""
    folder = sources.repository() / "notebooks"
    paths = [path for name in names or [""] for path in sorted(folder.glob(f"{name}*.ipynb"))]
    if not paths:
        raise ValueError(f"no notebook in {folder} begins with {' or '.join(names or [])}")
    for path in paths:
        start = time.perf_counter()
        with console.status(path.name) as line:
            for done, total in notebooks.execute(path):
                line.update(f"{path.name}: cell {done + 1} of {total}")
        say(f"{path.name}: {time.perf_counter() - start:.0f} s")


def main() -> None:
    """Run the command line. Being ended, or losing the terminal, cleans up like Ctrl-C."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    command_line.run(app)


if __name__ == "__main__":
    main()
