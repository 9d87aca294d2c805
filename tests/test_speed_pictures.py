"""Pictures and tables of speed: that they draw what was counted, and read the profiler rightly."""

import pytest
import torch

from minilm import bench, describe, viz
from minilm.course.curves import Measured
from minilm.families import FAMILIES
from minilm.viz import Operation, Share


def test_a_roof_has_two_sides():
    """At 10 FLOPs a byte the slope of 20 bytes a second meets the peak of 200."""
    few, many = Operation("few", 100.0, 50.0, 10.0), Operation("many", 4000.0, 100.0)
    assert (few.intensity, few.allowed(200.0, 20.0)) == (2.0, 40.0)
    assert (many.intensity, many.allowed(200.0, 20.0)) == (40.0, 200.0)
    picture = viz.roofline("a machine", 200.0, 20.0, [few, many])
    assert "up to 10 FLOPs for each byte" in picture.alt and "1 of 2 operations lie left" in picture.alt
    axes = picture.figure.axes[0]
    assert [line.get_ydata()[0] for line in axes.lines[1:]] == [10.0, 200.0], "as measured; as allowed"


def test_curves_of_several_machines_keep_their_colours():
    kept = [Measured("19", {"gpu": "a GPU"}, {"flash": [(2, 3.0), (4, 5.0)], "eager": [(2, 1.0)]})]
    picture = viz.machines(
        {"eager": [(1, 1.0), (2, 2.0)]}, kept, ("rows", "rate"), "Two curves of two machines."
    )
    own, eager = picture.figure.axes[0].lines
    assert own.get_label() == "eager (here, now)" and own.get_linestyle() == "-"
    assert eager.get_label() == "eager (a GPU)" and eager.get_color() == own.get_color()
    every = viz.machines(None, kept, ("rows", "rate"), "Two curves of one machine.").figure.axes[0].lines
    assert [line.get_label() for line in every] == ["flash (a GPU)", "eager (a GPU)"]


def test_bars_show_every_number():
    picture = viz.grouped_bars(
        {"a": {"x": 1.0, "limit": 0.5}, "b": {"x": 2.0}}, "ms", "Three bars in two groups."
    )
    axes = picture.figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1.0, 0.5, 2.0]
    assert axes.get_legend_handles_labels()[1] == ["x", "limit"], "each name once"
    axes = viz.bars({"x": 3.0}, "ms", "One bar and its limit.", limit=("least", 2.0)).figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["3"]


def test_the_profiler_tells_shares():
    """Of a product and a sum the product takes most; shares add up to 1."""
    x = torch.randn(300, 300)
    found = viz.operation_shares(lambda: (x @ x).sum(), runs=3)
    assert found[0].name == "aten::mm" and found[0].calls == 1
    assert sum(each.share for each in found) == pytest.approx(1.0)
    table = viz.top_operations(
        {"plain": [Share("a", 2.0, 0.75), Share("b", 1.0, 0.2), Share("c", 4.0, 0.05)]}, 1
    )
    assert table.rows == [["plain", "a", "2", "75%"], ["plain", "2 others", "", "25%"]]


def test_flops_are_those_that_transformers_computes(monkeypatch):
    monkeypatch.setattr(viz.comparison, "FAMILIES", {"gpt_bigcode": FAMILIES["gpt_bigcode"]})
    (row,) = viz.compare_flops(lambda config: config.mlp, length=9).rows
    config = FAMILIES["gpt_bigcode"].read_config(FAMILIES["gpt_bigcode"].tiny)
    expected = f"{describe.flops_per_token(config, 9):,}"
    assert row == ["gpt_bigcode", "plain", expected, expected, "0"]


def test_a_fresh_model_is_in_both_libraries(tmp_path):
    """What a lab measures: the same structure, in the asked-for dtype."""
    config = FAMILIES["llama"].read_config(FAMILIES["llama"].tiny)
    bench.save_fresh_model("llama", config, tmp_path, torch.bfloat16)
    pair = bench.Pair.load(tmp_path, torch.bfloat16, "cpu")
    assert pair.ours.dtype == pair.theirs.dtype == torch.bfloat16
    assert pair.prompt(2, 3).device == pair.ours.device
