"""What the tests of bad input share: tables of named kinds, one way to look at errors and at folders."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import minilm
from minilm.families import FAMILIES

NAN, INF = float("nan"), float("inf")
IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
KINDS: list[str] = []  # the name of every case, for test_bad_input.py to count


def table(**cases: tuple) -> pytest.MarkDecorator:
    """Parametrise a test with named cases; a name is a sentence with _ for its spaces."""
    names = [name.strip("_").replace("_", " ") for name in cases]
    KINDS.extend(names)
    return pytest.mark.parametrize("case", cases.values(), ids=names)


def refusal(error: type[Exception], call: Callable[[], object], *parts: str) -> None:
    """The call raises this error, and its message holds all the parts: the value, the limit, the fix."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, repr(caught.value)
    assert not [part for part in parts if part not in message], message


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with its bytes, every folder and link, hidden ones included."""

    def content(path: Path) -> bytes | None:
        if path.is_symlink():
            return os.readlink(path).encode()
        return None if path.is_dir() else path.read_bytes()

    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*"))}


def make_model(family: str = "llama", task: type = minilm.CausalLM, **changes) -> minilm.CausalLM:
    """A family's small model with random weights."""
    values = FAMILIES[family].tiny | changes
    model = task(FAMILIES[family].read_config(values)).eval()
    model.family = family
    return model


def in_its_place(name: str, kind: str) -> Callable[[Path], None]:
    """Put a folder, a link to nowhere or a link to itself in the place of a file."""

    def damage(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        path.mkdir() if kind == "folder" else path.symlink_to(name if kind == "loop" else "nowhere")

    return damage


def written(name: str, text: str | bytes) -> Callable[[Path], object]:
    """Write this into a file of a folder."""
    content = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(content)
