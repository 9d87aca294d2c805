"""Matrix products by two libraries: when which one computes, and that both compute the same."""

import pytest
import torch
from torch import nn

import minilm
from minilm import linear, parity
from minilm.families import FAMILIES
from minilm.linear import Linear, fast_linear

WIDE = 384  # 384 · 384 entries are enough for oneDNN to pay

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def operands(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, WIDE), (WIDE + 1, WIDE), (WIDE + 1,))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@needs_onednn
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_fast_product_is_the_product(with_bias):
    """Beside fp64: no further off than torch's own, up to twice its noise."""
    x, weight, bias = operands()
    bias = bias if with_bias else None
    exact = nn.functional.linear(*(None if t is None else t.double() for t in (x, weight, bias)))
    with torch.no_grad():
        assert linear.pays(x, weight)
        found, usual = fast_linear(x, weight, bias), nn.functional.linear(x, weight, bias)
    assert found.dtype == torch.float32 and found.shape == exact.shape
    noise = (usual - exact).abs().max()
    assert 0 < noise < 1e-3 and (found - exact).abs().max() <= 2 * noise


def test_it_only_pays_for_large_fp32_products_without_gradients():
    x, weight, _ = operands()
    assert not linear.pays(x, weight)  # gradients are on, and oneDNN's operator has none
    with torch.no_grad():
        assert not linear.pays(x[..., :8], weight[:, :8])
        assert not linear.pays(x.bfloat16(), weight.bfloat16())
        assert not linear.pays(x[:0], weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not linear.pays(x, weight)
            assert fast_linear(x, weight).dtype == torch.bfloat16


@needs_onednn
def test_where_it_begins_to_pay(monkeypatch):
    """Above 2^16 entries, or from 2^21 products on; on a CPU, by a torch that has it."""
    small, edge, large = torch.zeros(64, 32), torch.zeros(256, 256), torch.zeros(257, 256)
    with torch.no_grad():
        assert linear.pays(torch.zeros(1, 256), large) and not linear.pays(torch.zeros(1, 256), edge)
        assert linear.pays(torch.zeros(1024, 32), small) and not linear.pays(torch.zeros(1023, 32), small)
        assert not linear.pays(torch.zeros(1, 256, device="meta"), large.to("meta"))
        monkeypatch.setattr(linear, "_ONEDNN", None)
        assert not linear.pays(torch.zeros(1, 256), large)


def test_a_compiler_makes_its_own_choice(monkeypatch):
    """What it traces is torch's product."""
    x, weight, bias = operands()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(linear, "onednn_linear", lambda *_: pytest.fail("oneDNN was called"))
    with torch.no_grad():
        assert torch.equal(fast_linear(x, weight, bias), nn.functional.linear(x, weight, bias))


def test_gradients_flow_through_a_layer():
    x, weight, bias = operands()
    layer = Linear(WIDE, WIDE + 1)
    layer.load_state_dict({"weight": weight, "bias": bias})
    layer(x).sum().backward()
    assert torch.allclose(layer.weight.grad, x.sum((0, 1)).expand_as(weight), rtol=1e-4, atol=1e-4)


@needs_onednn
def test_the_eager_backend_keeps_the_reference_s_bits(monkeypatch):
    """In a model whose matrices are large enough: eager multiplies as torch does, the others as is faster."""
    family = FAMILIES["llama"]
    sizes = {"hidden_size": WIDE, "intermediate_size": 2 * WIDE, "vocab_size": 512}
    model = minilm.CausalLM(family.read_config({**family.tiny, **sizes}), backend="eager").eval()
    parity.randomise(model, 0)
    ids = torch.arange(12).view(2, 6)
    called = []
    original = linear.onednn_linear

    def count(*arguments):
        called.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(linear, "onednn_linear", count)
    large = [each for each in model.modules() if isinstance(each, Linear) and each.weight.numel() > 2**16]
    assert len(large) > model.config.num_layers
    with torch.no_grad():
        for backend, expected in (("eager", False), ("sdpa", True), ("eager", False), ("flash", True)):
            called.clear()
            model.backend = backend
            model(ids)
            assert len(called) == (len(large) + 1 if expected else 0), backend  # and the head's
