"""The files of exercises: found, read, and made from the solutions."""

import ast
import contextlib
import importlib.util
import io
import itertools
import re
import sys
import time
from pathlib import Path
from types import ModuleType

from minilm import atomic
from minilm.course.spec import Exercise, Unit

BLOCK = re.compile(r"^( *)# BEGIN SOLUTION (\d+\.\d+)\n.*?^\1# END SOLUTION\n", re.MULTILINE | re.DOTALL)


def repository(start: Path | None = None) -> Path:
    """The folder of the course: the first one from here upwards that has solutions/ and tests/exercises/.

    Raises: FileNotFoundError outside a clone of the repository.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parents[2]):
        if (folder / "solutions").is_dir() and (folder / "tests" / "exercises").is_dir():
            return folder
    raise FileNotFoundError(
        f"{start} is not in a clone of the course; change into the folder that has solutions/ and exercises/"
    )


def units(root: Path) -> list[Unit]:
    """What tests/exercises/ describes, in the order of the course.

    Raises: ValueError for a file that describes no unit.
    """
    return [unit_of(file) for file in sorted((root / "tests" / "exercises").glob("test_ex*.py"))]


def unit_of(file: Path) -> Unit:
    """The unit that a file describes."""
    try:
        unit = getattr(load_file(file, f"minilm_exercises_{file.stem}"), "UNIT", None)
        reason = f"its UNIT is {unit!r}, and no minilm.course.spec.Unit"
    except Exception as error:  # running the file may raise anything
        unit, reason = None, f"{type(error).__name__}: {error}"
    if not isinstance(unit, Unit):
        raise ValueError(
            f"{file} does not describe a unit of exercises ({reason}); bring it back with git checkout"
        ) from None
    return unit


def all_exercises(root: Path | None = None) -> list[Exercise]:
    """Every exercise, in the order of the course."""
    return [exercise for unit in units(root or repository()) for exercise in unit.exercises]


def find(root: Path, wanted: str) -> list[Exercise]:
    """The exercises that "5" or "5.4" means.

    Raises: ValueError with what there is, where nothing is meant.
    """
    every = all_exercises(root)
    found = [each for each in every if wanted in (each.number, each.number.split(".")[0])]
    if not found:
        numbers = ", ".join(sorted({each.number.split(".")[0] for each in every}, key=int))
        raise ValueError(
            f"there is no exercise {wanted!r}; give a unit ({numbers}) or an exercise such as 5.4"
        )
    return found


def load_file(path: Path, name: str) -> ModuleType:
    """Run a Python file as a module of this name, anew each time."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def stub(source: str) -> str:
    """A solution file with every worked answer taken out."""
    return BLOCK.sub(lambda match: f'{match[1]}raise NotImplementedError("exercise {match[2]}")\n', source)


def build(root: Path) -> list[Path]:
    """Write exercises/ from solutions/; what stands there is kept in .backup."""
    written = []
    for solution in sorted((root / "solutions").glob("ex*.py")):
        target = root / "exercises" / solution.name
        target.parent.mkdir(exist_ok=True)
        text = stub(solution.read_text(encoding="utf-8"))
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            if target.exists():
                back_up(target)
            atomic.write(target, text)
            written.append(target)
    return written


def read_text(path: Path) -> str:
    """The text of a learner's file, whatever an editor made of it: what is no UTF-8 is replaced by a mark."""
    return path.read_text(encoding="utf-8-sig", errors="replace")


def lines_of(source: str, name: str) -> tuple[int, int]:
    """Where a function or class stands in a file: its first line, with decorators, and one past its last.

    Raises: KeyError if there is none of that name at the top level; SyntaxError if the file is no Python.
    """
    try:
        nodes = ast.parse(source).body
    except (
        ValueError,
        RecursionError,
        MemoryError,
    ) as error:  # a null byte; brackets in brackets without end
        raise SyntaxError(str(error)) from error
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return first - 1, node.end_lineno
    raise KeyError(name)


def segment(source: str, name: str) -> str:
    """The code of one function or class of a file. Raises as lines_of does."""
    first, last = lines_of(source, name)
    lines = io.StringIO(source, newline="\n")  # as Python counts them; splitlines also splits at form feeds
    return "".join(itertools.islice(lines, first, last))


def reset(root: Path, folder: Path, exercises: list[Exercise]) -> list[Path]:
    """Put stubs in place of answers; the files as they were are kept in .backup. Returns those copies.

    Other functions of a file stay as they are. A file that is missing, or is no Python, becomes all stubs.
    """
    backups = []
    for module in dict.fromkeys(exercise.module for exercise in exercises):
        path = folder / f"{module}.py"
        stubs = stub((root / "solutions" / f"{module}.py").read_text(encoding="utf-8"))
        text = stubs
        if path.exists():
            backups.append(back_up(path))
            text = read_text(path)
            for name in (exercise.name for exercise in exercises if exercise.module == module):
                try:
                    text = text.replace(segment(text, name), segment(stubs, name))
                except KeyError:
                    text = f"{text.rstrip()}\n\n\n{segment(stubs, name)}"  # it had been deleted
                except SyntaxError:
                    text = stubs
        atomic.write(path, text)
    return backups


def back_up(path: Path) -> Path:
    """A copy in .backup beside the file, under a name that no other copy has."""
    content, folder = path.read_bytes(), path.parent / ".backup"
    folder.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for count in itertools.count():
        copy = folder / f"{path.stem}-{stamp}{f'-{count}' if count else ''}{path.suffix}"
        with contextlib.suppress(FileExistsError):
            atomic.create(copy, content)
            return copy
