"""Everything that a model makes on its way is made on the model's device.

A machine with one device cannot tell; the meta device can: its tensors have shapes and no numbers, and an
operation that mixes it with another device is refused. What reads numbers, as packing does, cannot run there.
"""

import pytest
import torch

import minilm
from minilm import flash, loss, masks, pooling, unpad
from minilm.families import FAMILIES

META = torch.device("meta")


def on_meta(family: str, kind: type = minilm.CausalLM, backend: str = "sdpa", **changes):
    config = FAMILIES[family].read_config(FAMILIES[family].tiny).replace(**changes)
    with META:
        return kind(config, backend).eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.long, device=META)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_stays_on_its_device(family, backend):
    """A prompt, three tokens with a padding mask, one with a 4-D mask; then a step of training."""
    model, eager = on_meta(family, backend=backend), backend == "eager"
    for cache in (
        minilm.DynamicCache(model.config),
        minilm.StaticCache(model.config, 2, 32, torch.float32, META),
    ):
        with torch.no_grad():
            model(tokens(2, 20), cache=cache)
            out = model(tokens(2, 3), attention_mask=tokens(2, 23), cache=cache, output_attentions=eager)
            cache.select(tokens(2))
            four = torch.ones(2, 1, 1, 24, dtype=torch.bool, device=META)
            out = model(tokens(2, 1), attention_mask=four, cache=cache, output_hidden_states=True)
        assert {each.device for each in (out.logits, *out.hidden_states)} == {META}
        assert {buffer.device for layer in cache.layers for buffer in layer.buffers} == {META}
    out = model(tokens(2, 5), labels=tokens(2, 5))
    out.loss.backward()
    assert out.loss.device == META


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_k": 3, "repetition_penalty": 1.2}])
def test_generating_stays_on_its_device(settings, cache):
    """One token: whether a row has ended would be a number."""
    out = minilm.generate(on_meta("qwen2"), tokens(2, 5), max_new_tokens=1, cache=cache, **settings)
    assert out.shape == (2, 6) and out.device == META


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.2}, {"num_beams": 3}], ids=str
)
def test_generating_asks_for_no_other_device(settings, cache, backend):
    """The other way round: where tensors are made on meta by default, all goes on on the model's CPU.

    With padding, and with what reads numbers. Only the angles of RoPE begin on the default device.
    """
    config = FAMILIES["gpt_bigcode"].read_config(FAMILIES["gpt_bigcode"].tiny)
    model, prompts = minilm.CausalLM(config, backend).eval(), torch.randint(3, 90, (2, 9))
    mask = (torch.arange(9) >= torch.tensor([[4], [0]])).long()
    settings = {"max_new_tokens": 6, "cache": cache, "eos_token_id": [4, 5], **settings}
    texts = []
    for device in ("cpu", "meta"):
        torch.manual_seed(1)
        with torch.device(device):
            texts.append(minilm.generate(model, prompts, mask, **settings))
    assert torch.equal(*texts)


@pytest.mark.parametrize("kind", [minilm.SequenceClassifier, minilm.TokenClassifier, minilm.QuestionAnswerer])
def test_heads_stay_on_their_device(kind):
    """By a mask of the keys seen so far, and by the padding token."""
    model = on_meta("qwen3", kind, pad_token_id=0)
    cache = minilm.DynamicCache(model.config)
    assert model(tokens(2, 5), cache=cache).logits.device == META
    assert model(tokens(2, 2), cache=cache, attention_mask=tokens(2, 7)).logits.device == META


def test_a_memory_stays_on_its_device():
    model = on_meta("gpt_bigcode", cross_attention=True)
    cache = minilm.DynamicCache(model.config)
    memory = torch.ones(2, 4, model.config.hidden_size, device=META)
    model(tokens(2, 5), cache=cache, memory=memory, memory_mask=tokens(2, 4))
    cache.repeat(2)
    assert cache.memory.real.device == META
    assert model(tokens(4, 1), cache=cache).logits.device == META


def test_functions_stay_on_their_device():
    """Those that make masks, boundaries and tiles."""
    assert masks.causal_mask(2, 3, META).device == META
    assert masks.mask_to_bias(masks.causal_mask(2, 3, META), torch.float32).device == META
    assert unpad.query_tokens(tokens(2, 5), 1).cu_seqlens.device == META
    assert flash.tile_mask(slice(0, 2), slice(0, 2), flash.Band(0, 5, 0), META).device == META
    real = pooling.real_tokens(torch.ones(1, 5, 8, device=META), None, None, None)
    assert real.device == pooling.last_real_token(real).device == META
    assert loss.span_loss(torch.ones(2, 5, 2, device=META), tokens(2), tokens(2)).device == META
