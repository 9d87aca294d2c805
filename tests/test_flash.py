"""FlashAttention, tile by tile, against attention written out in float64 with a mask made entry by entry.

Measured over 60 draws (scores of std 4, 83 keys): 8e-15 in float64, 3e-6 in fp32, of out and of lse; bf16
and fp16 are fp32 rounded once. Gradients, relative to the largest: 3e-15, 2e-6, 1e-2 in bf16, 1e-3 in fp16.
"""

import inspect
import itertools
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from minilm import backends, flash, masks, unpad

INF = float("inf")
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-5}


def band_mask(query_length, key_length, causal=True, left=-1, right=-1, alignment="bottom-right"):
    """Entry by entry, as flash-attn documents it; left and right are inclusive, -1 = no bound."""
    offset = key_length - query_length if alignment == "bottom-right" else 0

    def sees(i, j):
        distance = i + offset - j
        return (
            (not causal or distance >= 0)
            and (left < 0 or distance <= left)
            and (right < 0 or distance >= -right)
        )

    rows = [[sees(i, j) for j in range(key_length)] for i in range(query_length)]
    return torch.tensor(rows, dtype=torch.bool).view(query_length, key_length)


def dense(query, key, value, mask, scale):
    """softmax(Q·Kᵀ·scale)·V and its log-sum-exp in float64; rows that see nothing give 0 and -inf."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(groups, 1) for x in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query.double(), key) * scale
    weights = torch.zeros_like(scores)
    seen = mask.any(-1)
    weights[:, :, seen] = scores[:, :, seen].masked_fill(~mask[seen], -INF).softmax(-1)
    lse = scores.masked_fill(~mask, -INF).logsumexp(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, value), lse


def random_qkv(query_length, key_length, heads=6, kv_heads=2, head_dim=8, batch=2, dtype=torch.float64):
    """Queries and keys large enough that the softmax is far from even."""
    query = torch.randn(batch, heads, query_length, head_dim, dtype=dtype) * 2
    key = torch.randn(batch, kv_heads, key_length, head_dim, dtype=dtype) * 2
    return query, key, torch.randn(batch, kv_heads, key_length, head_dim, dtype=dtype)


def check(query, key, value, mask, scale=0.35, **options):
    out, lse = flash.flash_attention(query, key, value, scale=scale, **options)
    expected_out, expected_lse = dense(query, key, value, mask, scale)
    tolerance = TOLERANCE[query.dtype]
    assert out.dtype == lse.dtype == query.dtype
    torch.testing.assert_close(out.double(), expected_out, rtol=0, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=tolerance)  # -inf equals -inf


class TestForward:
    @pytest.mark.parametrize("block_size", [7, 16, 128])
    def test_every_length_to_70(self, block_size):
        for length in range(1, 71):
            check(*random_qkv(length, length, batch=1), band_mask(length, length), block_size=block_size)

    @pytest.mark.parametrize("lengths", [(1, 70), (3, 70), (33, 70), (69, 70), (70, 69), (70, 33), (70, 1)])
    @pytest.mark.parametrize("causal", [True, False])
    def test_queries_and_keys_of_different_number(self, lengths, causal):
        for block_size in (1, 16, 50):
            check(*random_qkv(*lengths), band_mask(*lengths, causal), causal=causal, block_size=block_size)

    @pytest.mark.parametrize("lengths", [(40, 40), (7, 40), (40, 7)])
    @pytest.mark.parametrize("window", [1, 2, 7, 8, 9, 39, 40, 41, 500])
    def test_windows_count_the_query_itself(self, lengths, window):
        for alignment in ("bottom-right", "top-left"):
            mask = band_mask(*lengths, left=window - 1, alignment=alignment)
            check(*random_qkv(*lengths), mask, window=window, alignment=alignment, block_size=8)

    @pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 3), (6, 2), (6, 1)])
    def test_heads_that_share_keys(self, heads, kv_heads):
        check(*random_qkv(20, 30, heads, kv_heads), band_mask(20, 30), block_size=8)

    @pytest.mark.parametrize("causal", [True, False])
    def test_fp32(self, causal):
        for window in (None, 11) if causal else (None,):
            mask = band_mask(70, 83, causal, left=-1 if window is None else window - 1)
            qkv = random_qkv(70, 83, dtype=torch.float32)
            check(*qkv, mask, causal=causal, window=window, block_size=16)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_rounded_once(self, dtype):
        query, key, value = random_qkv(70, 83, dtype=dtype)
        out, lse = flash.flash_attention(query, key, value, scale=0.35, block_size=16)
        expected_out, expected_lse = dense(query, key, value, band_mask(70, 83), 0.35)
        assert out.dtype == dtype and lse.dtype == torch.float32
        half_a_unit = torch.finfo(dtype).eps / 2
        assert ((out.double() - expected_out).abs() <= expected_out.abs() * half_a_unit + 2e-5).all()
        torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=2e-5)

    def test_equals_the_eager_backend(self):
        query, key, value = random_qkv(9, 33, dtype=torch.float32)
        eager, _ = backends.eager_attention(query, key, value, None, scale=0.35)
        out, _ = flash.flash_attention(query, key, value, scale=0.35, block_size=8)
        torch.testing.assert_close(out, eager, rtol=0, atol=2e-5)

    def test_the_mask_is_the_one_of_masks_visible(self):
        for query_length, key_length, window in itertools.product((1, 5, 12), (12, 20), (None, 1, 4, 50)):
            everything = query_length + key_length
            band = flash.Band(key_length - query_length, everything if window is None else window - 1, 0)
            rows, keys = slice(0, query_length), slice(0, key_length)
            got = flash.tile_mask(rows, keys, band)
            places = torch.arange(key_length)[None]
            expected = masks.visible(places[:, -query_length:], places, window=window)[0, 0]
            assert expected.all() if got is None else torch.equal(got, expected)

    @pytest.mark.parametrize("order", [1, -1])
    def test_scores_of_any_size_in_any_order(self, order):
        """Every tile raises the maximum by hundreds, or only the first one does; exp(1000) would be inf."""
        key = torch.linspace(-1000, 1000, 40, dtype=torch.float64).view(1, 1, 40, 1) * order
        query, value = torch.ones_like(key), torch.randn_like(key)
        check(query, key, value, band_mask(40, 40), scale=1.0, block_size=8)

    def test_layouts_that_are_not_contiguous(self):
        query, key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in random_qkv(20, 30))
        assert not key.is_contiguous()
        check(query, key, value, band_mask(20, 30), block_size=8)

    def test_no_queries_and_no_keys(self):
        out, lse = flash.flash_attention(*random_qkv(0, 5), scale=1.0)
        assert out.shape == (2, 6, 0, 8) and lse.shape == (2, 6, 0)
        out, lse = flash.flash_attention(*random_qkv(5, 0), scale=1.0)
        assert torch.equal(out, torch.zeros(2, 6, 5, 8).double())
        assert torch.equal(lse, torch.full((2, 6, 5), -INF).double())


class TestAlignment:
    @pytest.mark.parametrize(
        ("alignment", "rows"),  # the two examples of flash-attn's docstring, and what versions before 2.1 did
        [
            ("bottom-right", ["11110", "11111"]),
            ("top-left", ["10000", "11000"]),
            ("bottom-right", ["00", "00", "00", "10", "11"]),
            ("top-left", ["10", "11", "11", "11", "11"]),
        ],
    )
    def test_literal_masks(self, alignment, rows):
        literal = torch.tensor([[cell == "1" for cell in row] for row in rows])
        check(*random_qkv(*literal.shape), literal, alignment=alignment, block_size=2)

    def test_queries_that_see_nothing(self):
        query, key, value = (x.requires_grad_() for x in random_qkv(5, 2))
        out, lse = flash.flash_attention(query, key, value, scale=0.35, block_size=2)
        assert torch.equal(out[:, :, :3], torch.zeros_like(out[:, :, :3])) and (lse[:, :, :3] == -INF).all()
        grads = torch.autograd.grad(out.sum() + lse[:, :, 3:].sum(), (query, key, value))
        assert all(grad.isfinite().all() for grad in grads)
        assert (grads[0][:, :, :3] == 0).all() and (grads[0][:, :, 4] != 0).any()


class TestBackward:
    @pytest.mark.parametrize(
        ("lengths", "options", "left"),
        [
            ((30, 30), {}, -1),
            ((30, 30), {"causal": False}, -1),
            ((9, 30), {}, -1),
            ((30, 9), {}, -1),
            ((30, 30), {"window": 5}, 4),
            ((9, 30), {"window": 13}, 12),
            ((9, 30), {"alignment": "top-left"}, -1),
        ],
    )
    def test_gradients_of_the_dense_form(self, lengths, options, left):
        mask = band_mask(
            *lengths, options.get("causal", True), left, alignment=options.get("alignment", "bottom-right")
        )
        qkv = [x.requires_grad_() for x in random_qkv(*lengths)]
        weight = torch.randn(2, 6, lengths[0], 8, dtype=torch.float64)
        lse_weight = torch.randn(2, 6, lengths[0], dtype=torch.float64) * mask.any(-1)
        for block_size in (1, 7, 128):
            out, lse = flash.flash_attention(*qkv, scale=0.35, block_size=block_size, **options)
            loss = (out * weight).sum() + (lse.masked_fill(lse == -INF, 0) * lse_weight).sum()
            grads = torch.autograd.grad(loss, qkv)
            out, lse = dense(*qkv, mask, 0.35)
            loss = (out * weight).sum() + (lse[:, :, mask.any(-1)] * lse_weight[:, :, mask.any(-1)]).sum()
            for grad, expected in zip(grads, torch.autograd.grad(loss, qkv), strict=True):
                torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 2}])
    def test_gradcheck(self, options):
        qkv = [x.requires_grad_() for x in random_qkv(4, 5, heads=4, kv_heads=2, head_dim=2, batch=1)]

        def function(query, key, value):
            return flash.flash_attention(query, key, value, scale=0.5, block_size=2, **options)

        assert torch.autograd.gradcheck(function, qkv)  # of out and of lse

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.03)])
    def test_gradients_in_lower_precision(self, dtype, tolerance):
        """Relative to the largest gradient. bf16 loses most where the backward pass reads the rounded out."""
        qkv = [x.requires_grad_() for x in random_qkv(50, 50, dtype=dtype)]
        wide = [x.detach().double().requires_grad_() for x in qkv]
        weight = torch.randn(2, 6, 50, 8).to(dtype)
        out, _ = flash.flash_attention(*qkv, scale=0.35, block_size=16)
        expected = torch.autograd.grad((dense(*wide, band_mask(50, 50), 0.35)[0] * weight).sum(), wide)
        for grad, reference in zip(torch.autograd.grad((out * weight).sum(), qkv), expected, strict=True):
            assert grad.dtype == dtype
            assert (grad.double() - reference).abs().max() <= tolerance * reference.abs().max()

    def test_autocast_does_not_lower_the_precision(self):
        qkv = [x.requires_grad_() for x in random_qkv(20, 20, dtype=torch.float32)]
        results = []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                out, _ = flash.flash_attention(*qkv, scale=0.35, block_size=8)
                results.append((out, *torch.autograd.grad(out.sum(), qkv)))
        assert all(map(torch.equal, *results))

    def test_the_future_has_no_gradient(self):
        query, key, value = (x.requires_grad_() for x in random_qkv(20, 20))
        out, _ = flash.flash_attention(query, key, value, scale=0.35, block_size=8)
        for grad in torch.autograd.grad(out[:, :, 12].sum(), (key, value)):
            assert (grad[:, :, 13:] == 0).all() and (grad[:, :, :13] != 0).any(-1).all()

    def test_a_second_derivative_is_refused_rather_than_wrong(self):
        qkv = [x.requires_grad_() for x in random_qkv(4, 4)]
        (grad,) = torch.autograd.grad(
            flash.flash_attention(*qkv, scale=1.0)[0].pow(2).sum(), qkv[:1], create_graph=True
        )
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


class TestMerge:
    def test_two_sets_of_keys_make_the_whole(self):
        query, key, value = random_qkv(13, 40)
        whole = flash.flash_attention(query, key, value, scale=0.35, causal=False)
        for cut in (1, 16, 39):
            parts = [
                flash.flash_attention(query, k, v, scale=0.35, causal=False)
                for k, v in zip(key.split([cut, 40 - cut], 2), value.split([cut, 40 - cut], 2), strict=True)
            ]
            for first, second in (parts, parts[::-1]):
                for got, expected in zip(flash.merge_attention(*first, *second), whole, strict=True):
                    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)

    def test_merging_is_associative(self):
        query, key, value = random_qkv(13, 30)
        a, b, c = (
            flash.flash_attention(query, k, v, scale=0.35, causal=False)
            for k, v in zip(key.split(10, 2), value.split(10, 2), strict=True)
        )
        merge = flash.merge_attention
        for left, right in zip(merge(*merge(*a, *b), *c), merge(*a, *merge(*b, *c)), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-13)

    def test_large_scores(self):
        out = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        lse = torch.full((1, 1, 1), 1000.0, dtype=torch.float64)
        merged, merged_lse = flash.merge_attention(out, lse, 3 * out, lse)
        assert merged.item() == 2.0 and merged_lse.item() == pytest.approx(1000 + 0.6931471805599453)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_an_empty_side_changes_nothing_and_two_give_nothing(self, dtype):
        """Row 0 sees keys on both sides, row 1 on one, row 2 on none; nothing is NaN, gradients included."""
        out = torch.randn(1, 2, 3, 4).to(dtype).requires_grad_()
        lse = torch.tensor([0.5, 0.5, -INF]).expand(1, 2, 3).clone().requires_grad_()
        other = torch.randn(1, 2, 3, 4).to(dtype).requires_grad_()
        other_lse = torch.tensor([0.7, -INF, -INF]).expand(1, 2, 3).clone().requires_grad_()
        for sides in ((out, lse, other, other_lse), (other, other_lse, out, lse)):
            merged, merged_lse = flash.merge_attention(*sides)
            assert merged.dtype == dtype and merged_lse.dtype == torch.float32
            assert torch.equal(merged[:, :, 1], out[:, :, 1]) and (merged_lse[:, :, 1] == 0.5).all()
            assert (merged[:, :, 2] == 0).all() and (merged_lse[:, :, 2] == -INF).all()
            for grad in torch.autograd.grad(merged.sum() + merged_lse[:, :, :2].sum(), sides):
                assert grad.isfinite().all()

    def test_gradients_flow_through_a_merge(self):
        query, key, value = qkv = [x.requires_grad_() for x in random_qkv(6, 20)]
        parts = [
            flash.flash_attention(query, key[:, :, keys], value[:, :, keys], scale=0.35, causal=False)
            for keys in (slice(0, 7), slice(7, 20))
        ]
        weight = torch.randn(2, 6, 6, 8, dtype=torch.float64)
        grads = torch.autograd.grad((flash.merge_attention(*parts[0], *parts[1])[0] * weight).sum(), qkv)
        out, _ = dense(*qkv, band_mask(6, 20, causal=False), 0.35)
        for grad, expected in zip(grads, torch.autograd.grad((out * weight).sum(), qkv), strict=True):
            torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)


class Watch(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation made, and counts the matrix products."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        self.products += function in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default)
        return result


class TestMemoryAndWork:
    def test_no_matrix_of_all_scores_forward(self):
        query, key, value = random_qkv(8192, 8192, heads=1, kv_heads=1, batch=1, dtype=torch.float32)
        with Watch() as watch:
            flash.flash_attention(query, key, value, scale=0.35)
        assert watch.largest == 8192 * 8, (
            "the largest is as large as the input; all scores are 1024 times that"
        )

    def test_no_matrix_of_all_scores_backward(self):
        query, key, value = random_qkv(1024, 1024, heads=1, kv_heads=1, batch=1, dtype=torch.float32)
        query, key, value = (x.requires_grad_() for x in (query, key, value))
        with Watch() as watch:
            flash.flash_attention(query, key, value, scale=0.35)[0].sum().backward()
        tiles = 8 * 9 // 2
        assert watch.products == (2 + 5) * tiles, "the watch has seen the backward pass"
        assert watch.largest == 128 * 128

    def test_the_watch_would_see_it(self):
        query, key, value = random_qkv(512, 512, heads=1, kv_heads=1, batch=1, dtype=torch.float32)
        with Watch() as watch:
            backends.eager_attention(query, key, value, None, scale=0.35)
        assert watch.largest >= 512 * 512

    def test_keys_are_not_repeated_for_their_heads(self):
        query, key, value = random_qkv(1, 2048, heads=32, kv_heads=1, batch=1, dtype=torch.float32)
        with Watch() as watch:
            flash.flash_attention(query, key, value, scale=0.35)
        assert watch.largest == 32 * 128, "the largest is one tile of scores; repeated keys are 8 times that"

    @pytest.mark.parametrize(
        ("lengths", "options", "tiles"),
        [
            ((512, 512), {"causal": False}, 64),
            ((512, 512), {}, 36),  # the lower triangle of 8 × 8, with its diagonal
            ((64, 512), {}, 8),
            ((512, 512), {"window": 1}, 8),  # the diagonal
            ((512, 512), {"window": 64}, 15),  # and the one below it
            ((512, 64), {}, 1),  # seven tiles of queries see nothing
        ],
    )
    def test_tiles_that_nobody_sees_are_skipped(self, lengths, options, tiles):
        with Watch() as watch:
            flash.flash_attention(*random_qkv(*lengths, batch=1), scale=0.35, block_size=64, **options)
        assert watch.products == 2 * tiles

    @pytest.mark.parametrize("inside", [True, False])
    def test_only_tiles_on_the_edge_are_masked(self, inside):
        band = flash.Band(0, left=1000, right=0)
        mask = flash.tile_mask(slice(64, 128), slice(0, 64) if inside else slice(64, 128), band)
        assert mask is None if inside else torch.equal(mask, torch.ones(64, 64).tril().bool())


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"alignment": "left"}, "alignment is 'left'; allowed are 'bottom-right' and 'top-left'"),
            ({"window": 0}, "window is 0, causal True; a window is 1 or more"),
            ({"window": 4, "causal": False}, "window is 4, causal False; .* needs causal=True"),
            ({"block_size": 0}, "block_size is 0"),
        ],
    )
    def test_options_that_mean_nothing(self, options, words):
        with pytest.raises(ValueError, match=words):
            flash.flash_attention(*random_qkv(4, 4), scale=1.0, **options)

    def test_heads_that_cannot_share(self):
        with pytest.raises(ValueError, match="6 query heads cannot share 4 key heads"):
            flash.flash_attention(*random_qkv(4, 4, heads=6, kv_heads=4), scale=1.0)


def boundaries(lengths, device="cpu"):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def random_packed(
    query_lengths, key_lengths, heads=6, kv_heads=2, head_dim=8, dtype=torch.float64, device="cpu"
):
    """Many sequences end to end, and all that varlen_attention needs to tell them apart."""
    q = torch.randn(sum(query_lengths), heads, head_dim, device=device).to(dtype)
    k, v = (torch.randn(sum(key_lengths), kv_heads, head_dim, device=device).to(dtype) for _ in range(2))
    limits = (boundaries(query_lengths, device), boundaries(key_lengths, device))
    return q, k, v, *limits, max(query_lengths), max(key_lengths)


def dense_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, scale=None, causal=False, window_size=(-1, -1)):
    """One sequence at a time, sliced by its boundaries."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    left, right = window_size
    for (q_start, q_end), (k_start, k_end) in zip(
        itertools.pairwise(cu_seqlens_q.tolist()), itertools.pairwise(cu_seqlens_k.tolist()), strict=True
    ):
        query, key, value = (
            x[None].cpu().transpose(1, 2) for x in (q[q_start:q_end], k[k_start:k_end], v[k_start:k_end])
        )
        mask = band_mask(q_end - q_start, k_end - k_start, causal, left, right)
        out[q_start:q_end] = dense(query, key, value, mask, scale)[0][0].transpose(0, 1)
    return out


lengths = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5)
bounds = st.integers(-1, 10)


class TestVarlen:
    @settings(max_examples=60, deadline=None)
    @given(lengths, st.booleans(), st.tuples(bounds, bounds), st.sampled_from([(4, 4), (6, 2), (3, 1)]))
    def test_sequences_one_by_one(self, lengths, causal, window_size, heads):
        packed = random_packed(*zip(*lengths, strict=True), *heads)
        out = flash.varlen_attention(*packed, causal=causal, window_size=window_size)
        expected = dense_varlen(*packed[:5], causal=causal, window_size=window_size)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)

    def test_long_sequences_of_several_tiles(self):
        packed = random_packed((300, 1, 129), (300, 260, 140))
        out = flash.varlen_attention(*packed, softmax_scale=0.2, causal=True, window_size=(150, 0))
        expected = dense_varlen(*packed[:5], scale=0.2, causal=True, window_size=(150, 0))
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)

    @pytest.mark.parametrize("lengths", [((7, 12, 1), (7, 12, 1)), ((8, 8), (8, 8)), ((1, 1, 1), (9, 4, 30))])
    def test_gradients_stay_in_their_sequence(self, lengths):
        q, k, v, *limits = random_packed(*lengths)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        weight = torch.randn_like(q)
        loss = (flash.varlen_attention(*leaves, *limits, causal=True) * weight).sum()
        grads = torch.autograd.grad(loss, leaves)
        loss = (dense_varlen(*leaves, *limits[:2], causal=True) * weight).sum()
        expected = torch.autograd.grad(loss, leaves)
        for grad, reference in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, reference, rtol=0, atol=1e-12)

    def test_packed_equals_padded(self):
        """A padded batch under the eager backend, and the same tokens unpadded: prefill, chunk, one step."""
        mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 0, 0, 1]])
        query, key, value = random_qkv(6, 6, batch=3, dtype=torch.float32)
        positions = torch.arange(6)[None]
        for query_length in (6, 3, 1):
            queries = query[:, :, -query_length:]
            seen = masks.visible(positions[:, -query_length:], positions, mask.bool(), window=4)
            padded, _ = backends.eager_attention(queries, key, value, seen, scale=0.35)
            asked, kept = unpad.query_tokens(mask, query_length), unpad.real_tokens(mask)
            out = flash.varlen_attention(
                unpad.unpad(queries.transpose(1, 2), asked.indices),
                *(unpad.unpad(x.transpose(1, 2), kept.indices) for x in (key, value)),
                asked.cu_seqlens, kept.cu_seqlens, asked.longest, kept.longest,
                softmax_scale=0.35, causal=True, window_size=(3, 3),
            )  # fmt: skip
            out = unpad.pad(out, asked.indices, 3, query_length).transpose(1, 2)
            real = mask[:, -query_length:].bool()[:, None, :, None]
            torch.testing.assert_close(out, padded.masked_fill(~real, 0.0), rtol=0, atol=2e-5)

    def test_other_sequences_do_not_matter(self):
        q, k, v, *limits = random_packed((5, 7, 4), (5, 7, 4))
        out = flash.varlen_attention(q, k, v, *limits, causal=True)
        others = torch.cat((torch.arange(5), torch.arange(12, 16)))
        changed = [x.index_fill(0, others, INF if x is v else 100.0) for x in (q, k, v)]
        again = flash.varlen_attention(*changed, *limits, causal=True)
        assert torch.equal(out[5:12], again[5:12])

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"cu_seqlens_q": torch.tensor([0, 5, 12])}, "cu_seqlens_q is .* torch.int64; kernels read"),
            ({"cu_seqlens_k": torch.tensor([0, 5, 12])}, "cu_seqlens_k is .* torch.int64; kernels read"),
            ({"cu_seqlens_q": torch.tensor([5, 7], dtype=torch.int32)}, "must begin with 0"),
            ({"cu_seqlens_k": torch.tensor([0, 5, 11], dtype=torch.int32)}, "end with .* tokens, 12"),
            ({"cu_seqlens_k": torch.tensor([0, 12], dtype=torch.int32)}, "2 sequences and cu_seqlens_k 1"),
            ({"max_seqlen_q": 6}, "max_seqlen_q is 6 .* 7 queries"),
            ({"max_seqlen_k": 6}, "max_seqlen_k 6; .* 7 keys"),
            ({"dropout_p": 0.1}, "dropout_p is 0.1"),
        ],
    )
    def test_what_a_kernel_refuses_or_would_misread(self, changes, words):
        names = ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
        arguments = dict(zip(names, random_packed((5, 7), (5, 7)), strict=True)) | changes
        with pytest.raises(ValueError, match=words):
            inspect.unwrap(flash.varlen_attention)(**arguments)


def has_ampere():
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def dense_kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size):
    """What torch's varlen_attn does on a GPU, with the conditions that its kernel checks there."""
    assert query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] % 8 == 0
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and type(window_size) is tuple
    assert max_q >= cu_seq_q.diff().max() and max_k >= cu_seq_k.diff().max()
    out = dense_varlen(query, key, value, cu_seq_q, cu_seq_k, scale, window_size=window_size)
    return out.to(query.dtype)


def varlen_attn_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):  # fmt: skip
    return dense_kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


def varlen_attn_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError("Try setting enable_gqa=True for GQA.")
    return dense_kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


KERNELS = ("pure torch", "torch varlen", "flash-attn", "adapter on 2.11", "adapter on 2.13")
CONTRACT = [
    # query lengths, key lengths, (heads, kv_heads), head_dim, options
    ((5, 70, 33), (5, 70, 33), (4, 4), 16, {"causal": True}),
    ((5, 70, 33), (5, 70, 33), (6, 2), 16, {"causal": False}),
    ((130, 130), (130, 130), (6, 2), 16, {"causal": True}),
    ((1, 1, 1), (70, 3, 129), (6, 2), 16, {"causal": True}),
    ((4, 7), (70, 9), (6, 2), 16, {"causal": True, "softmax_scale": 0.5}),
    ((9, 70), (4, 33), (6, 2), 16, {"causal": True}),  # more queries than keys: the first see nothing
    ((5, 0, 33), (5, 0, 33), (6, 2), 16, {"causal": True}),
    ((5, 3, 0), (5, 0, 7), (6, 2), 16, {"causal": False}),
    ((5, 70, 33), (5, 70, 33), (6, 2), 16, {"causal": True, "window_size": (7, 7)}),
    ((5, 70, 33), (5, 70, 33), (6, 2), 16, {"causal": True, "window_size": (0, -1)}),
    ((5, 70, 33), (9, 90, 33), (6, 2), 16, {"causal": False, "window_size": (7, 3)}),
    ((1, 1), (70, 3), (6, 2), 16, {"causal": True, "window_size": (7, 0)}),
    ((5, 70, 33), (5, 70, 33), (6, 1), 12, {"causal": True}),  # a head_dim that the kernels have to round up
]


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    """A function with varlen_attention's contract, the device it runs on and the dtypes it takes."""
    half = [torch.bfloat16, torch.float16]
    if request.param == "pure torch":
        return flash.varlen_attention, "cpu", [torch.float32, torch.bfloat16]
    if request.param.startswith("adapter"):  # the real kernel is not needed to see what it would be told
        version = varlen_attn_2_11 if request.param.endswith("2.11") else varlen_attn_2_13
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", version)
        return flash.torch_varlen_attention, "cpu", half
    if not has_ampere():
        pytest.skip(f"{request.param} needs a CUDA device of compute capability 8.0 or later")
    if request.param == "torch varlen":
        return flash.torch_varlen_attention, "cuda", half
    name, function = flash.varlen_kernel("cuda")
    if not name.startswith("flash-attn"):
        pytest.skip("flash-attn is not installed")
    return function, "cuda", half


class TestKernels:
    @pytest.mark.parametrize(("query_lengths", "key_lengths", "heads", "head_dim", "options"), CONTRACT)
    def test_contract(self, kernel, query_lengths, key_lengths, heads, head_dim, options):
        """In half precision a kernel may round the weights and the result: 0.02 of values up to 4."""
        function, device, dtypes = kernel
        for dtype in dtypes:
            lengths = (query_lengths, key_lengths)
            packed = random_packed(*lengths, *heads, head_dim, dtype=dtype, device=device)
            out = function(*packed, **options)
            assert out.dtype == dtype and out.shape == packed[0].shape
            reference = {name.replace("softmax_", ""): value for name, value in options.items()}
            expected = dense_varlen(*packed[:5], **reference)
            tolerance = 2e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(out.double().cpu(), expected, rtol=0, atol=tolerance)

    def test_gradients(self, kernel):
        function, device, dtypes = kernel
        for dtype in dtypes:
            q, k, v, *limits = random_packed((5, 70, 33), (5, 70, 33), 6, 2, 16, dtype=dtype, device=device)
            leaves = [x.requires_grad_() for x in (q, k, v)]
            grads = torch.autograd.grad(function(*leaves, *limits, causal=True).sum(), leaves)
            wide = [x.detach().cpu().double().requires_grad_() for x in leaves]
            expected = torch.autograd.grad(dense_varlen(*wide, *limits[:2], causal=True).sum(), wide)
            tolerance = 2e-5 if dtype == torch.float32 else 5e-2
            for grad, reference in zip(grads, expected, strict=True):
                assert grad.dtype == dtype and grad.shape == reference.shape
                torch.testing.assert_close(grad.cpu().double(), reference, rtol=tolerance, atol=tolerance)

    def test_int64_boundaries_are_refused(self, kernel):
        function, device, dtypes = kernel
        q, k, v, *limits = random_packed((5, 7), (5, 7), head_dim=16, dtype=dtypes[-1], device=device)
        with pytest.raises((ValueError, RuntimeError), match="int32"):
            function(q, k, v, limits[0].long(), *limits[1:], causal=True)

    def test_the_adapter_speaks_to_the_installed_torch(self):
        """Tensors without values go through torch's own function as far as its shapes."""
        packed = random_packed((5, 7), (5, 7), heads=6, kv_heads=2, head_dim=12, dtype=torch.bfloat16)
        tensors = [x.to("meta") for x in packed[:5]]
        options = {"causal": True, "window_size": (4, 4), "softmax_scale": 0.3}
        assert flash.torch_varlen_attention(*tensors, *packed[5:], **options).shape == (12, 6, 12)

    def test_the_adapter_refuses_what_the_kernel_cannot_do(self):
        packed = random_packed((5, 7), (5, 7), dtype=torch.float32)
        with pytest.raises(ValueError, match=r"q is torch.float32; .* torch.bfloat16. Load the model"):
            flash.torch_varlen_attention(*packed)
        with pytest.raises(ValueError, match=r"dropout_p is 0.1"):
            flash.torch_varlen_attention(*packed, dropout_p=0.1)

    def test_all_have_one_signature(self):
        pure = inspect.signature(flash.varlen_attention)
        assert str(inspect.signature(flash.torch_varlen_attention)) == str(pure)
        assert list(pure.parameters) == [
            "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "dropout_p",
            "softmax_scale", "causal", "window_size",
        ]  # fmt: skip

    def test_choice_on_the_cpu(self):
        assert flash.varlen_kernel("cpu") == ("pure torch", flash.varlen_attention)
        assert flash.varlen_kernel(torch.device("meta")) == ("pure torch", flash.varlen_attention)

    @pytest.mark.parametrize("installed", [True, False])
    @pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
    def test_choice_on_cuda(self, installed, capability, monkeypatch):
        library = types.SimpleNamespace(__version__="2.8.3", flash_attn_varlen_func=print)
        monkeypatch.setitem(sys.modules, "flash_attn", library if installed else None)  # None: an ImportError
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        if capability < (8, 0):
            expected = ("pure torch", flash.varlen_attention)
        elif installed:
            expected = ("flash-attn 2.8.3", print)
        else:
            expected = ("torch varlen", flash.torch_varlen_attention)
        assert flash.varlen_kernel("cuda:0") == expected
