"""Random models: the ones that once differed, a fixed sample of others, and what is told of a difference."""

import random

import pytest
import torch

from minilm import fuzz, norm, parity, parity_command
from minilm.config import RopeConfig
from minilm.families import FAMILIES, get_family
from minilm.fuzz import Sample

# What a longer run found, made small: where the libraries differed, or where the comparison itself was wrong.
FOUND = {
    "a window's cache kept a view of the keys, and MKL sums a view in another order": Sample(
        "qwen2",
        {
            "layer_windows": (None, 22),
            "num_layers": 2,
            "num_heads": 3,
            "num_kv_heads": 3,
            "head_dim": 16,
            "hidden_size": 48,
        },
        lengths=(1, 8),
        cuts=(),
        seed=1040,
    ),
    "a fixed cache holds what a window has left behind": Sample(
        "qwen2",
        {"num_layers": 2, "layer_windows": (None, 7)},
        lengths=(17,),
        cuts=(16,),
        static=True,
        seed=28,
    ),
    "heads that are turned whole lay otherwise in memory": Sample(
        "gpt_neox",
        {"rope": RopeConfig(theta=1e6, fraction=1.0, scaling="yarn", factor=1.5, original_max_positions=6)},
        lengths=(1, 6),
        seed=240,
    ),
    "weights at other addresses are summed in another order": Sample("mistral", {}, lengths=(1,), seed=4),
}


@pytest.mark.parametrize("sample", FOUND.values(), ids=FOUND)
def test_what_was_found_stays_mended(sample):
    outcome = fuzz.run(sample)
    assert outcome.agrees, outcome


@pytest.mark.parametrize("family", FAMILIES)
def test_random_models_agree(family):
    mismatches = [str(found) for found in fuzz.compare([family], 24, seed=0) if found is not None]
    assert not mismatches, "\n".join(mismatches)


def test_samples_cover_what_there_is():
    """Every way to run a model, and every decision that some family can say, is drawn sooner or later."""
    drawn = [
        sample
        for name in FAMILIES
        for seed in range(30)
        for sample in fuzz.draw_samples(get_family(name), seed)
    ]
    assert {sample.backend for sample in drawn} == {"eager", "sdpa", "flash"}
    assert {sample.dtype for sample in drawn} == set(parity.DTYPES)
    assert {sample.side for sample in drawn} == {"left", "right"}
    assert {sample.static for sample in drawn} == {True, False}
    assert {sample.cuts is None for sample in drawn} == {True, False}
    assert any(len(set(sample.lengths)) > 1 for sample in drawn)
    changed = {name for sample in drawn for name in sample.changes}
    assert changed >= {
        "num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size", "vocab_size",
        "intermediate_size", "max_positions", "rope", "layer_windows", "norm_eps", "activation", "residual",
        "tie_embeddings", "scale_scores", "mlp_bias", "qkv_bias", "out_bias",
    }  # fmt: skip
    ropes = {sample.changes["rope"] for sample in drawn if sample.changes.get("rope")}
    assert {rope.scaling for rope in ropes} == {"default", "linear", "dynamic", "yarn", "llama3"}
    turned = {rope.fraction for rope in ropes if rope.fraction < 1}
    assert len(turned) > 1, "one family turns a part of each head, and here not always the same"


def test_the_command_says_what_it_compared(capsys):
    assert parity_command.compare_random_models(["gemma"], 4, seed=0)
    assert "4 random models of gemma, seeds from 0: none differ" in capsys.readouterr().out


def test_the_command_tells_of_a_difference(capsys, monkeypatch):
    right = norm.rms_norm
    monkeypatch.setattr(norm, "rms_norm", lambda x, weight, eps: right(x, weight, eps + 1e-3))
    assert not parity_command.compare_random_models(["qwen2"], 1, seed=0)
    told = capsys.readouterr().out
    assert "sample = fuzz.Sample(" in told and "1 random models of qwen2, seeds from 0: 1 differ" in told


def test_what_the_command_would_ignore_is_refused():
    with pytest.raises(ValueError, match="--fuzz draws dtypes and backends itself"):
        parity_command.compare(fuzzed=4, dtype=["bf16"])


def test_the_same_seed_draws_the_same_samples():
    family = get_family("gemma")
    assert fuzz.draw_samples(family, 3) == fuzz.draw_samples(family, 3)
    assert fuzz.draw_samples(family, 3) != fuzz.draw_samples(family, 4)


def test_a_difference_is_made_small_and_told_in_a_few_lines(monkeypatch, capsys):
    """A wrong norm in one of our models: found, and shrunk to one row of one token that shows it again."""
    right = norm.rms_norm
    monkeypatch.setattr(norm, "rms_norm", lambda x, weight, eps: right(x, weight, eps + 1e-3))
    mismatch = next(found for found in fuzz.compare(["qwen2"], 8, seed=0) if found is not None)
    smallest = mismatch.sample
    assert smallest.changes == {} and smallest.lengths == (1,) and smallest.cuts is None
    assert mismatch.outcome.difference > mismatch.outcome.allowed
    lines = fuzz.reproduction(smallest)
    assert len(lines.splitlines()) <= 10
    exec(lines, {})
    assert capsys.readouterr().out.strip() == str(mismatch.outcome)


def test_what_is_needed_for_a_difference_is_kept():
    """Shrinking stops where it would lose the failure, and never leaves what can be built."""
    sample = Sample(
        "llama",
        {
            "num_heads": 8,
            "num_kv_heads": 4,
            "head_dim": 8,
            "hidden_size": 64,
            "rope": RopeConfig(theta=500.0),
        },
        backend="flash",
        lengths=(5, 9, 3),
        cuts=(2, 4),
    )

    def fails(each: Sample) -> bool:
        return "rope" in each.changes and max(each.lengths) >= 4 and each.cuts is not None and 2 in each.cuts

    smallest = fuzz.shrink(sample, fails)
    assert smallest == Sample("llama", {"rope": RopeConfig(theta=500.0)}, lengths=(4,), cuts=(2,))


@pytest.mark.parametrize("wrong", ["nan", "shape"])
def test_what_cannot_be_compared_is_a_difference(wrong, monkeypatch):
    """NaN is equal to nothing, and an error belongs to the sample that raised it."""
    sample, right = Sample("gemma", {}, lengths=(4,)), parity.run_ours

    def spoiled(*arguments):
        logits = right(*arguments)
        return logits * float("nan") if wrong == "nan" else logits[:, :2]

    monkeypatch.setattr(parity, "run_ours", spoiled)
    outcome = fuzz.run(sample)
    assert not outcome.agrees and outcome.difference == float("inf")


def test_a_structure_is_never_lost_on_the_way():
    """What is drawn is what both libraries are asked for: it can be written and read again."""
    draw = random.Random(1)
    for name in FAMILIES:
        family = get_family(name)
        config = family.read_config(family.tiny).replace(**fuzz.draw_structure(draw, family))
        assert family.read_config(family.write_config(config)) == config


def test_padding_is_where_it_should_be():
    sample = Sample("qwen2", {}, lengths=(1, 3), side="left")
    assert torch.equal(sample.batch.mask, torch.tensor([[0, 0, 1], [1, 1, 1]]))
