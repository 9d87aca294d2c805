"""What the command lines share: how an app is set up, and how it tells of what the user can mend."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

console = Console()


def say(text: str) -> None:
    """Print a line as it is, however long, whatever stands in it."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def make_app(purpose: str) -> typer.Typer:
    """An app that shows its help when it is called without a command."""
    return typer.Typer(
        help=purpose, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )


def run(app: typer.Typer) -> None:
    """Run a command line; what the user can mend is one line on stderr, without a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
