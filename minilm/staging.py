"""Putting the files of a checkpoint into a directory: killed at any moment, it has the old or the new."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from minilm import atomic

READY = ".minilm-saved"  # a folder in a checkpoint directory: see _put_in_place


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A hidden folder to write a checkpoint to; its files become the directory's when the block ends.

    One process at a time may do this. Raises: OSError where a file cannot be put in place.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _finish(directory)  # what an earlier save, which was killed, had not put in place
    with atomic.folder(directory, "saving") as folder:
        yield folder
        mask = os.umask(0)
        os.umask(mask)
        for path in folder.iterdir():
            os.chmod(path, 0o666 & ~mask)  # safetensors lets only the owner read what it writes
            atomic.sync(path)
        os.chmod(folder, 0o777 & ~mask)
        _put_in_place(folder, directory)


def current(directory: Path) -> Path:
    """Where the files of a directory's checkpoint lie: in READY, if a save was killed in its last steps."""
    return directory / READY if _is_cut_off(directory) else directory


def _put_in_place(folder: Path, directory: Path) -> None:
    """Make the files of a whole checkpoint, in a folder inside a directory, those of the directory.

    Where one file alone is another than before, it is replaced: that is one step. Else a mixture of two
    checkpoints cannot be avoided for a moment, but it can be kept from being read. The folder is renamed to
    READY; the old config.json goes, without which no library loads the directory, and `current` is READY; the
    new files get their names; and config.json comes last.
    """
    names = {path.name for path in folder.iterdir()}
    stale = _stale(directory, names)
    for path in (*stale, *(directory / name for name in names)):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{path.name} is a directory there")
    changed = [name for name in names if not _holds(directory / name, folder / name)]
    if len(changed) == 1 and not stale:
        os.replace(folder / changed[0], directory / changed[0])
        return
    os.rename(folder, directory / READY)
    (directory / "config.json").unlink(missing_ok=True)
    _finish(directory)


def _finish(directory: Path) -> None:
    """Give the files in READY their places, also where this was cut off before; then remove it."""
    ready = directory / READY
    if _is_cut_off(directory):
        names = {path.name for path in ready.iterdir()}
        for path in _stale(directory, names):
            path.unlink()
        for name in names - {"config.json"}:
            (directory / name).unlink(missing_ok=True)
            try:
                os.link(ready / name, directory / name)  # READY must stay whole until config.json is in place
            except OSError:  # this file system has no hard links
                shutil.copyfile(ready / name, directory / name)
        os.replace(ready / "config.json", directory / "config.json")
    shutil.rmtree(ready, ignore_errors=True)


def _is_cut_off(directory: Path) -> bool:
    """Whether the checkpoint of a directory lies in READY alone."""
    return (directory / READY / "config.json").is_file() and not (directory / "config.json").is_file()


def _stale(directory: Path, names: set[str]) -> list[Path]:
    """What an earlier save of another model left: it would be read instead of these files, or beside them."""
    paths = (*directory.glob("model*.safetensors*"), *directory.glob("generation_config.json"))
    return [path for path in paths if path.name not in names]


def _holds(path: Path, new: Path) -> bool:
    """Whether a file has the content of a new one already; of weights, which are large, this is not asked."""
    return path.suffix != ".safetensors" and path.is_file() and path.read_bytes() == new.read_bytes()
