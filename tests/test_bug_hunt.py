"""The broken checkpoints of notebook 14: each has the one bug it is said to have, and is judged so."""

import json
import re

import pytest
import torch

import minilm
from minilm import checkpoint, gguf_reader, parity
from minilm.course import bug_hunt

IDS = torch.arange(40, 56)[None]

# What the finder says of each, and the modules whose weights are not the right ones.
EXPECTED = {
    "fused rows in blocks": ("layers.0.attention.qkv_proj", {"attention.qkv_proj"}),
    "gate and up exchanged": ("layers.0.mlp.gate_proj", {"mlp.gate_proj", "mlp.up_proj"}),
    "pairs for halves": ("layers.2.attention.q_proj", {"attention.q_proj", "attention.k_proj"}),
    "norm weights 1 + w": ("layers.0.attention_norm", {"attention_norm", "mlp_norm", "final_norm"}),
    "rope theta lost": ("layers.0.query rotated", set()),
    "rotary fraction lost": ("layers.0.query rotated", set()),
    "embedding rows shifted": ("input", {"embed_tokens"}),
    "positions shifted": ("input", {"embed_positions"}),
    "layers exchanged": (
        "layers.1.attention_norm",
        {
            "attention_norm",
            "attention.qkv_proj",
            "attention.o_proj",
            "mlp_norm",
            "mlp.up_proj",
            "mlp.down_proj",
        },
    ),
}
every_bug = pytest.mark.parametrize("bug", bug_hunt.BUGS, ids=lambda bug: bug.cause)


@every_bug
def test_each_loads_and_begins_to_differ_where_its_cause_is(bug, tmp_path):
    """Nothing is refused, nothing else is changed, and the finder points at the cause."""
    name = bug_hunt.break_it(bug, tmp_path)
    wrong, right = (minilm.load(source, dtype=torch.float32) for source in (tmp_path, name))
    operation, changed = EXPECTED[bug.cause]
    found = parity.first_divergence(parity.trace_ours(wrong, IDS), parity.trace_ours(right, IDS), 1e-4)
    assert found.name == operation
    mine, theirs = wrong.state_dict(), right.state_dict()
    different = [name for name in theirs if not torch.equal(mine[name], theirs[name])]
    modules = {re.sub(r"decoder\.(layers\.\d+\.)?", "", name.rpartition(".")[0]) for name in different}
    assert modules == changed
    assert (wrong.config != right.config) == (not different)
    assert minilm.load_tokenizer(tmp_path).encode("as it was") == minilm.load_tokenizer(name).encode(
        "as it was"
    )


@every_bug
def test_each_can_be_diagnosed(bug):
    assert bug.cause in bug_hunt.CAUSES and bug.hint and bug.answer


def test_a_hunt_is_drawn_from_its_seed():
    """Five different bugs; those of the notebook begin in different operations, in four families."""
    hunts = {seed: [bug_hunt.find(number, seed).cause for number in range(1, 6)] for seed in range(6)}
    assert all(len(set(hunt)) == 5 for hunt in hunts.values())
    assert len(set(map(tuple, hunts.values()))) == 6
    ours = [bug_hunt.find(number) for number in range(1, 6)]
    assert len({EXPECTED[bug.cause][0] for bug in ours}) == 5


def test_the_notebooks_hunt_is_in_four_families(tmp_path):
    names = {bug_hunt.broken(number, tmp_path / str(number)) for number in range(1, 6)}
    assert names == set(checkpoint.shipped())


def test_a_diagnosis_is_judged():
    """The right one tells why; a wrong one tells where to look, and gives nothing away; giving up tells."""
    for number in range(1, bug_hunt.COUNT + 1):
        bug = bug_hunt.find(number)
        assert bug_hunt.diagnose(number, bug.cause) == f"{number}: right, {bug.cause}. {bug.answer}"
        said = bug_hunt.diagnose(number, "eps of another model")
        assert said == f"{number}: not eps of another model. {bug.hint}"
        assert bug.cause not in said and bug.answer not in said
        assert bug.answer in bug_hunt.diagnose(number, "", give_up=True)


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no cause 'theta' in the list; it has 'fused rows in blocks'"):
        bug_hunt.diagnose(1, "theta")
    with pytest.raises(ValueError, match="no broken checkpoint 6; they are numbered 1 to 5"):
        bug_hunt.diagnose(6, "rope theta lost")


def test_the_list_of_causes_tells_nothing():
    """Those that occur and those that do not stand side by side."""
    shown = [row[0] for row in bug_hunt.causes().rows]
    assert shown == list(bug_hunt.CAUSES)
    assert len(set(shown) - {bug.cause for bug in bug_hunt.BUGS}) >= 3


def bug_called(cause: str) -> bug_hunt.Bug:
    return next(bug for bug in bug_hunt.BUGS if bug.cause == cause)


def test_rows_are_mended_as_the_answers_say(tmp_path):
    """Neighbours go back into halves as GGUF's do, and blocks back to heads."""
    name = bug_hunt.break_it(bug_called("pairs for halves"), tmp_path / "pairs")
    weights = [
        minilm.load(source).decoder.layers[2].attention.q_proj.weight for source in (tmp_path / "pairs", name)
    ]
    heads = checkpoint.read_config(name)[1].num_heads
    assert torch.equal(gguf_reader.separate_halves(weights[0], heads), weights[1])

    name = bug_hunt.break_it(bug_called("fused rows in blocks"), tmp_path / "blocks")
    config = checkpoint.read_config(name)[1]
    found, right = (
        minilm.load(source).decoder.layers[0].attention.qkv_proj.weight
        for source in (tmp_path / "blocks", name)
    )
    blocks = found.view(3, config.num_heads, config.head_dim, config.hidden_size)
    assert torch.equal(blocks.transpose(0, 1).reshape(right.shape), right)


def test_what_is_lost_is_lost_from_the_config(tmp_path):
    bug_hunt.break_it(bug_called("rope theta lost"), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"] == {"rope_type": "default"}


def test_no_name_of_a_checkpoint_stands_in_the_module():
    """Which one is broken follows from its structure."""
    source = (checkpoint.Path(bug_hunt.__file__)).read_text(encoding="utf-8")
    assert not re.search(r"tiny-|" + "|".join(minilm.families.FAMILIES), source)
