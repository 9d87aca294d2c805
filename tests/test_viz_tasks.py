"""Pictures of heads: the comparison with transformers sees a mistake."""

import torch

from minilm import course, viz


def test_heads_are_compared_with_transformers():
    """A classifier that reads the first token is found, where transformers has no class its trunk serves."""
    with course.swap({"last_token_index": lambda mask: torch.zeros(len(mask)).long()}):
        rows = {row[1]: row for row in viz.compare_heads(["gpt_bigcode"]).rows}
    assert rows["question-answering"][2].startswith("none; ")
    assert all(float(cell) > 0.1 for cell in rows["sequence-classification"][-2:])
    others = [row[-2:] for task, row in rows.items() if task != "sequence-classification"]
    assert others == [["0", "0"]] * 3
