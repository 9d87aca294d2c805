"""The file that holds all that a training run needs in order to go on: written whole or not at all."""

import pickle
from pathlib import Path

import torch

from minilm import atomic


def write(state: dict, path: Path) -> None:
    """Write a state over an older one. Raises: OSError where it cannot be written; the older one stays."""
    try:
        with atomic.replacing(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # of torch's own writer, when a disk is full
        raise atomic.unwritten(path, f"{str(error).splitlines()[0]}; the disk may be full") from None


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
