"""What every notebook has: its parts in order, outputs that come from running it, words for its pictures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from minilm.course import sources

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARTS = [
    "First by hand",
    "See it",
    "The real thing",
    "Four models, one part",
    "Break it",
    "Your turn",
    "Read on",
]
LONGEST_CELL = 45  # lines: a screen


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def number(path: Path) -> int:
    return int(path.name[:2])


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def headings(path: Path, levels: str = "##?#?") -> list[str]:
    """The headings of a notebook, without their marks."""
    texts = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    return [line for text in texts for line in re.findall(rf"^(?:{levels}) (.+)$", text, re.MULTILINE)]


every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@every_notebook
def test_the_parts_are_there_in_their_order(path):
    """A title, the question, then the parts; the first notebook and the labs have fewer."""
    first = read(path).cells[0].source
    assert re.match(rf"# {number(path):02} · .+\n\n\*\*.+\?\*\*", first), "a title, and the question in bold"
    found = [title for title in headings(path, "##") if title in PARTS]
    if 1 <= number(path) <= 18:
        assert found == PARTS
    else:
        assert found == [title for title in PARTS if title in found]
    source = "\n".join(cell.source for cell in code_cells(path))
    assert "viz.decoder_map(" in source


@every_notebook
def test_the_learner_can_check_and_read_the_package(path):
    """A live check of the unit's exercises, and the package's own code in a cell."""
    source = "\n".join(cell.source for cell in code_cells(path))
    if 1 <= number(path) <= 19:
        assert f'course.check("{number(path)}")' in source
        assert "# %load -s " in source
        assert "viz.lines_of(" in source
        assert re.search(r"viz\.(compare_\w+|reference_of)\(", source)


@every_notebook
def test_the_outputs_come_from_one_run(path):
    """From the first cell to the last, without an error, and without what the next run would change."""
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(work|root|tmp|home)/", text), "a path of the machine that ran it"


@every_notebook
def test_no_cell_is_longer_than_a_screen(path):
    for cell in code_cells(path):
        assert cell.source.count("\n") < LONGEST_CELL, cell.source.split("\n", 1)[0]


@every_notebook
def test_every_name_that_a_cell_uses_is_known(path):
    """Also in functions that no cell calls, such as the package's own code: a learner may call them."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821"]
    ended = subprocess.run([*command, "--output-format", "json", path], capture_output=True, text=True)
    found = json.loads(ended.stdout)
    cells, unknown = read(path).cells, []
    for each in found:
        row, column = each["location"]["row"], each["location"]["column"]
        before = cells[each["cell"] - 1].source.splitlines()[row - 1][: column - 1]
        if before.count('"') % 2 == 0:  # else it is an axis of a shape
            unknown.append(f"cell {each['cell']}: {each['message']}")
    assert not unknown


@every_notebook
def test_pictures_have_words(path):
    """In the output itself, and as a line below it."""
    for cell in code_cells(path):
        data = [(output.data, output.metadata) for output in cell.outputs if "data" in output]
        for index, (shown, metadata) in enumerate(data):
            if "image/png" in shown:
                alt = metadata["image/png"]["alt"]
                assert len(alt.split()) > 4
                assert data[index + 1][0]["text/markdown"] == f"*{alt}*"


@every_notebook
def test_links_lead_somewhere(path):
    """Links to files of the repository; web pages are not asked for."""
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", cell.source):
                assert (path.parent / target).exists(), target


def test_reports_send_learners_to_headings_that_exist():
    """What a report of a mistake tells to read is in the notebook."""
    titles = {number(path): headings(path) for path in NOTEBOOKS}
    for exercise in sources.all_exercises():
        for mistake in exercise.mistakes:
            where = re.fullmatch(r"notebook (\d\d), (.+)", mistake.read)
            assert where, mistake.read
            if int(where[1]) in titles:
                assert any(title.startswith(where[2]) for title in titles[int(where[1])]), mistake.read
