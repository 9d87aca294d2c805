"""Pictures of checkpoints say in words what they show, and what they say is so."""

import torch

from minilm import checkpoint, viz


def test_a_file_is_shown_from_its_first_byte_to_its_last():
    """Every checkpoint that ships; all tensors follow the header without a gap."""
    for name in checkpoint.shipped():
        count = len(checkpoint.read_tensors(checkpoint.resolve(name)))
        assert f"a thin header, then {count} tensors without a gap" in viz.file_map(name).alt


def test_the_beginning_of_a_file_says_where_the_data_begin():
    content = (5).to_bytes(8, "little") + b'{"": ' + bytes(3)
    assert viz.first_bytes(content, 5).alt.endswith("the data begin, at byte 13.")


def test_rows_that_moved_are_counted():
    """A row that the right weight does not have is left out."""
    right = torch.arange(8.0).view(4, 2)
    found = torch.cat((right[[0, 2, 1]], right[:1] + 100))
    assert "2 rows are somewhere else" in viz.row_origins({"weight": (found, right)}).alt
    both = {"q": (found, right), "k": (found[:3], right)}
    assert "4 rows are somewhere else" in viz.row_origins(both).alt
    assert "0 rows" in viz.row_origins({"weight": (right, right)}, head_dim=2, kinds=["a", "b"]).alt


def test_a_block_has_as_many_levels_as_its_bits_allow():
    """All 16 lines of 4 bits are drawn, and a weight that lies on one does not move."""
    weights = torch.linspace(-1, 0.875, 32)
    picture = viz.block_levels(weights, "Q4_0", "Q4_1", "Q8_0")
    drawn = [len(axes.collections[0].get_segments()) for axes in picture.figure.axes]
    assert drawn[:2] == [16, 16] and drawn[2] > 250


def test_results_are_drawn_with_their_axes():
    picture = viz.result_map(torch.ones(2, 3), "Ones.", rows="dimension", columns="position", label="size")
    assert picture.figure.axes[0].get_ylabel() == "dimension" and picture.alt == "Ones."
