"""Laws that hold for any decoder, so they need no reference: what may not change an answer, and what must.

Measured in fp32 with logits of up to 9, over all families and backends: other shapes take other kernels,
which sum in another order, and that moves a logit by up to 2e-5 (80 tokens, one by one), elsewhere by 1.1e-5.
NOISE is twice the worst. The bugs that these laws are for move logits by 0.1 to 10.
"""

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minilm import DynamicCache, StaticCache
from minilm.families import FAMILIES
from minilm.heads import CausalLM
from minilm.parity import randomise

NOISE = 4e-5
LENGTH = 14  # more than twice the windows of the tiny models
few_examples = settings(max_examples=15, deadline=None, derandomize=True)


def every_model_with(*backends: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "family, backend", [(family, backend) for family in FAMILIES for backend in backends]
    )


every_model = every_model_with("eager", "sdpa", "flash")
every_model_that_pads = every_model_with("eager", "sdpa")  # flash leaves padding out, and takes no 4-D masks


@functools.cache
def _model(family: str, windows: tuple[int | None, ...] | None) -> CausalLM:
    config = FAMILIES[family].read_config(FAMILIES[family].tiny)
    if windows is not None:
        layers = itertools.islice(itertools.cycle(windows), config.num_layers)
        config = config.replace(layer_windows=None if windows == (None,) else tuple(layers))
    model = CausalLM(config).eval().requires_grad_(False)
    randomise(model, seed=1)
    return model


def model_of(family: str, backend: str, windows: tuple[int | None, ...] | None = None) -> CausalLM:
    """A small model of this family, always the same, with parameters that hide nothing.

    windows: None leaves the family's own; others are given to the layers in turn.
    """
    model = _model(family, windows)
    model.backend = backend
    return model


def tokens(model: CausalLM, rows: int = 2, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return (found - expected).abs().max().item()


def in_pieces(
    model: CausalLM, ids: torch.Tensor, cuts: list[int], cache: DynamicCache, **settings
) -> torch.Tensor:
    """Logits of a text that is given in pieces, cut at these places."""
    places = [0, *cuts, ids.shape[1]]
    return torch.cat(
        [model(ids[:, a:b], cache=cache, **settings).logits for a, b in itertools.pairwise(places)], dim=1
    )


def ragged(lengths: list[int], side: str, length: int = LENGTH) -> torch.Tensor:
    """The padding mask of rows with these lengths, padded on this side."""
    mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
    return (mask if side == "right" else mask.flip(1)).long()


# --------------------------------------------------------------------------------------------------
# What may not change an answer


@every_model
@given(cuts=st.sets(st.integers(1, LENGTH - 1)))
@few_examples
def test_chunked_is_one_shot(family, backend, cuts):
    """A cache makes no difference, wherever the text is cut; no cut at all: a cache that is only filled."""
    model = model_of(family, backend)
    ids = tokens(model)
    found = in_pieces(model, ids, sorted(cuts), DynamicCache(model.config))
    assert difference(found, model(ids).logits) < NOISE


@every_model
def test_token_by_token_is_one_shot(family, backend):
    """Decoding well past the window, and beyond the room that a growing cache starts with."""
    model = model_of(family, backend)
    length = min(80, model.config.max_positions if model.config.rope is None else 80)
    ids = tokens(model, length=length)
    found = in_pieces(model, ids, list(range(1, length)), DynamicCache(model.config))
    assert difference(found, model(ids).logits) < NOISE


@every_model
@given(
    lengths=st.lists(st.integers(1, LENGTH), min_size=2, max_size=3), side=st.sampled_from(["left", "right"])
)
@few_examples
def test_padding_and_company_change_nothing(family, backend, lengths, side):
    """A row of a padded batch is what it is alone, without padding and without the other rows."""
    model = model_of(family, backend)
    ids, mask = tokens(model, rows=len(lengths)), ragged(lengths, side)
    found = model(ids, attention_mask=mask).logits
    for row in range(len(lengths)):
        real = mask[row].bool()
        assert difference(found[row][real], model(ids[row][real][None]).logits[0]) < NOISE


@every_model
def test_a_batch_is_its_rows(family, backend):
    model = model_of(family, backend)
    ids = tokens(model, rows=4)
    alone = torch.cat([model(row[None]).logits for row in ids])
    assert difference(model(ids).logits, alone) < NOISE


@every_model
@given(
    cuts=st.sets(st.integers(1, LENGTH - 1), min_size=1, max_size=3),
    lengths=st.lists(st.integers(1, LENGTH), min_size=2, max_size=2),
    side=st.sampled_from(["left", "right"]),
)
@few_examples
def test_padding_and_chunks_together(family, backend, cuts, lengths, side):
    """Padded rows through a cache: the mask covers what is cached, and positions count real tokens only."""
    model = model_of(family, backend)
    ids, mask, cache = tokens(model), ragged(lengths, side), DynamicCache(model.config)
    found = [
        model(ids[:, a:b], attention_mask=mask[:, :b], cache=cache).logits
        for a, b in itertools.pairwise([0, *sorted(cuts), LENGTH])
    ]
    real = mask.bool()
    assert difference(torch.cat(found, dim=1)[real], model(ids, attention_mask=mask).logits[real]) < NOISE


@every_model
@given(
    windows=st.sampled_from([(None,), (1,), (2, None), (5, 3)]),
    kind=st.sampled_from(["dynamic", "static"]),
    cuts=st.sets(st.integers(1, LENGTH - 1), max_size=4),
    lengths=st.lists(st.integers(0, LENGTH), min_size=2, max_size=3).filter(any),
    side=st.sampled_from(["left", "right"]),
)
@few_examples
def test_windows_caches_chunks_and_padding_together(family, backend, windows, kind, cuts, lengths, side):
    """Any of them with any other, beside each row alone, in one shot, by the formula of attention."""
    model = model_of(family, backend, windows)
    ids, mask = tokens(model, rows=len(lengths)), ragged(lengths, side)
    cache = (
        DynamicCache(model.config) if kind == "dynamic" else StaticCache(model.config, len(lengths), LENGTH)
    )
    found = torch.cat(
        [
            model(ids[:, a:b], attention_mask=mask[:, :b], cache=cache).logits
            for a, b in itertools.pairwise([0, *sorted(cuts), LENGTH])
        ],
        dim=1,
    )
    assert torch.isfinite(found).all()
    model = model_of(family, "eager", windows)
    for row, real in enumerate(mask.bool()):
        if real.any():
            assert difference(found[row][real], model(ids[row][real][None]).logits[0]) < NOISE


@every_model
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_at_padding_is_never_read(family, backend, side):
    """Other tokens there: the same shapes, the same kernels, so real tokens are equal bit for bit."""
    model = model_of(family, backend)
    mask = ragged([LENGTH, 5, 1], side)
    ids = tokens(model, rows=3)
    others = torch.where(mask.bool(), ids, (ids + 1) % model.config.vocab_size)
    found, expected = (model(each, attention_mask=mask).logits for each in (others, ids))
    real = mask.bool()
    assert torch.equal(found[real], expected[real])
    assert not torch.equal(others, ids)


@every_model
def test_a_mask_of_ones_is_no_mask(family, backend):
    model = model_of(family, backend)
    ids = tokens(model)
    assert torch.equal(model(ids, attention_mask=torch.ones_like(ids)).logits, model(ids).logits)
    assert torch.equal(model(ids, attention_mask=torch.ones_like(ids).bool()).logits, model(ids).logits)


@every_model
def test_embeddings_stand_for_their_tokens(family, backend):
    model = model_of(family, backend)
    ids = tokens(model)
    assert torch.equal(model(inputs_embeds=model.decoder.embed(ids)).logits, model(ids).logits)


@every_model_that_pads
def test_a_four_dimensional_mask_says_it_all(family, backend):
    """Two documents side by side, hidden from each other by a mask of blocks: each is what it is alone."""
    model = model_of(family, backend)
    ids, cut = tokens(model), 6
    place = torch.arange(LENGTH)
    blocks = (place[:, None] >= place) & ((place[:, None] >= cut) == (place >= cut))
    positions = torch.where(place < cut, place, place - cut)[None]
    found = model(ids, attention_mask=blocks[None, None], position_ids=positions).logits
    if model.config.layer_windows:
        # Such a mask says all: it replaces the window as well.
        model = CausalLM(model.config.replace(layer_windows=None), backend).eval().requires_grad_(False)
        model.load_state_dict(model_of(family, backend).state_dict())
    alone = torch.cat((model(ids[:, :cut]).logits, model(ids[:, cut:]).logits), dim=1)
    assert difference(found, alone) < NOISE


@every_model_that_pads
def test_a_four_dimensional_mask_goes_through_a_cache(family, backend):
    """A band of four keys, narrower than any window here, in one shot and in pieces."""
    model = model_of(family, backend)
    ids, place, cache = tokens(model), torch.arange(LENGTH), DynamicCache(model.config)
    distance = place[:, None] - place
    band = ((distance >= 0) & (distance < 4))[None, None]
    found = [
        model(ids[:, a:b], attention_mask=band[:, :, a:b, :b], cache=cache).logits
        for a, b in itertools.pairwise([0, 8, 9, LENGTH])
    ]
    expected = model(ids, attention_mask=band).logits
    assert difference(expected, model(ids).logits) > 0.1
    assert difference(torch.cat(found, dim=1), expected) < NOISE


@every_model
@pytest.mark.parametrize("keep", [1, 3, LENGTH])
def test_logits_to_keep_are_the_last_ones(family, backend, keep):
    model = model_of(family, backend)
    ids = tokens(model)
    assert difference(model(ids, logits_to_keep=keep).logits, model(ids).logits[:, -keep:]) < NOISE


# --------------------------------------------------------------------------------------------------
# Causality and positions


@every_model
def test_the_future_has_no_gradient(family, backend):
    """d logits[t] / d embeddings[t+1:] is exactly 0, with and without padding, and so it is for padding."""
    model = model_of(family, backend)
    ids = tokens(model)
    for mask in (None, ragged([LENGTH, 9], "left"), ragged([LENGTH, 12], "right")):
        embeds = model.decoder.embed(ids).requires_grad_()
        logits = model(inputs_embeds=embeds, attention_mask=mask).logits
        for t in (0, 4, 10):
            (gradient,) = torch.autograd.grad(logits[:, t].square().sum(), embeds, retain_graph=True)
            assert not gradient[:, t + 1 :].any()
            assert gradient[0, t].any()
            if mask is not None:
                hidden = ~mask.bool() & (torch.arange(LENGTH) != t)
                assert not gradient[hidden].any()


@every_model
def test_the_past_reaches_as_far_as_the_windows(family, backend):
    """W keys in each layer, the query's own included: each sliding layer reaches W - 1 further back."""
    model = model_of(family, backend)
    windows = model.config.layer_windows or (None,) * model.config.num_layers
    reach = None if None in windows else sum(window - 1 for window in windows)
    length = 24
    embeds = model.decoder.embed(tokens(model, length=length)).requires_grad_()
    logits = model(inputs_embeds=embeds).logits
    (gradient,) = torch.autograd.grad(logits[:, -1].square().sum(), embeds)
    touched = gradient.abs().sum(-1)[0] > 0
    first = 0 if reach is None else length - 1 - reach
    assert touched[first:].all() and not touched[:first].any()


@every_model
@pytest.mark.parametrize("shift", [1, 37])
def test_shifting_all_positions(family, backend, shift):
    """Rotary models see distances alone; a learned table gives every place its own meaning."""
    model = model_of(family, backend)
    ids, positions = tokens(model), torch.arange(LENGTH)[None]
    moved = difference(
        model(ids, position_ids=positions + shift).logits, model(ids, position_ids=positions).logits
    )
    assert moved > 1 if model.config.rope is None else moved < NOISE


@every_model
def test_positions_and_order_matter(family, backend):
    """The counterpart of the law before: positions that stretch the distances do change the answer."""
    model = model_of(family, backend)
    ids, positions = tokens(model), torch.arange(LENGTH)[None]
    assert difference(model(ids, position_ids=2 * positions).logits, model(ids).logits) > 0.1
    swapped = ids.clone()
    swapped[:, :2] = ids[:, :2].flip(1)
    assert difference(model(swapped).logits[:, 2:4], model(ids).logits[:, 2:4]) > 0.1


# --------------------------------------------------------------------------------------------------
# Rows that see nothing


@every_model
def test_queries_without_keys_disturb_nobody(family, backend):
    """Left padding, and a row of padding alone: no NaN forward or backward, no trace in real tokens."""
    model = model_of(family, backend)
    ids, mask = tokens(model, rows=3), ragged([LENGTH, 4, 0], "left")
    embeds = model.decoder.embed(ids).requires_grad_()
    logits = model(inputs_embeds=embeds, attention_mask=mask).logits
    assert torch.isfinite(logits).all()
    (gradient,) = torch.autograd.grad(logits[mask.bool()].square().sum(), embeds, retain_graph=True)
    assert torch.isfinite(gradient).all()
    assert not gradient[~mask.bool()].any()
    (gradient,) = torch.autograd.grad(logits.square().sum(), embeds)  # padding's own logits counted as well
    assert torch.isfinite(gradient).all()
    assert difference(logits[:1], model(ids[:1]).logits) < NOISE


@every_model_that_pads
def test_attention_of_a_query_without_keys_is_zero(family, backend):
    """What a padded query takes from others is exactly nothing; o_proj then adds its bias alone."""
    model, contexts = model_of(family, backend), []
    handles = [
        block.attention.o_proj.register_forward_pre_hook(lambda _, inputs: contexts.append(inputs[0]))
        for block in model.decoder.layers
    ]
    model(tokens(model), attention_mask=ragged([LENGTH, 5], "left"))
    for handle in handles:
        handle.remove()
    assert len(contexts) == model.config.num_layers
    for context in contexts:
        assert not context[1, : LENGTH - 5].any()
        assert context[1, LENGTH - 5 :].any() and context[0].any()


# --------------------------------------------------------------------------------------------------
# The cache as an object


@every_model
@given(rows=st.lists(st.integers(0, 2), min_size=1, max_size=4), cut=st.integers(1, LENGTH - 1))
@few_examples
def test_selected_rows_go_on_as_themselves(family, backend, rows, cut):
    """cache.select reorders, drops and repeats rows, as beam search needs; then each goes on alone."""
    model = model_of(family, backend)
    ids, rows = tokens(model, rows=3), torch.tensor(rows)
    cache = DynamicCache(model.config)
    model(ids[:, :cut], cache=cache)
    cache.select(rows)
    assert cache.length == cut
    continued = in_pieces(model, ids[rows, cut:], [1] if cut < LENGTH - 1 else [], cache)
    assert difference(continued, model(ids).logits[rows, cut:]) < NOISE


@every_model
def test_a_reset_cache_remembers_nothing(family, backend):
    """The second prompt gets, bit for bit, what it gets from a new cache, whatever came before."""
    model = model_of(family, backend)
    first, second = tokens(model, rows=3, length=20, seed=1), tokens(model, rows=2, seed=2)
    used, fresh = DynamicCache(model.config), DynamicCache(model.config)
    in_pieces(model, first, [3, 4], used)
    used.reset()
    assert used.length == 0
    found, expected = (in_pieces(model, second, [5, 6, 7], cache) for cache in (used, fresh))
    assert torch.equal(found, expected)


@every_model
def test_a_cache_counts_what_it_has_seen(family, backend):
    model = model_of(family, backend)
    cache = DynamicCache(model.config)
    assert cache.length == 0
    for length in (5, 8, 9):
        out = model(tokens(model, length=length)[:, cache.length :], cache=cache)
        assert out.cache is cache and cache.length == length


@every_model
def test_gradients_flow_through_a_cache(family, backend):
    """Training through chunks: gradients of the first chunk's embeddings are those of one shot."""
    model = model_of(family, backend)
    ids, gradients = tokens(model), []
    for cuts in ([], [6, 7]):
        embeds = model.decoder.embed(ids).requires_grad_()
        cache = DynamicCache(model.config)
        places = [0, *cuts, LENGTH]
        logits = [
            model(inputs_embeds=embeds[:, a:b], cache=cache).logits for a, b in itertools.pairwise(places)
        ]
        gradients.append(torch.autograd.grad(torch.cat(logits, dim=1)[:, -1].square().sum(), embeds)[0])
    scale = gradients[0].abs().max().item()
    assert difference(*gradients) < NOISE * scale
