"""The file that holds all that a training run needs in order to go on: written whole or not at all."""

import contextlib
import os
import pickle
from pathlib import Path

import torch


def write(state: dict, path: Path) -> None:
    """Write a state beside its place, then move it there.

    Raises: OSError where it cannot be written, naming the file; then nothing is left beside it.
    """
    beside = path.with_suffix(".part")
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # the name may not reach the disk before the content does
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter when a disk is full
        with contextlib.suppress(OSError):
            beside.unlink()
        reason = getattr(error, "strerror", None) or f"{str(error).splitlines()[0]}; the disk may be full"
        raise OSError(
            f"{path} cannot be written ({reason}); the state that was there is as it was. Make room, and the "
            "same command goes on from it"
        ) from None


def read(path: Path, device: torch.device) -> dict:
    """What `write` wrote of a run. Nothing in the file is executed.

    Raises: ValueError where the file is another one, or broken.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        state, reason = None, getattr(error, "strerror", None) or type(error).__name__
    else:
        reason = "something else is in it"
    parts = {"identity": dict, "model": dict, "optimizer": dict, "losses": list, "held_out": list}
    if not isinstance(state, dict) or not all(isinstance(state.get(n), kind) for n, kind in parts.items()):
        raise ValueError(
            f"{path} is no state of a run ({reason}); remove it or start again with --fresh, or give another "
            "directory"
        )
    return state
