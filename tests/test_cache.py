"""Caches: what they hold, what they refuse, and that going back is as if the tokens had never been read."""

import pytest
import torch

import minilm
from minilm.cache import DynamicLayer, SlidingLayer, StaticLayer
from minilm.families import FAMILIES
from minilm.parity import randomise

NOISE = 4e-5  # as measured in test_laws.py


def heads(length: int, first: int = 0, rows: int = 2) -> torch.Tensor:
    """Keys whose values say where they stand: [rows, 3, length, 4], with row, head and position in each."""
    row, head, place = torch.meshgrid(
        torch.arange(rows), torch.arange(3), torch.arange(first, first + length), indexing="ij"
    )
    return (100 * row + 10 * head + 0.01 * place)[..., None].expand(-1, -1, -1, 4).contiguous()


def model_of(family: str) -> minilm.CausalLM:
    model = minilm.CausalLM(FAMILIES[family].read_config(FAMILIES[family].tiny)).eval()
    model.requires_grad_(False)
    randomise(model, 1)
    return model


@pytest.mark.parametrize("sizes", [[1] * 9, [5, 1, 3], [70, 1, 90]])
def test_a_growing_layer_returns_all_it_was_given(sizes):
    """In order, whatever the pieces, and however often its buffer had to grow."""
    layer, total = DynamicLayer(), 0
    for size in sizes:
        keys, values = layer.update(heads(size, total), -heads(size, total))
        total += size
        assert torch.equal(keys, heads(total)) and torch.equal(values, -heads(total))


def test_a_growing_layer_copies_each_token_a_constant_number_of_times():
    """Its buffer doubles: 1000 single tokens move it to a larger place four times after the first 64."""
    layer, moved = DynamicLayer(), {}
    for index in range(1000):
        layer.update(heads(1, index), heads(1, index))
        moved.setdefault(layer.buffers[0].shape[2], index)
    assert moved == {64: 0, 128: 64, 256: 128, 512: 256, 1024: 512}


def test_a_growing_layer_can_be_trained_through():
    """Gradients reach keys of earlier updates, as a concatenation would give them."""
    first, second = (heads(2, place).requires_grad_() for place in (0, 2))
    layer = DynamicLayer()
    squares = layer.update(first, first)[0].pow(2)  # its backward pass needs the keys as they were
    keys, _ = layer.update(second, second)
    ((keys * torch.arange(4.0)[:, None]).sum() + 0 * squares.sum()).backward()
    assert first.grad[0, 0, :, 0].tolist() == [0, 1]
    assert second.grad[0, 0, :, 0].tolist() == [2, 3]


def test_cropping_leaves_the_graph_alone():
    """What was returned for a backward pass is not overwritten by what comes after a crop."""
    layer, first = DynamicLayer(), heads(2).requires_grad_()
    keys, values = layer.update(first, first)
    layer.crop(1)
    layer.update(heads(1, 5), heads(1, 5))
    assert torch.equal(keys, heads(2)) and torch.equal(values, heads(2))
    assert torch.equal(layer.buffers[0][:, :, :2], torch.cat((heads(1), heads(1, 5)), dim=2))


@pytest.mark.parametrize("sizes", [[1] * 9, [9], [5, 1, 3], [2, 7]])
def test_a_sliding_layer_keeps_one_less_than_its_window(sizes):
    """It returns what it stored and what is new; window - 1 are stored, for the next query brings its own."""
    window, layer, total = 4, SlidingLayer(4), 0
    for size in sizes:
        first = layer.first_position
        assert first == max(total - (window - 1), 0)
        keys, _ = layer.update(heads(size, total), heads(size, total))
        total += size
        assert torch.equal(keys, heads(total - first, first))


def test_a_window_of_one_keeps_nothing():
    """Each token sees only itself."""
    layer = SlidingLayer(1)
    layer.update(heads(3), heads(3))
    keys, _ = layer.update(heads(1, 3), heads(1, 3))
    assert torch.equal(keys, heads(1, 3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cropping_is_as_if_never_read(family, kind):
    """After taking back the tokens of the last call, other tokens give what they give in a fresh cache."""
    model = model_of(family)
    make = {
        "dynamic": lambda: minilm.DynamicCache(model.config),
        "static": lambda: minilm.StaticCache(model.config, 2, 40),
    }[kind]
    ids = torch.randint(0, 190, (2, 20))
    cache, fresh = make(), make()
    model(ids[:, :12], cache=cache)
    model(ids[:, 3:7], cache=cache)
    cache.crop(13)
    assert cache.length == 13
    model(ids[:, :12], cache=fresh)
    model(ids[:, 3:4], cache=fresh)
    found, expected = (model(ids[:, 15:18], cache=used).logits for used in (cache, fresh))
    assert (found - expected).abs().max() <= NOISE


def test_going_back_too_far_in_a_sliding_layer_is_refused():
    """What the window has dropped cannot come back."""
    layer = SlidingLayer(4)
    for place in range(8):
        layer.update(heads(1, place), heads(1, place))
    layer.crop(7)
    with pytest.raises(ValueError, match=r"slides over 4 tokens.*back from 7 to 5"):
        layer.crop(5)
    with pytest.raises(ValueError, match="back from 7 to 6"):
        layer.crop(6)


def test_cropping_to_more_than_there_is_changes_nothing():
    """Also in a sliding layer that has dropped nothing yet."""
    for layer in (DynamicLayer(), SlidingLayer(4)):
        layer.update(heads(2), heads(2))
        for length in (2, 9):
            layer.crop(length)
            assert layer.length == 2
        keys, _ = layer.update(heads(1, 2), heads(1, 2))
        assert torch.equal(keys, heads(3))


def test_repeat_and_select():
    """Rows in place, one after the other; then any order."""
    config = FAMILIES["llama"].read_config(FAMILIES["llama"].tiny)
    cache = minilm.DynamicCache(config)
    for layer in cache.layers:
        layer.update(heads(2), heads(2))
    cache.repeat(3)
    assert cache.layers[0].buffers[0][:, 0, 0, 0].tolist() == [0, 0, 0, 100, 100, 100]
    cache.select(torch.tensor([5, 0]))
    one_layer = minilm.DynamicCache(config.replace(num_layers=1))
    one_layer.layers[0].update(heads(1), heads(1))
    one_layer.repeat(2)
    assert one_layer.layers[0].buffers[1][:, 0, 0, 0].tolist() == [0, 0, 100, 100]
    assert cache.layers[1].buffers[1][:, 0, 0, 0].tolist() == [100, 0]


def test_static_rows_are_selected_in_place():
    """Both keys and values, a row perhaps twice, without another buffer."""
    layer = StaticLayer(2, 3, 4, 4, torch.float32, "cpu")
    layer.update(heads(3), -heads(3))
    before = [buffer.data_ptr() for buffer in layer.buffers]
    layer.select(torch.tensor([1, 1]))
    for buffer, expected in zip(layer.buffers, (heads(3), -heads(3)), strict=True):
        assert torch.equal(buffer[:, :, :3], expected[[1, 1]])
    assert [buffer.data_ptr() for buffer in layer.buffers] == before


@pytest.mark.parametrize(
    "make", [DynamicLayer, lambda: SlidingLayer(4), lambda: StaticLayer(2, 3, 9, 4, torch.float32, "cpu")]
)
def test_a_reset_layer_is_as_new(make):
    """It counts from 0 and returns nothing of before."""
    layer = make()
    layer.update(heads(5), heads(5))
    layer.reset()
    assert layer.length == layer.first_position == 0
    keys, values = layer.update(heads(2, 7), -heads(2, 7))
    assert torch.equal(keys, heads(2, 7)) and torch.equal(values, -heads(2, 7))


def test_an_empty_cache_has_nothing_to_lose():
    """Cropping, selecting and repeating before the first token do nothing."""
    for family in ("gemma", "mistral"):
        config = FAMILIES[family].read_config(FAMILIES[family].tiny)
        cache = minilm.DynamicCache(config.replace(num_layers=1, layer_windows=config.layer_windows and (4,)))
        cache.crop(0)
        cache.select(torch.tensor([0, 0]))
        cache.repeat(3)
        assert cache.length == cache.nbytes == 0


def test_a_static_cache_has_the_given_dtype_and_fits_to_the_last_token():
    layer = StaticLayer(2, 3, 4, 4, torch.bfloat16, "cpu")
    layer.update(heads(3).bfloat16(), heads(3).bfloat16())
    keys, _ = layer.update(heads(1, 3).bfloat16(), heads(1, 3).bfloat16())
    assert torch.equal(keys, heads(4).bfloat16())


def test_a_sliding_layer_keeps_no_more_than_it_is_given():
    """Keys and values are often views of one product with the queries, which may go."""
    layer, fused = SlidingLayer(4), torch.randn(2, 3, 5, 12)
    layer.update(fused[..., 4:8], fused[..., 8:])
    assert [buffer.untyped_storage().nbytes() for buffer in layer.buffers] == [2 * 3 * 5 * 4 * 4] * 2


def test_a_crop_that_one_layer_refuses_changes_none():
    config = FAMILIES["llama"].read_config(FAMILIES["llama"].tiny).replace(num_layers=2)
    for windows in ((None, 4), (4, None)):
        cache = minilm.DynamicCache(config.replace(layer_windows=windows))
        for _ in range(8):
            for layer in cache.layers:
                layer.update(heads(1), heads(1))
        with pytest.raises(ValueError, match="back from 8 to 3"):
            cache.crop(3)
        assert [layer.length for layer in cache.layers] == [8, 8]


def test_going_back_keeps_what_it_can():
    """To any length where no layer slides; else to nothing, unless only the last update is taken back."""
    config = FAMILIES["llama"].read_config(FAMILIES["llama"].tiny).replace(num_layers=2)
    for windows, left in ((None, 3), ((None, 4), 0), ((4, None), 0)):
        cache = minilm.DynamicCache(config.replace(layer_windows=windows))
        for size in (5, 1, 2):
            for layer in cache.layers:
                layer.update(heads(size), heads(size))
        assert cache.go_back(7) == cache.length == 7
        assert cache.go_back(3) == left
        assert [layer.length for layer in cache.layers] == [left, left]


def test_a_static_cache_does_not_move():
    """The same memory before and after, and what it takes is known beforehand."""
    config = FAMILIES["llama"].read_config(FAMILIES["llama"].tiny)
    cache = minilm.StaticCache(config, batch_size=2, max_length=16)
    assert cache.nbytes == 2 * config.num_layers * 2 * config.num_kv_heads * 16 * config.head_dim * 4
    before = [layer.buffers[0].data_ptr() for layer in cache.layers]
    model_of("llama")(torch.randint(0, 190, (2, 5)), cache=cache)
    cache.reset()
    assert cache.length == 0
    assert before == [layer.buffers[0].data_ptr() for layer in cache.layers]


def test_clear_refusals():
    """Full, of another batch, dtype or structure: the value, what was expected, and what to do."""
    layer = StaticLayer(2, 3, 4, 4, torch.float32, "cpu")
    layer.update(heads(3), heads(3))
    with pytest.raises(ValueError, match="holds 4 tokens; it has 3 and cannot take 2 more"):
        layer.update(heads(2), heads(2))
    with pytest.raises(ValueError, match="cannot be trained through"):
        layer.update(heads(1).requires_grad_(), heads(1).requires_grad_())
    sliding = SlidingLayer(4)
    sliding.update(heads(3), heads(3))
    for held in (layer, sliding):
        with pytest.raises(ValueError, match=r"holds 2 rows of 3 heads of 4 dimensions.*have 1, 3 and 4"):
            held.update(heads(1, rows=1), heads(1, rows=1))
        with pytest.raises(ValueError, match=r"holds torch\.float32 on cpu, the new keys are torch\.float64"):
            held.update(heads(1).double(), heads(1).double())
    with pytest.raises(ValueError, match="keeps its 2 rows; 3 were selected"):
        layer.select(torch.tensor([0, 0, 1]))
    qwen, llama = (FAMILIES[name].read_config(FAMILIES[name].tiny) for name in ("qwen2", "llama"))
    with pytest.raises(ValueError, match="layer 0 of this model sees all tokens"):
        minilm.SlidingWindowCache(qwen)
    with pytest.raises(ValueError, match="cropped to -1"):
        minilm.DynamicCache(llama).crop(-1)
    with pytest.raises(ValueError, match="must be at least 1"):
        minilm.StaticCache(llama, 0, 5)
    with pytest.raises(ValueError, match="max_length is 0; it must be at least 1"):
        minilm.StaticCache(llama, 1, 0)
    assert minilm.StaticCache(llama, 1, 1).max_length == 1


def test_a_sliding_window_cache_stays_small():
    """Its memory after 50 single tokens is that of its window."""
    model = model_of("mistral")
    cache = minilm.SlidingWindowCache(model.config)
    for token in torch.randint(0, 190, (50, 1, 1)):
        model(token, cache=cache)
    window = model.config.window(0)
    assert all(layer.buffers[0].shape[2] == window for layer in cache.layers)
