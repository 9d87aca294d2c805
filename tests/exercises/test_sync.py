"""Cells with the package's code: refreshed where it has changed, and in step in every notebook."""

from pathlib import Path

import nbformat
import pytest

from minilm.course import notebooks, sources

ROOT = Path(__file__).parents[2]
CODE = "import math\n\n\ndef f(x):\n    return x\n\n\n@decorated\nclass C:\n    a = 1\n"


@pytest.fixture
def course(tmp_path):
    """A course of one notebook and one module."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "part.py").write_text(CODE)
    return tmp_path


def write(course: Path, *cells: str) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.cells.append(nbformat.v4.new_markdown_cell("# %load -s f ../minilm/part.py"))
    path = course / "notebooks" / "01_part.ipynb"
    nbformat.write(notebook, path)
    return path


def test_cells_are_refreshed(course):
    """Functions and classes with their decorators, several in one cell; all other cells stay."""
    line, both = "# %load -s f ../minilm/part.py", "# %load -s C,f ../minilm/part.py"
    path = write(course, f"{line}\ndef f(x):\n    return 2 * x", both, "def f(x):\n    return 3")
    assert notebooks.sync(course) == [path]
    f, c, other, text = (cell.source for cell in nbformat.read(path, as_version=4).cells)
    assert f == f"{line}\ndef f(x):\n    return x"
    assert c == f"{both}\n@decorated\nclass C:\n    a = 1\n\n\ndef f(x):\n    return x"
    assert other == "def f(x):\n    return 3" and text == line
    assert notebooks.sync(course) == []


@pytest.mark.parametrize(
    "line, words",
    [
        ("# %load -s g ../minilm/part.py", "part.py defines no g"),
        ("# %load -s f ../minilm/absent.py", "there is no "),
    ],
)
def test_a_line_that_leads_nowhere_is_named(course, line, words):
    write(course, line)
    with pytest.raises(ValueError, match=words) as error:
        notebooks.sync(course)
    assert line in str(error.value)


def test_every_notebook_is_in_step():
    paths = list((ROOT / "notebooks").glob("*.ipynb"))
    if not paths:
        pytest.skip("there is no notebook yet")
    for path in paths:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                assert cell.source == notebooks.in_step(cell.source, path.parent), path


def test_an_answer_that_is_imported_is_refused(tmp_path):
    """From the package, from the solutions, or under another name: it says what to do instead."""
    from minilm.course import worker

    name, unit = "ex08_grouped_queries.py", sources.find(ROOT, "8")
    for line in (
        "from minilm.attention import repeat_kv",
        "from minilm import attention\nrepeat_kv = attention.repeat_kv",
        "from solutions.ex08_grouped_queries import repeat_kv",
        "import transformers.models.qwen2.modeling_qwen2 as theirs\nrepeat_kv = theirs.repeat_kv",
    ):
        stub = sources.stub((ROOT / "solutions" / name).read_text())
        (tmp_path / name).write_text(f"{stub}\n\n{line}\n")
        report = worker.check(ROOT, tmp_path, unit[0], unit, 0, 2**20)
        assert report.status == "broken", (line, report)
    (tmp_path / name).write_text(f"from minilm.config import ModelConfig\n{stub}")
    assert worker.check(ROOT, tmp_path, unit[0], unit, 0, 2**20).status == "unsolved"
