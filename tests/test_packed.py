"""The flash backend: the whole decoder on packed tokens gives what it gives on padded ones."""

import pytest
import torch
from reference import make_reference

import minilm
from minilm import backends, masks, packed, parity, unpad
from minilm.families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_flash_is_within_rounding_of_transformers(family, tmp_path):
    """One shot, in chunks and token by token; no padding, left and right: 2e-5 in fp32, as for sdpa."""
    directory, _ = make_reference(family, tmp_path)
    results = list(parity.compare(directory, family, dtypes=["fp32"], backend_names=["flash"]))
    assert len(results) == 9
    assert all(item.difference <= 2e-5 and item.tokens_agree for item in results)


def test_the_blocks_see_real_tokens_only():
    """Rows of 17, 13 and 10 real tokens go through the blocks as one row of 40, and come back padded."""
    model = minilm.CausalLM(FAMILIES["qwen2"].read_config(FAMILIES["qwen2"].tiny), backend="flash").eval()
    seen = []
    model.decoder.layers[1].mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    batch = parity.make_batch(200, "left")
    out = model(batch.input_ids, attention_mask=batch.mask, output_hidden_states=True)
    assert seen == [(1, int(batch.mask.sum()), 48)]
    assert out.logits.shape[:2] == batch.input_ids.shape
    assert all(state.shape == (3, 17, 48) for state in out.hidden_states)


@pytest.mark.parametrize(("window", "causal"), [(None, True), (2, True), (None, False)])
def test_texts_see_nothing_of_each_other(window, causal):
    """Texts of three and two tokens give what each gives alone, at a scale of its own."""
    tokens = unpad.real_tokens(torch.tensor([[1, 1, 1], [0, 1, 1]]))
    query, key, value = (torch.randn(1, heads, 5, 8) for heads in (4, 2, 2))
    texts = packed.Texts(tokens, tokens, window, causal)
    found = packed.attention(query, key, value, texts, scale=0.7, dropout=0.0)
    for text in (slice(0, 3), slice(3, 5)):
        places = torch.arange(text.stop - text.start)[None]
        mask = masks.visible(places, places, None, window) if causal else masks.visible(places + 9, places)
        alone, _ = backends.eager_attention(*(x[:, :, text] for x in (query, key, value)), mask, scale=0.7)
        assert (found[:, :, text] - alone).abs().max() < 1e-6


def test_dropout_is_not_left_out_in_silence():
    """The kernel at hand cannot drop weights, and says so."""
    model = minilm.CausalLM(
        FAMILIES["llama"].read_config(FAMILIES["llama"].tiny).replace(attention_dropout=0.1), backend="flash"
    )
    with pytest.raises(ValueError, match=r"dropout_p is 0\.1"):
        model.train()(torch.tensor([[1, 2]]))


def test_gradients_pass_through_packing():
    """Every parameter gets the gradient that the sdpa backend gives, to rounding."""
    config = FAMILIES["llama"].read_config(FAMILIES["llama"].tiny)
    model = minilm.CausalLM(config).eval()
    parity.randomise(model, 0)
    batch = parity.make_batch(190, "left")
    labels = batch.input_ids.masked_fill(batch.mask == 0, -100)
    # A target right after padding would be predicted from padding, whose hidden state is each backend's own.
    first = batch.mask.argmax(dim=1, keepdim=True)
    labels = labels.scatter(1, first, -100)
    gradients = {}
    for backend in ("sdpa", "flash"):
        model.backend = backend
        model.zero_grad()
        model(batch.input_ids, attention_mask=batch.mask, labels=labels).loss.backward()
        gradients[backend] = {name: p.grad.clone() for name, p in model.named_parameters()}
    for name, expected in gradients["sdpa"].items():
        gap = (gradients["flash"][name] - expected).abs().max()
        assert gap <= 1e-5 * expected.abs().max(), name  # fp32 sums of a few hundred terms in another order


def test_a_custom_mask_is_refused():
    """The kernels know padding, causality and windows, nothing else."""
    model = minilm.CausalLM(FAMILIES["llama"].read_config(FAMILIES["llama"].tiny), backend="flash")
    with pytest.raises(ValueError, match="padding masks only"):
        model(torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 1, 2, 2, dtype=torch.bool))
