"""What the pictures of blocks are drawn from: parts that really add up to the stream and to the logits."""

import pytest
import torch

from minilm import parity, viz
from minilm.families import FAMILIES
from minilm.heads import CausalLM
from minilm.viz.blocks import lens


@pytest.fixture(params=FAMILIES)
def model(request) -> CausalLM:
    family = FAMILIES[request.param]
    made = CausalLM(family.read_config(family.tiny)).eval()
    parity.randomise(made, seed=0)
    return made


IDS = torch.arange(3, 15)[None]


@torch.no_grad()
def test_what_is_written_adds_up_to_the_stream(model):
    states = model(IDS, output_hidden_states=True).hidden_states
    stream = viz.written(model, IDS).cumsum(0)[::2]
    torch.testing.assert_close(stream[:-1], torch.cat(states[:-1]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.decoder.final_norm(stream[-1:]), states[-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_votes_add_up_to_the_logit(model):
    votes, token = viz.votes(model, IDS)
    logits = model(IDS).logits[0, -1]
    assert token == logits.argmax()
    torch.testing.assert_close(votes.sum(), logits[token] - logits.mean(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_lens_ends_with_what_the_model_says(model):
    shares, tokens = lens(model, IDS)
    expected = model(IDS).logits[0].softmax(-1).max(-1)
    assert shares.shape == (model.config.num_layers + 1, IDS.shape[1])
    assert torch.equal(tokens[-1], expected.indices)
    torch.testing.assert_close(shares[-1], expected.values)


@torch.no_grad()
def test_without_a_block_the_stream_passes_by(model):
    right = model(IDS).logits
    with viz.without_block(model, 1):
        states = model(IDS, output_hidden_states=True).hidden_states
    assert torch.equal(states[1], states[2])
    assert torch.equal(model(IDS).logits, right)


def test_every_parameter_is_counted_once(model):
    counted = viz.parameters_by_part(model)
    assert sum(counted.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert (counted["head"] == 0) == model.config.tie_embeddings


def test_cross_attention_counts_as_attention():
    family = FAMILIES["gpt_bigcode"]
    config = family.read_config(family.tiny)
    both = [CausalLM(config.replace(cross_attention=cross)) for cross in (False, True)]
    plain, cross = map(viz.parameters_by_part, both)
    assert cross["attention"] == 2 * plain["attention"]
    assert cross["MLP"] == plain["MLP"]
