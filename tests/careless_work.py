"""Work as a careless author would write it, whole as long as nobody kills it: kills.py must find each out."""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

from kills import Work

from minilm import atomic

OLD, NEW = "old" * 50_000, "new" * 50_000


def begin(folder: Path) -> None:
    """Two files, for most kinds of work one more than needed."""
    for name in "ab":
        (folder / name).write_text(OLD)


def look(names: str, folder: Path) -> str:
    """All the files named must be of one version."""
    found = {(folder / name).read_text() for name in names}
    assert found <= {OLD, NEW}, "a file is not whole"
    assert len(found) == 1, "a mixture"
    return found.pop()[:3]


def keeps(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("kept")}


def careful(folder: Path) -> None:
    atomic.write(folder / "a", NEW)


def written_in_place(folder: Path) -> None:
    (folder / "a").write_text(NEW)


def one_by_one(folder: Path) -> None:
    for name in "ab":
        atomic.write(folder / name, NEW)


def removed_too_early(folder: Path) -> None:
    (folder / "a").unlink(missing_ok=True)
    atomic.write(folder / "a", NEW)


def leaving_something(folder: Path) -> None:
    beside = folder / f".minilm-{len(list(folder.iterdir()))}"
    beside.write_text(NEW)
    os.replace(beside, folder / "a")


def stumbling(folder: Path) -> None:
    """What is left of a call that was killed keeps the next one from working."""
    (folder / "lock").open("x").close()
    atomic.write(folder / "a", NEW)
    (folder / "lock").unlink()


def done_again(folder: Path) -> None:
    atomic.write(folder / "kept", str(time.time_ns()))
    atomic.write(folder / "a", NEW)


def work(act: Callable[[Path], object], names: str = "a") -> Work:
    return Work(act.__name__, begin, act, functools.partial(look, names), keeps)


WORKS = [
    work(careful),
    work(written_in_place),
    work(one_by_one, "ab"),
    work(removed_too_early),
    work(leaving_something),
    work(stumbling),
    work(done_again),
]
