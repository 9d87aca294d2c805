"""FlashAttention in plain PyTorch: exact attention that never holds the [query, key] matrix of scores.

A softmax needs the maximum and the sum of a whole row, so it seems to need all keys at once. It does not:
keep both for the keys seen so far, and when a new tile raises the maximum, shrink what was summed before.

    for each tile of queries
        for each tile of keys that they see
            absorb the tile: accumulator, peak (largest score) and total (sum of exponentials)
        out = accumulator / total            lse = peak + log(total), the log-sum-exp of the row

The backward pass keeps only out and lse, and computes each tile's weights again: exp(score - lse). So memory
grows with the length, not with its square; on a GPU time falls too, for a tile's scores never leave the chip.
Source: FlashAttention-2, Dao 2023, algorithms 1 and 2. Online softmax: Milakov & Gimelshein 2018.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minilm.unpad import check_cu_seqlens

Queries = Float[Tensor, "batch heads query head_dim"]
Keys = Float[Tensor, "batch kv_heads key head_dim"]
RowSums = Float[Tensor, "batch heads query"]
# The rows of a tile are its queries, once for each head that shares a key head: they meet the same keys.
Tile = Float[Tensor, "batch kv_heads rows head_dim"]
TileSums = Float[Tensor, "batch kv_heads rows"]
TileScores = Float[Tensor, "batch kv_heads rows key"]
PackedQueries = Float[Tensor, "total_q heads head_dim"]
PackedKeys = Float[Tensor, "total_k kv_heads head_dim"]
Boundaries = Int[Tensor, " batch_plus_1"]

BLOCK_SIZE = 128  # queries, and keys, in a tile: small enough for a CPU's caches as well
INF = float("inf")


class Band(NamedTuple):
    """Which keys query i sees: the one where it stands, i + offset, left keys before it, right after it."""

    offset: int
    left: int
    right: int


def tiles(start: int, stop: int, block_size: int) -> list[slice]:
    """Cut the places from start to stop into pieces of block_size; the last may be shorter."""
    return [slice(first, min(first + block_size, stop)) for first in range(start, stop, block_size)]


def key_tiles(rows: slice, key_length: int, band: Band, block_size: int) -> list[slice]:
    """Cut the keys that one of these queries sees. The rest is skipped: half of all tiles if causal."""
    first = max(rows.start + band.offset - band.left, 0)
    stop = min(rows.stop + band.offset + band.right, key_length)
    return tiles(first, stop, block_size)


def tile_mask(
    rows: slice, keys: slice, band: Band, device: torch.device | None = None
) -> Bool[Tensor, "query key"] | None:
    """True where a query of the tile sees a key of it; None where all see all, as inside the band."""
    first, last = rows.start + band.offset, rows.stop - 1 + band.offset
    if last - keys.start <= band.left and keys.stop - 1 - first <= band.right:
        return None
    places = torch.arange(first, last + 1, device=device)[:, None]
    distance = places - torch.arange(keys.start, keys.stop, device=device)
    return (distance <= band.left) & (distance >= -band.right)


def tile_scores(query: Tile, key: Keys, mask: Bool[Tensor, "query key"] | None) -> TileScores:
    """The scores of one tile, -inf where a query does not see a key."""
    scores = query @ key.transpose(2, 3)
    if mask is not None:
        scores.unflatten(2, (-1, mask.shape[0])).masked_fill_(~mask, -INF)
    return scores


def absorb_tile(
    accumulator: Tile, peak: TileSums, total: TileSums, scores: TileScores, value: Keys
) -> tuple[Tile, TileSums, TileSums]:
    """Let a softmax that is under way see one more tile of keys.

    Over the keys so far, peak is the largest score, total = Σ exp(score - peak) and accumulator
    = Σ exp(score - peak)·value. Where the peak rises, both sums are too large, by exp(new peak - old peak).
    """
    new_peak = torch.maximum(peak, scores.amax(-1))
    # A row that has seen no key has peak -inf, and -inf - -inf is NaN; measured from 0, its weights are 0.
    origin = new_peak.masked_fill(new_peak == -INF, 0.0)
    weights = torch.exp(scores - origin[..., None])
    shrink = torch.exp(peak - origin)
    return accumulator * shrink[..., None] + weights @ value, new_peak, total * shrink + weights.sum(-1)


def without_autocast(one_pass: Callable) -> Callable:
    """Autocast would round the products of both passes to bf16, whatever their inputs were widened to."""

    def wrapped(ctx: Any, tensor: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
        with torch.autocast(tensor.device.type, enabled=False):
            return one_pass(ctx, tensor, *rest)

    return wrapped


class TiledAttention(torch.autograd.Function):
    """Both passes, tile by tile, summed in fp32 or wider and rounded to the input's dtype at the end.

    Shapes: query [batch, kv_heads, groups, query, head_dim], so that no key is repeated for its heads.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, band: Band, block_size: int
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(query.dtype, torch.float32)
        wide_query, wide_key, wide_value = query.to(wide) * scale, key.to(wide), value.to(wide)
        groups, query_length, key_length = query.shape[2], query.shape[3], key.shape[2]
        out = query.new_empty(query.shape)
        lse = wide_query.new_empty(query.shape[:-1])
        for rows in tiles(0, query_length, block_size):
            tile_query = wide_query[:, :, :, rows].flatten(2, 3)
            accumulator = torch.zeros_like(tile_query)
            peak = tile_query.new_full(tile_query.shape[:-1], -INF)
            total = torch.zeros_like(peak)
            for keys in key_tiles(rows, key_length, band, block_size):
                mask = tile_mask(rows, keys, band, query.device)
                scores = tile_scores(tile_query, wide_key[:, :, keys], mask)
                accumulator, peak, total = absorb_tile(
                    accumulator, peak, total, scores, wide_value[:, :, keys]
                )
            # A row that saw no key has total 0: out 0 instead of 0/0, and lse = -inf + log 0 = -inf.
            tile_out = accumulator / total.masked_fill(total == 0, 1.0)[..., None]
            out[:, :, :, rows] = tile_out.unflatten(2, (groups, -1))
            lse[:, :, :, rows] = (peak + total.log()).unflatten(2, (groups, -1))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.scale, ctx.band, ctx.block_size = scale, band, block_size
        return out, lse

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        scale, band, block_size, wide = ctx.scale, ctx.band, ctx.block_size, lse.dtype
        wide_query, wide_key, wide_value = query.to(wide) * scale, key.to(wide), value.to(wide)
        groups, query_length, key_length = query.shape[2], query.shape[3], key.shape[2]
        grad_out = grad_out.to(wide)
        # Softmax passes weight · (gradient - the row's weighted mean gradient) back, and that mean is
        # grad_out · out. The derivative of lse is the weights, so its gradient joins the mean.
        mean = (grad_out * out).sum(-1) - grad_lse
        lse = lse.masked_fill(lse == -INF, INF)  # so that exp(score - lse) is 0 in a row that saw no key
        grad_query, grad_key, grad_value = (torch.zeros_like(x) for x in (wide_query, wide_key, wide_value))
        for rows in tiles(0, query_length, block_size):
            tile_query, tile_grad_out = (x[:, :, :, rows].flatten(2, 3) for x in (wide_query, grad_out))
            tile_mean, tile_lse = (x[:, :, :, rows].flatten(2, 3)[..., None] for x in (mean, lse))
            for keys in key_tiles(rows, key_length, band, block_size):
                mask = tile_mask(rows, keys, band, query.device)
                weights = torch.exp(tile_scores(tile_query, wide_key[:, :, keys], mask) - tile_lse)
                grad_weights = tile_grad_out @ wide_value[:, :, keys].transpose(2, 3)
                grad_scores = weights * (grad_weights - tile_mean)
                tile_grad_query = grad_scores @ wide_key[:, :, keys] * scale
                grad_query[:, :, :, rows] += tile_grad_query.unflatten(2, (groups, -1))
                grad_key[:, :, keys] += grad_scores.transpose(2, 3) @ tile_query
                grad_value[:, :, keys] += weights.transpose(2, 3) @ tile_grad_out
        grads = (grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype))
        return *grads, None, None, None


def tiled_attention(
    query: Queries, key: Keys, value: Keys, scale: float, band: Band, block_size: int = BLOCK_SIZE
) -> tuple[Queries, RowSums]:
    """Attention inside a band of keys, where a negative left or right stands for all keys on that side."""
    heads, kv_heads = query.shape[1], key.shape[1]
    if kv_heads == 0 or heads % kv_heads != 0:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads; give a divisor of {heads}")
    everything = query.shape[2] + key.shape[2]
    left, right = (everything if side < 0 else side for side in (band.left, band.right))
    grouped = query.unflatten(1, (kv_heads, heads // kv_heads))
    out, lse = TiledAttention.apply(grouped, key, value, scale, Band(band.offset, left, right), block_size)
    return out.flatten(1, 2), lse.flatten(1, 2)


def flash_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    block_size: int = BLOCK_SIZE,
    alignment: str = "bottom-right",
) -> tuple[Queries, RowSums]:
    """softmax(Q·Kᵀ·scale)·V without the matrix in the middle, and the log-sum-exp of each row of scores.

    With more keys than queries, the queries are the last of the keys (bottom-right, as with a cache, and in
    flash-attn since 2.1) or the first (top-left, as before). Here are 2 queries and 5 keys, causal:

        bottom-right    1 1 1 1 0        top-left    1 0 0 0 0
                        1 1 1 1 1                    1 1 0 0 0

    window counts the query's own key. A query that sees no key gets out 0 and lse -inf.
    Returns: out in the input's dtype; lse in fp32, or float64 for float64.
    Raises:  ValueError for an unknown alignment, a window without causal, or heads that do not share evenly.
    """
    if alignment not in ("bottom-right", "top-left"):
        raise ValueError(f"alignment is {alignment!r}; allowed are 'bottom-right' and 'top-left'")
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window is {window}, causal {causal}; a window is 1 or more and needs causal=True")
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; a tile holds 1 or more keys")
    offset = key.shape[2] - query.shape[2] if alignment == "bottom-right" else 0
    band = Band(offset, left=-1 if window is None else window - 1, right=0 if causal else -1)
    return tiled_attention(query, key, value, scale, band, block_size)


def merge_attention(
    out_a: Queries, lse_a: RowSums, out_b: Queries, lse_b: RowSums
) -> tuple[Queries, RowSums]:
    """Attention over two sets of keys from what it gives over each, weighed by their sums of exponentials.

    What absorb_tile does with tiles, flash decoding and ring attention do with processors. Neither set may
    hold a key of the other.
    """
    peak = torch.maximum(lse_a, lse_b)
    origin = peak.masked_fill(peak == -INF, 0.0)
    weight_a, weight_b = torch.exp(lse_a - origin), torch.exp(lse_b - origin)
    empty = weight_a + weight_b == 0  # neither saw a key
    total = (weight_a + weight_b).masked_fill(empty, 1.0)
    out = (weight_a / total)[..., None] * out_a + (weight_b / total)[..., None] * out_b
    return out.to(out_a.dtype), (origin + total.log()).masked_fill(empty, -INF)


def varlen_attention(
    q: PackedQueries,
    k: PackedKeys,
    v: PackedKeys,
    cu_seqlens_q: Boundaries,
    cu_seqlens_k: Boundaries,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> PackedQueries:
    """Attention within each of many sequences laid end to end; names and meaning of flash_attn_varlen_func.

    Sequence i has q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]], and keys likewise; it may have none of either.
    window_size counts keys left and right *besides* the query's own, -1 = all, and causal makes right 0.
    The queries are the last of their sequence's keys. A query that sees no key gets 0.
    Raises: ValueError for cu_seqlens that are not int32 cumulative lengths, too low a maximum, or dropout.
    """
    check_cu_seqlens("cu_seqlens_q", cu_seqlens_q, len(q))
    check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, len(k))
    _refuse_dropout(dropout_p)
    query_lengths, key_lengths = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    if len(query_lengths) != len(key_lengths):
        raise ValueError(
            f"cu_seqlens_q has {len(query_lengths)} sequences and cu_seqlens_k {len(key_lengths)}; give each "
            "a place in both, even if it has no queries or no keys"
        )
    if max(query_lengths) > max_seqlen_q or max(key_lengths) > max_seqlen_k:
        raise ValueError(
            f"max_seqlen_q is {max_seqlen_q} and max_seqlen_k {max_seqlen_k}; the longest sequences have "
            f"{max(query_lengths)} queries and {max(key_lengths)} keys, and a kernel would leave the rest out"
        )
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        band = Band(key.shape[2] - query.shape[2], window_size[0], 0 if causal else window_size[1])
        return tiled_attention(query, key, value, scale, band)[0].transpose(1, 2)

    if len(set(query_lengths)) == len(set(key_lengths)) == 1:  # one length: a batch, in fewer calls
        return attend(*(x.unflatten(0, (len(query_lengths), -1)) for x in (q, k, v))).flatten(0, 1)
    sequences = zip(q.split(query_lengths), k.split(key_lengths), v.split(key_lengths), strict=True)
    return torch.cat([attend(*(x[None] for x in sequence))[0] for sequence in sequences])


def torch_varlen_attention(
    q: PackedQueries,
    k: PackedKeys,
    v: PackedKeys,
    cu_seqlens_q: Boundaries,
    cu_seqlens_k: Boundaries,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> PackedQueries:
    """varlen_attention by torch's own copy of the FlashAttention-2 kernels: CUDA only, fp16 and bf16 only.

    Raises: ValueError for other dtypes, cu_seqlens that are not int32, or dropout.
    """
    from torch.nn.attention.varlen import varlen_attn

    check_cu_seqlens("cu_seqlens_q", cu_seqlens_q)
    check_cu_seqlens("cu_seqlens_k", cu_seqlens_k)
    _refuse_dropout(dropout_p)
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"q is {q.dtype}; FlashAttention's kernels take torch.float16 and torch.bfloat16. Load the model "
            "in one of these, or choose backend='sdpa'"
        )
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    # The kernel wants a multiple of 8 dimensions. Zeros add nothing to a product, and are cut off the result.
    head_dim, missing = q.shape[-1], -q.shape[-1] % 8
    q, k, v = (nn.functional.pad(x, (0, missing)) if missing else x for x in (q, k, v))
    # torch 2.11 lets heads share keys without being asked; later versions refuse to unless they are.
    sharing = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    window = (window_size[0], 0 if causal else window_size[1])  # the tuple (-1, 0) is its way to say causal
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return varlen_attn(q, k, v, *lengths, scale=scale, window_size=window, **sharing)[..., :head_dim]


def varlen_kernel(device: torch.device | str) -> tuple[str, Callable]:
    """The best function at hand that computes varlen_attention on a device, after its name.

    On CUDA from Ampere on (compute capability 8.0), flash-attn's kernel where it is installed, else torch's
    own; everywhere else the one of this module, which takes every dtype.
    """
    device = torch.device(device)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return "pure torch", varlen_attention
    try:
        import flash_attn
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return "torch varlen", torch_varlen_attention
    return f"flash-attn {flash_attn.__version__}", flash_attn_varlen_func


def _refuse_dropout(dropout_p: float) -> None:
    if dropout_p != 0.0:
        raise ValueError(
            f"dropout_p is {dropout_p}; of the varlen functions only flash-attn's own drops weights. Set "
            "attention_dropout to 0, or train with backend='sdpa'"
        )
