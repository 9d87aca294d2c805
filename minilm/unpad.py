"""Computing without padding: the real tokens of a batch laid end to end, and put back where they stood.

    padded [2, 4]       packed [5]      indices       cu_seqlens
    a b . .             a b c d e       0 1 4 5 6     0 2 5
    c d e .

Sequence i is packed[cu_seqlens[i] : cu_seqlens[i + 1]]: cumulative lengths, with a 0 in front, not lengths.
"""  # fmt: skip

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor, nn


class RealTokens(NamedTuple):
    """Where the tokens are that count."""

    indices: Int[Tensor, " total"]  # their places in the batch, flattened to batch·length
    cu_seqlens: Int32[Tensor, " batch_plus_1"]  # where each row begins among them; then the end
    longest: int  # tokens of the longest row


def real_tokens(attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"]) -> RealTokens:
    """Find the tokens that are not padding, wherever the padding is; a row may have none.

    Raises: ValueError if the mask is not [batch, length] of integers or booleans.
    """
    _check_mask(attention_mask)
    real = attention_mask.bool()
    lengths = real.sum(-1)
    cu_seqlens = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max()) if lengths.numel() else 0
    return RealTokens(real.flatten().nonzero().flatten(), cu_seqlens, longest)


def query_tokens(
    attention_mask: Int[Tensor, "batch key"] | Bool[Tensor, "batch key"], query_length: int
) -> RealTokens:
    """Find the queries to compute when attention_mask describes the keys, cached ones included.

        as many queries as keys     the real tokens themselves
        one query                   one for every row, for each row goes on by one token
        fewer queries than keys     the last columns: with padding on the left they are the new tokens

    Raises: ValueError if there are more queries than keys, or none.
    """  # fmt: skip
    _check_mask(attention_mask)
    batch, key_length = attention_mask.shape
    if not 1 <= query_length <= key_length:
        raise ValueError(
            f"query_length is {query_length}; allowed are 1 to {key_length}, the length of attention_mask, "
            "which covers the cached keys and the new ones"
        )
    if query_length == 1 < key_length:
        rows = torch.arange(batch + 1, device=attention_mask.device)
        return RealTokens(rows[:-1], rows.to(torch.int32), 1)
    return real_tokens(attention_mask[:, -query_length:])


def unpad(
    x: Float[Tensor, "batch length *features"], indices: Int[Tensor, " total"]
) -> Float[Tensor, "total *features"]:
    """Take the tokens at these places of the flattened batch: [batch, length, …] becomes [total, …]."""
    if x.ndim < 2:
        raise ValueError(f"x is {tuple(x.shape)}; it must be [batch, length, …], its padding included")
    return x.flatten(0, 1).index_select(0, indices)


def pad(
    x: Float[Tensor, "total *features"], indices: Int[Tensor, " total"], batch: int, length: int
) -> Float[Tensor, "batch length *features"]:
    """Undo unpad: put the tokens back to their places, with zeros where the padding was."""
    if len(x) != len(indices) or len(x) > batch * length:
        raise ValueError(
            f"{len(x)} tokens and {len(indices)} indices for a batch of {batch} × {length}; give an index "
            "for every token, and the batch and length of the mask that the indices were made from"
        )
    return x.new_zeros(batch * length, *x.shape[1:]).index_copy(0, indices, x).unflatten(0, (batch, length))


def packed_position_ids(cu_seqlens: Int[Tensor, " batch_plus_1"]) -> Int[Tensor, " total"]:
    """Count the tokens of every packed sequence from 0."""
    check_cu_seqlens("cu_seqlens", cu_seqlens)
    starts = cu_seqlens[:-1].repeat_interleave(cu_seqlens.diff())  # for each token, where its sequence begins
    return torch.arange(len(starts), device=cu_seqlens.device) - starts


def check_cu_seqlens(name: str, cu_seqlens: Int[Tensor, "..."], total: int | None = None) -> None:
    """Refuse what the kernels would refuse, or would read as other sequences than were meant.

    Values are only read on the CPU: a GPU would have to wait for them.
    """
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype != torch.int32:
        raise ValueError(
            f"{name} is {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}; kernels read [batch + 1] torch.int32: "
            "make it with unpad.real_tokens, or convert it with .to(torch.int32)"
        )
    if cu_seqlens.device.type != "cpu":
        return
    values = cu_seqlens.tolist()
    total = values[-1] if total is None else total
    if values[0] != 0 or values[-1] != total or values != sorted(values):
        raise ValueError(
            f"{name} is {values}; it must begin with 0, never fall, and end with the number of tokens, "
            f"{total}. Lengths are made cumulative by torch.nn.functional.pad(lengths.cumsum(0), (1, 0))"
        )


def _check_mask(attention_mask: Tensor) -> None:
    if attention_mask.ndim != 2 or attention_mask.is_floating_point():
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)} {attention_mask.dtype}; it must be "
            "[batch, length] of integers or booleans, with 1 = real token"
        )
