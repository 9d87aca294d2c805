"""Files that are there whole or not at all, whenever the process that writes them ends.

Content goes to a hidden place beside its own and reaches the disk (fsync); then it takes its name in one step
(os.replace). A process that is killed at any moment, also by SIGKILL, leaves the old file or the new one. So
does a power cut on file systems that keep the order of renames, as those with a journal do.

What a killed process leaves behind carries its machine and its number in the name, and is removed by the next
one that writes into the same folder.
"""

import contextlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MACHINE = re.sub(r"[^A-Za-z0-9]+", "_", platform.node()) or "unnamed"
LEFTOVER = re.compile(r"\.minilm-[a-z]+-(?P<machine>\w+)-(?P<process>\d+)-[0-9a-f]+")
DAY = 24 * 3600.0  # seconds


def write(path: Path, content: str | bytes) -> None:
    """Write a file, over one that is there."""
    with replacing(path) as file:
        file.write(as_bytes(content))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes its place when the block ends; an error in the block leaves the old.

    Raises: OSError where it cannot be written, naming the file.
    """
    remove_leftovers(path.parent)
    beside = hidden(path.parent, "writing")
    try:
        with beside.open("xb") as file:
            yield file
        sync(beside)
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):
            raise unwritten(path, error.strerror) from None
        raise


def unwritten(path: Path, reason: str | None) -> OSError:
    """The error for a file that could not be written."""
    return OSError(
        f"{path} cannot be written ({reason}); what was there is as it was. Make room, or give another folder"
    )


def create(path: Path, content: str | bytes) -> None:
    """Write a file that must be new. Raises: FileExistsError where there is one, which stays as it is."""
    beside = hidden(path.parent, "writing")
    write(beside, content)
    try:
        os.link(beside, path)  # unlike a rename, this never takes the place of another file
    except FileExistsError:
        raise
    except OSError:  # this file system has no hard links
        if path.exists():
            raise FileExistsError(f"{path} is there already") from None
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(place: Path, purpose: str) -> Iterator[Path]:
    """A hidden folder inside `place` for what is in the making, removed when the block ends.

    Others cannot look into it. purpose: a word in lower case, for whoever finds the folder.
    """
    remove_leftovers(place)
    made = hidden(place, purpose)
    made.mkdir(mode=0o700)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def hidden(place: Path, purpose: str) -> Path:
    """A new name in a folder that tells whose it is."""
    return place / f".minilm-{purpose}-{MACHINE}-{os.getpid()}-{secrets.token_hex(4)}"


def remove_leftovers(place: Path) -> None:
    """Remove what killed processes left in a folder; what others are still at work on stays."""
    for path in place.glob(".minilm-*"):
        if is_leftover(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a path was made by `hidden` in a process that has ended.

    Of another machine's processes, which share a network drive, nothing is known: theirs are left over when
    they are a day old. So are all on Windows, where a process cannot be asked for without ending it.
    """
    found = LEFTOVER.fullmatch(path.name)
    if found is None:
        return False
    if found["machine"] == MACHINE and os.name == "posix":
        try:
            os.kill(int(found["process"]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it runs, for another user
            return False
        return False
    try:
        return time.time() - path.stat().st_mtime > DAY
    except FileNotFoundError:  # another process has removed it
        return False


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk: its name could be there before its content is."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def as_bytes(content: str | bytes) -> bytes:
    return content.encode("utf-8") if isinstance(content, str) else content
