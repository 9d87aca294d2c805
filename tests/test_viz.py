"""Pictures: what they refuse, and what they promise to everyone who looks at them or cannot."""

import base64
import subprocess
import sys

import pytest
import torch

import minilm
from minilm import viz
from minilm.table import Table


def displayed(monkeypatch, action) -> list[tuple[dict, dict]]:
    """The data and metadata of what an action displays in a notebook."""
    shown = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, raw, metadata=None: shown.append((data, metadata or {}))
    )
    action()
    return shown


def test_a_picture_carries_its_description(monkeypatch):
    """As the alternative of the image, and as a line below it that everyone reads."""
    figure, axes = viz.subplots()
    axes.plot([1, 2])
    picture = viz.Picture(figure, "A line\n   that rises.")
    (image, metadata), (words, _) = displayed(monkeypatch, picture._ipython_display_)
    assert base64.b64decode(image["image/png"]).startswith(b"\x89PNG")
    assert metadata == {"image/png": {"alt": "A line that rises."}}
    assert image["text/plain"] == repr(picture) == "A line that rises."
    assert words["text/markdown"] == "*A line that rises.*"
    assert b"Software" not in picture.png(), "no version inside: the same picture is the same file"


def test_a_picture_without_words_is_refused():
    figure, _ = viz.subplots()
    with pytest.raises(ValueError, match="needs a description"):
        viz.Picture(figure, " ")


def test_a_slider_redraws_the_picture(monkeypatch):
    """It starts in the middle of what it offers; without a kernel that first picture stands there."""
    drawn = []

    def draw(theta: float) -> viz.Picture:
        drawn.append(theta)
        return viz.score_by_distance(theta, longest=8)

    made = []
    import ipywidgets

    slider = ipywidgets.SelectionSlider
    monkeypatch.setattr(
        ipywidgets, "SelectionSlider", lambda **settings: made.append(slider(**settings)) or made[-1]
    )
    (image, _), _ = displayed(monkeypatch, lambda: viz.explore(draw, theta=[10, 100, 1000]))
    assert drawn == [100] and "theta = 100:" in image["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in image
    made[0].value = 1000
    assert drawn == [100, 1000]


def test_a_slider_needs_values():
    with pytest.raises(ValueError, match="at least one parameter"):
        viz.explore(lambda theta: None, theta=[])


def test_the_map_names_its_parts():
    with pytest.raises(ValueError, match="no part 'ropes'; it has attention, block"):
        viz.decoder_map("ropes")


def test_a_table_in_both_forms():
    table = Table(["name", "n"], [["a<b", 1], ["c", 20]])
    assert repr(table).splitlines() == ["name  n", "a<b   1", "c     20"]
    assert "a&lt;b" in table._repr_html_() and "overflow-wrap" not in table._repr_html_()
    long = Table(["name"], [["short words, however many there are"], ["a/path/that/is/longer/than/a/page"]])
    assert long._repr_html_().count("overflow-wrap: anywhere") == 1
    with pytest.raises(ValueError, match="2 columns, and a row of 1 cells"):
        Table(["name", "n"], [["a"]])


def test_lines_of_transformers_hold_what_they_name():
    """The first of these lines begins the definition."""
    table = viz.lines_of("models.qwen2.modeling_qwen2", "rotate_half", "Qwen2RotaryEmbedding.forward")
    import transformers.models.qwen2.modeling_qwen2 as module

    with open(module.__file__, encoding="utf-8") as file:
        lines = file.read().splitlines()
    first, last = map(int, table.rows[0][2].split("–"))
    assert lines[first - 1].startswith("def rotate_half") and "return" in lines[last - 1]
    with pytest.raises(ValueError, match="has no rotate_halves"):
        viz.lines_of("models.qwen2.modeling_qwen2", "rotate_halves")


def test_differences_tell_which_operation_is_first():
    """A mistake in the activation: all before it is equal, and the words say where it begins."""
    from minilm import course

    model = minilm.load("tiny-qwen2", backend="eager", dtype=torch.float32)
    reference, ids = viz.reference_of("tiny-qwen2"), torch.arange(9)[None]
    assert viz.differences(model, reference, ids).alt.endswith("All are equal.")
    with course.swap({"silu": lambda x: x * torch.sigmoid(-x)}):
        assert viz.differences(model, reference, ids).alt.endswith(
            "The first to differ: layers.0.mlp.activated."
        )


def test_a_part_is_compared_in_every_family(monkeypatch):
    """Families without it show a dash; a mistake in it shows as a number."""
    from minilm import course
    from minilm.families import FAMILIES

    chosen = {name: FAMILIES[name] for name in ("gpt_bigcode", "llama")}
    monkeypatch.setattr(viz.comparison, "FAMILIES", chosen)
    table = viz.compare_part("query rotated", describe=lambda config: str(config.num_heads))
    assert [row[2:] for row in table.rows] == [["–", "–"], ["0", "0"]]
    with course.swap({"rotate_half": lambda x: x}):
        table = viz.compare_part("query rotated", describe=lambda config: "")
    assert all(float(cell) > 0.1 for cell in table.rows[1][2:])


def test_the_package_does_not_draw_by_itself():
    """import minilm brings in neither matplotlib nor the notebook's machinery."""
    code = (
        "import sys, minilm, minilm.course; print({'matplotlib', 'IPython', 'ipywidgets'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
