"""Unpadding: tokens taken out of a padded batch and put back, and the boundaries that kernels read."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minilm import masks, unpad

LEFT = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]])
RIGHT = LEFT.flip(-1)
ragged_masks = st.integers(1, 7).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=1, max_size=5
    )
)


def unchecked(function):
    """The function as users have it, without the annotation checks: its own messages answer."""
    return inspect.unwrap(function)


def test_real_tokens_of_a_batch_written_out():
    tokens = unpad.real_tokens(LEFT)
    assert tokens.indices.tolist() == [2, 3, 4, 5, 6, 7, 13, 14, 15]
    assert tokens.cu_seqlens.tolist() == [0, 2, 6, 6, 9]
    assert tokens.longest == 4 and isinstance(tokens.longest, int)
    assert (tokens.indices.dtype, tokens.cu_seqlens.dtype) == (torch.int64, torch.int32)
    assert unpad.real_tokens(RIGHT).indices.tolist() == [0, 1, 4, 5, 6, 7, 12, 13, 14]
    assert unpad.real_tokens(RIGHT).cu_seqlens.tolist() == [0, 2, 6, 6, 9]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int32, torch.int64])
def test_every_kind_of_mask_means_the_same(dtype):
    expected, got = unpad.real_tokens(LEFT), unpad.real_tokens(LEFT.to(dtype))
    assert torch.equal(got.indices, expected.indices) and torch.equal(got.cu_seqlens, expected.cu_seqlens)


def test_many_tokens_do_not_overflow_a_small_mask_dtype():
    tokens = unpad.real_tokens(torch.ones(2, 300, dtype=torch.int8))
    assert tokens.cu_seqlens.tolist() == [0, 300, 600] and tokens.longest == 300


def test_a_batch_of_padding_alone():
    tokens = unpad.real_tokens(torch.zeros(2, 3, dtype=torch.long))
    assert len(tokens.indices) == 0 and tokens.cu_seqlens.tolist() == [0, 0, 0] and tokens.longest == 0
    restored = unpad.pad(unpad.unpad(torch.randn(2, 3, 5), tokens.indices), tokens.indices, 2, 3)
    assert torch.equal(restored, torch.zeros(2, 3, 5))


def test_a_batch_of_no_rows():
    tokens = unpad.real_tokens(torch.zeros(0, 3, dtype=torch.long))
    assert len(tokens.indices) == 0 and tokens.cu_seqlens.tolist() == [0] and tokens.longest == 0


@settings(max_examples=40, deadline=None)
@given(ragged_masks, st.sampled_from([(), (3,), (2, 5)]))
def test_pad_undoes_unpad_and_its_gradient_is_unpad(rows, features):
    mask = torch.tensor(rows)
    batch, length = mask.shape
    x = torch.randn(batch, length, *features, dtype=torch.float64, requires_grad=True)
    tokens = unpad.real_tokens(mask)
    packed = unpad.unpad(x, tokens.indices)
    for row in range(batch):  # by the definition of cu_seqlens
        here = packed[tokens.cu_seqlens[row] : tokens.cu_seqlens[row + 1]]
        assert torch.equal(here, x[row][mask[row].bool()])

    real = mask.bool().view(batch, length, *(1 for _ in features))
    restored = unpad.pad(packed, tokens.indices, batch, length)
    assert torch.equal(restored, x.masked_fill(~real, 0.0))

    weight = torch.randn_like(restored)
    (gradient,) = torch.autograd.grad((restored * weight).sum(), x)
    assert torch.equal(gradient, weight.masked_fill(~real, 0.0))
    upstream = torch.randn_like(packed)
    free = packed.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(
        unpad.pad(free, tokens.indices, batch, length),
        free,
        unpad.pad(upstream, tokens.indices, batch, length),
    )
    assert torch.equal(gradient, upstream)


@settings(max_examples=40, deadline=None)
@given(ragged_masks)
def test_positions_restart_at_each_sequence(rows):
    mask = torch.tensor(rows)
    tokens = unpad.real_tokens(mask)
    positions = unpad.packed_position_ids(tokens.cu_seqlens)
    assert positions.dtype == torch.int64
    # The same positions as the padded batch counts, on its real tokens.
    assert torch.equal(positions, masks.position_ids_from_mask(mask).flatten()[tokens.indices])


def test_positions_written_out():
    cu_seqlens = torch.tensor([0, 3, 3, 4, 6], dtype=torch.int32)
    assert unpad.packed_position_ids(cu_seqlens).tolist() == [0, 1, 2, 0, 0, 1]


class TestQueryTokens:
    def test_as_many_queries_as_keys(self):
        for mask in (LEFT, RIGHT):
            expected, got = unpad.real_tokens(mask), unpad.query_tokens(mask, 4)
            assert torch.equal(got.indices, expected.indices)
            assert torch.equal(got.cu_seqlens, expected.cu_seqlens) and got.longest == expected.longest

    def test_one_query_of_one_key_is_a_prefill(self):
        assert unpad.query_tokens(torch.tensor([[1], [0], [1]]), 1).indices.tolist() == [0, 2]

    def test_one_query_for_every_row(self):
        tokens = unpad.query_tokens(LEFT, 1)
        assert tokens.indices.tolist() == [0, 1, 2, 3]
        assert tokens.cu_seqlens.tolist() == [0, 1, 2, 3, 4] and tokens.longest == 1
        assert (tokens.indices.dtype, tokens.cu_seqlens.dtype) == (torch.int64, torch.int32)

    def test_the_last_queries_under_left_padding(self):
        tokens = unpad.query_tokens(LEFT, 3)  # places in the [4, 3] batch of queries
        assert tokens.indices.tolist() == [1, 2, 3, 4, 5, 9, 10, 11]
        assert tokens.cu_seqlens.tolist() == [0, 2, 5, 5, 8] and tokens.longest == 3

    @pytest.mark.parametrize("query_length", [0, 5, -1])
    def test_more_queries_than_keys_are_refused(self, query_length):
        with pytest.raises(ValueError, match=f"query_length is {query_length}; allowed are 1 to 4"):
            unpad.query_tokens(LEFT, query_length)


@pytest.mark.parametrize("find", [unpad.real_tokens, lambda mask: unpad.query_tokens(mask, 1)])
@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(4, dtype=torch.long), r"\(4,\) torch.int64"),
        (torch.ones(2, 1, 4, 4, dtype=torch.bool), r"\(2, 1, 4, 4\) torch.bool"),
        (torch.zeros(2, 4), r"\(2, 4\) torch.float32"),  # 0 where visible: the additive kind
    ],
)
def test_what_is_not_a_padding_mask_is_refused(find, mask, words, monkeypatch):
    for name in ("real_tokens", "query_tokens"):
        monkeypatch.setattr(unpad, name, unchecked(getattr(unpad, name)))
    with pytest.raises(ValueError, match=words + ".*integers or booleans, with 1 = real token"):
        unchecked(find)(mask)


def test_tokens_without_a_place_are_refused():
    with pytest.raises(ValueError, match="2 tokens and 3 indices"):
        unchecked(unpad.pad)(torch.randn(2, 4), torch.tensor([0, 1, 2]), 2, 2)
    with pytest.raises(ValueError, match="3 tokens and 3 indices for a batch of 1 × 2"):
        unpad.pad(torch.randn(3, 4), torch.tensor([0, 1, 2]), 1, 2)
    with pytest.raises(ValueError, match=r"x is \(4,\); it must be \[batch, length, …\]"):
        unchecked(unpad.unpad)(torch.randn(4), torch.tensor([0]))


@pytest.mark.parametrize(
    ("cu_seqlens", "total", "words"),
    [
        (torch.tensor([0, 2, 5]), 5, "torch.int64; kernels read .* torch.int32"),
        (torch.tensor([[0, 2, 5]], dtype=torch.int32), 5, r"\(1, 3\) torch.int32"),
        (torch.tensor([[0, 2], [2, 5]], dtype=torch.int32), 5, r"\(2, 2\) torch.int32"),
        (torch.tensor([0], dtype=torch.int32), 0, r"\(1,\) torch.int32"),
        (torch.tensor([2, 3], dtype=torch.int32), 5, r"\[2, 3\]; it must begin with 0.*cumsum"),  # lengths
        (torch.tensor([0, 3, 2, 5], dtype=torch.int32), 5, "never fall"),
        (torch.tensor([0, 2, 4], dtype=torch.int32), 5, "end with the number of tokens, 5"),
    ],
)
def test_boundaries_that_a_kernel_would_misread_are_refused(cu_seqlens, total, words):
    with pytest.raises(ValueError, match="cu_seqlens_q is .*" + words):
        unpad.check_cu_seqlens("cu_seqlens_q", cu_seqlens, total)


def test_positions_of_lengths_are_refused():
    with pytest.raises(ValueError, match=r"cu_seqlens is .*must begin with 0"):
        unpad.packed_position_ids(torch.tensor([2, 3], dtype=torch.int32))
    unpad.packed_position_ids(torch.tensor([0, 2, 3], dtype=torch.int32))
