"""The notebooks for their authors: cells kept in step with the package, and outputs that come from running.

A cell that begins with IPython's own line, `# %load -s rms_norm,gemma_rms_norm ../minilm/norm.py`, holds
those functions or classes to the letter, so that it can be edited and run in place.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from minilm import atomic
from minilm.course import sources

FIRST_LINE = re.compile(r"# %load -s (?P<names>[\w,]+) (?P<path>\S+)")


def in_step(source: str, folder: Path) -> str:
    """What a cell should hold; a cell that does not begin with such a line stays as it is.

    folder: where the notebook lies, from which the path in its line starts.
    Raises: ValueError if there is no such file, or nothing of that name in it.
    """
    first, *_ = source.split("\n", 1)
    found = FIRST_LINE.fullmatch(first.rstrip())
    if found is None:
        return source
    path = folder / found["path"]
    if not path.is_file():
        raise ValueError(f"{first!r}: there is no {path}")
    code = path.read_text(encoding="utf-8")
    parts = []
    for name in found["names"].split(","):
        try:
            parts.append(sources.segment(code, name).rstrip("\n"))
        except KeyError:
            raise ValueError(f"{first!r}: {path} defines no {name}") from None
    return "\n".join([first.rstrip(), "\n\n\n".join(parts)])


def read(path: Path):
    """A notebook. Raises ValueError naming the file, where it is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, nbformat.reader.NotJSONError) as error:
        reason = str(error).splitlines()[0][:80]
        raise ValueError(f"{path} is no notebook ({reason}); bring it back with git checkout") from None


def sync(root: Path) -> list[Path]:
    """Refresh the cells of all notebooks; returns the notebooks that changed."""
    import nbformat

    changed = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = read(path)
        before = [cell.source for cell in notebook.cells]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.source = in_step(cell.source, path.parent)
        if [cell.source for cell in notebook.cells] != before:
            atomic.write(path, nbformat.writes(notebook) + "\n")
            changed.append(path)
    return changed


def execute(path: Path) -> Iterator[tuple[int, int]]:
    """Run a notebook from its first cell to its last, in a kernel of its own, and store what the cells give.

    What would differ between two runs is left out: times, versions, and sliders, which need a kernel; their
    pictures stay.

    Yields: before each cell, how many are done, and how many there are.
    Raises: nbclient's CellExecutionError, with the traceback, where a cell fails; the file then stays as it
            was.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = read(path)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        record_timing=False,
        timeout=300,
        coalesce_streams=True,  # what is printed piece by piece is one text, wherever the kernel flushed it
        resources={"metadata": {"path": str(path.parent)}},
    )
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            yield index, len(notebook.cells)
            client.execute_cell(cell, index)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    atomic.write(path, nbformat.writes(notebook) + "\n")
