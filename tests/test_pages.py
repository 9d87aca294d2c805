"""The glossary and the index of concepts: every word, name, link and section in them is really there."""

import fnmatch
import functools
import importlib
import inspect
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import transformers
import typer

import minilm.__main__
from minilm import viz
from minilm.course import __main__ as course_command
from minilm.course import sources

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "notebooks"
GLOSSARY, INDEX = PAGES / "glossary.md", PAGES / "index_of_concepts.md"
NOTEBOOKS = {path.name[:2]: path for path in sorted(PAGES.glob("[0-9][0-9]_*.ipynb"))}
LAST_NOTEBOOK = 22
FAMILIES = ["qwen2", "gemma", "gpt_bigcode", "gpt_neox"]
SHARED = ["", "generation/", "integrations/", "loss/", "utils/"]  # folders of transformers


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def names_in(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


def table_rows(text: str) -> list[list[str]]:
    """The cells of all tables, without their heads."""
    tables = re.findall(r"^\|.+\n\|[-|]+\n((?:\|.+\n?)+)", text, re.MULTILINE)
    lines = "".join(tables).splitlines()
    return [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")] for line in lines]


def places(text: str) -> list[tuple[str, str]]:
    """What "[05](05_rotary_embeddings.ipynb), Many clocks; 13, See it" names: number and section."""
    found = [re.fullmatch(r"\[?(\d\d)(?:\]\(\1_\w+\.ipynb\))?(?:, (.+))?", part) for part in text.split("; ")]
    assert all(found), text
    return [(match[1], match[2]) for match in found]


@functools.cache
def headings(path: Path) -> list[str]:
    """The headings of a page or a notebook, without their marks."""
    text = read(path)
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.findall(r"^#{1,4} (.+)$", text, re.MULTILINE)


@functools.cache
def words(path: Path) -> str:
    """All that a learner reads in a notebook: prose, code and printed text."""
    texts = []
    for cell in nbformat.read(path, as_version=4).cells:
        texts.append(cell.source)
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            texts += [output.get("text", ""), shown.get("text/plain", ""), shown.get("text/html", "")]
    return "\n".join(texts)


def test_the_front_page_lists_every_notebook():
    """Title, question and minutes as the notebook states them; the exercises' minutes as their units do."""
    practice = {unit.number: sum(each.minutes for each in unit.exercises) for unit in sources.units(ROOT)}
    expected = []
    for path in NOTEBOOKS.values():
        first = nbformat.read(path, as_version=4).cells[0].source
        title, question, minutes = re.match(
            r"# (.+)\n\n\*\*([^*]+\?)\*\*.*?\n\n(\d+) minutes", first, re.DOTALL
        ).groups()
        exercises = practice.get(int(path.name[:2]))
        if exercises:
            assert f"{exercises} for the exercise" in " ".join(first.split()), path
        link = f"[{title}](notebooks/{path.name})"
        expected.append([link, " ".join(question.split()), minutes, str(exercises or "")])
    assert [row for row in table_rows(read(ROOT / "README.md")) if "(notebooks/" in row[0]] == expected


def test_the_course_map_names_every_notebook():
    """The picture of the front page, and the table of notebook 00."""
    picture = viz.course_map()
    assert f"![{picture.alt}](notebooks/course_map.png)" in read(ROOT / "README.md")
    drawn = " ".join(text.get_text() for text in picture.figure.axes[0].texts)
    listed = words(NOTEBOOKS["00"])
    for number, path in NOTEBOOKS.items():
        assert number == "00" or f"]({path.name})" in listed, path
        assert number in ("00", "01") or re.search(rf"\b{number}\b", drawn), number


def says(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def anchor(heading: str) -> str:
    """How a heading is linked to."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@dataclass
class Row:
    """One line of the index."""

    names: list[str]
    local: list[str]  # variables of a function, arguments of a small one: in italics
    ours: list[str]
    theirs: str
    places: list[tuple[str, str]]


def index() -> list[Row]:
    rows = table_rows(read(INDEX))
    assert all(len(row) == 5 and all(row[:3]) for row in rows)
    return [
        Row(names_in(name), re.findall(r"\*(\w+)\*", name), names_in(ours), theirs, places(where))
        for name, _, ours, theirs, where in rows
    ]


def find(name: str) -> object:
    """What is called so in minilm: "rope.cos_sin", "norm.Norm.eps", "model.Block.forward(x)"."""
    path, _, argument = name.removesuffix(")").partition("(")
    module, *parts = path.split(".")
    found = importlib.import_module(f"minilm.{module}")
    for part in parts:
        if inspect.ismodule(found) and not hasattr(found, part):
            found = importlib.import_module(f"{found.__name__}.{part}")
        elif inspect.isclass(found) and not hasattr(found, part):  # a field, or set in a method
            kinds = [kind for kind in found.__mro__ if kind.__module__.startswith("minilm")]
            fields = [field for kind in kinds for field in vars(kind).get("__annotations__", {})]
            made = "\n".join(map(inspect.getsource, kinds))
            assert part in fields or re.search(rf"\bself\.{part}\b[^\n]* = ", made), name
            return None
        else:
            assert hasattr(found, part), name
            found = getattr(found, part)
    assert not argument or argument in inspect.signature(found).parameters, name
    return found


@functools.cache
def transformers_names() -> tuple[set[str], set[str]]:
    """The names in the code of the four families in the installed transformers; all words it has for all."""
    root = Path(transformers.__file__).parent
    own = [path for family in FAMILIES for path in root.glob(f"models/{family}/*.py")]
    shared = [path for part in SHARED for path in root.glob(f"{part}*.py")]
    tokens = [token for path in own for token in tokenize.generate_tokens(io.StringIO(read(path)).readline)]
    used = {token.string for token in tokens if token.type == tokenize.NAME}
    return used, {word for path in own + shared for word in re.findall(r"[A-Za-z_]\w*", read(path))}


def test_the_glossary_has_the_axis_words():
    """Those of the package's docstring, in its words."""
    block = minilm.__doc__.split("annotation:\n\n")[1].split("\n\n")[0]
    expected = dict(re.findall(r"(\w+) {2,}(.+?)(?= {3,}|$)", block, re.MULTILINE))
    section = read(GLOSSARY).split("\n## ")[1]
    assert len(expected) == 11
    assert {names_in(row[0])[0]: row[1] for row in table_rows(section)} == expected


def glossary_terms() -> list[tuple[str, str]]:
    """Every term with what is said of it."""
    found = re.findall(r"^\*\*(.+?)\*\*: (.+?)(?=\n\n|\Z)", read(GLOSSARY), re.MULTILINE | re.DOTALL)
    return [(term, " ".join(text.split())) for term, text in found]


def test_the_glossary_is_in_order():
    terms = [term for term, _ in glossary_terms()]
    assert 90 <= len(terms) <= 130
    letters = [re.sub(r"[^a-z0-9 ]", "", term.lower().replace("-", " ")).strip() for term in terms]
    assert letters == sorted(set(letters))


def test_the_glossary_says_where_to_read():
    """Each term ends with a notebook, and names of minilm in it exist."""
    for _term, text in glossary_terms():
        for place in text.rpartition(" → ")[2].split(", "):
            assert places(place)
        for name in re.findall(r"`minilm\.([\w.]+(?:\(\w+\))?)`", text):
            find(name)


def test_every_name_of_minilm_exists():
    for row in index():
        for name in row.ours:
            find(name)


def test_what_became_of_a_name_is_true():
    """Without a remark, transformers has the name still; "gone", the families do not; a new name exists."""
    used, known = transformers_names()
    for row in index():
        for name in row.names + row.local:
            assert row.theirs or name in known, name
            assert not row.theirs.startswith("gone") or name not in used, name
        for code in names_in(row.theirs):
            assert set(re.findall(r"[A-Za-z_]\w*", code)) <= known, code


@pytest.mark.parametrize("path", [GLOSSARY, INDEX], ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    """To a notebook by its number, as far as it exists yet; to files; to headings."""
    for target in re.findall(r"\]\(([^)]+)\)", read(path)):
        file, _, heading = target.partition("#")
        if re.fullmatch(r"\d\d_\w+\.ipynb", file):
            number = file[:2]
            assert int(number) <= LAST_NOTEBOOK
            assert number not in NOTEBOOKS or NOTEBOOKS[number].name == file, target
        else:
            page = path.parent / file if file else path
            assert page.exists(), target
            assert not heading or heading in map(anchor, headings(page)), target


def test_sections_exist():
    """Every section that the index names is a heading of that notebook, or the beginning of one."""
    missing = {
        (number, section)
        for row in index()
        for number, section in row.places
        if number in NOTEBOOKS and not any(title.startswith(section) for title in headings(NOTEBOOKS[number]))
    }
    assert not missing


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_a_notebook_mentions_what_the_index_sends_to_it(number):
    """In its prose, code or output; in one of them where a row has several. Local names need not be."""
    missing = []
    for row in index():
        named = [other for other, _ in row.places]
        if number in named and all(other in NOTEBOOKS for other in named):
            read_there = "\n".join(words(NOTEBOOKS[other]) for other in named)
            missing += [name for name in row.names if not says(read_there, name)]
    assert not missing, f"{NOTEBOOKS[number].name} does not mention {', '.join(missing)}"


PROSE = [*ROOT.glob("*.md"), *PAGES.glob("*.md"), *ROOT.glob("minilm/checkpoints/*/README.md")]


@pytest.mark.parametrize(
    "path", [*PROSE, *NOTEBOOKS.values()], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_every_command_that_is_named_exists(path):
    """`python -m minilm …` and `python -m minilm.course …`, with the options that stand on the same line."""
    text = read(path) if path.suffix == ".md" else words(path)
    apps = {"minilm": minilm.__main__.app, "minilm.course": course_command.app}
    for module, name, rest in re.findall(r"python -m (minilm[\w.]*) ([a-z]+)([^`|#;)\n]*)", text):
        commands = typer.main.get_command(apps[module]).commands
        assert name in commands, f"python -m {module} has no {name}; it has {', '.join(commands)}"
        known = {
            option
            for parameter in commands[name].params
            for option in parameter.opts + parameter.secondary_opts
        }
        assert set(re.findall(r"(?<!\S)--[a-z0-9-]+", rest)) <= known | {"--help"}, (
            f"python -m {module} {name}{rest}"
        )


def test_every_test_file_stands_in_one_layer():
    """The contributor's guide names each file of tests once; "the others" are those of the exercises."""
    (rows,) = [
        [names_in(cells[1]) for cells in table_rows(part) if len(cells) == 4]
        for part in read(ROOT / "CONTRIBUTING.md").split("\n## ")
        if part.startswith("The tests")
    ]
    for path in (ROOT / "tests").glob("**/test_*.py"):
        name = path.relative_to(ROOT / "tests").as_posix()
        named = sum(fnmatch.fnmatch(name, pattern) for row in rows for pattern in row)
        assert named == 1 or (named == 0 and path.parent.name == "exercises"), name
    assert all(list((ROOT / "tests").glob(pattern)) for row in rows[:-1] for pattern in row)
