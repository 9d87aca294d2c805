"""Curves that machines measured in labs, kept as files so that every reader sees them beside their own.

`notebooks/measured/` holds one file for each machine and lab; draw all of them with `viz.machines`. To add
yours, run the lab and then `curves.keep("19", measured)` with what its cells measured.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minilm import atomic
from minilm.course import sources

# For each curve its name, and then what was measured at which size.
Curves = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Measured:
    """All curves of a lab on one machine.

    machine: what bench.machine() says of it. curves: name -> points (size, value).
    """

    lab: str
    machine: Mapping[str, object]
    curves: Curves

    @property
    def title(self) -> str:
        """The processor or GPU that measured them, for the legend of a picture."""
        return processor(self.machine)


def processor(machine: Mapping[str, object]) -> str:
    """A machine in a few words: its GPU, or its CPU and the threads that computed."""
    if machine.get("gpu"):
        return str(machine["gpu"])
    return f"{machine['cpu']}, {machine['threads']} thread{'s' * (machine['threads'] != 1)}"


def folder_of(folder: str | Path | None = None) -> Path:
    """The given folder, or notebooks/measured/ of the repository."""
    return Path(folder) if folder is not None else sources.repository() / "notebooks" / "measured"


def keep(lab: str, curves: Curves, folder: str | Path | None = None) -> Path:
    """Write this machine's curves of a lab, over those that it wrote before; returns the file.

    lab:    number of the notebook, "19".
    Raises: ValueError where there are no curves.
    """
    from minilm import bench  # imports transformers, which the rest of the engine does without

    if not curves:
        raise ValueError("there are no curves to keep; measure some first")
    machine = bench.machine()
    name = re.sub(r"[^a-z0-9]+", "_", processor(machine).lower()).strip("_")
    path = folder_of(folder) / f"lab_{lab}_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    points = {
        title: [[float(size), float(f"{value:.4g}")] for size, value in each]
        for title, each in curves.items()
    }
    text = json.dumps({"lab": lab, "machine": machine, "curves": points}, indent=1)
    text = re.sub(r"\[\s+([-\d.e]+),\s+([-\d.e]+)\s+\]", r"[\1, \2]", text)  # a point stands on one line
    atomic.write(path, text + "\n")
    return path


def kept(lab: str, folder: str | Path | None = None) -> list[Measured]:
    """The curves of a lab on every machine that has a file.

    Raises: ValueError where a file is none that `keep` wrote.
    """
    found = []
    for path in sorted(folder_of(folder).glob(f"lab_{lab}_*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            curves = {name: [(size, value) for size, value in each]
                      for name, each in content["curves"].items()}  # fmt: skip
            found.append(Measured(content["lab"], content["machine"], curves))
            found[-1].title  # noqa: B018  a machine without a name shows itself here
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path.name} is not what curves.keep writes ({error!r}); remove it") from error
    return found
