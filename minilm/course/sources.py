"""The files of exercises: found, read, and made from the solutions."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

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
    """What tests/exercises/ describes, in the order of the course."""
    files = sorted((root / "tests" / "exercises").glob("test_ex*.py"))
    return [load_file(file, f"minilm_exercises_{file.stem}").UNIT for file in files]


def find(root: Path, wanted: str) -> list[Exercise]:
    """The exercises that "5" or "5.4" means.

    Raises: ValueError with what there is, where nothing is meant.
    """
    every = [exercise for unit in units(root) for exercise in unit.exercises]
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
    """Write exercises/ from solutions/: for authors, since it overwrites what stands there."""
    written = []
    for solution in sorted((root / "solutions").glob("ex*.py")):
        target = root / "exercises" / solution.name
        target.parent.mkdir(exist_ok=True)
        text = stub(solution.read_text())
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
            written.append(target)
    return written
