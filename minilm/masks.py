"""Who may see whom. Masks are boolean, True = visible; only the eager backend adds them as numbers."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def visible(
    query_positions: Int[Tensor, "#batch query"],
    key_positions: Int[Tensor, "#batch key"],
    key_valid: Bool[Tensor, "batch key"] | None = None,
    window: int | None = None,
) -> Bool[Tensor, "... 1 query key"]:
    """The one rule behind every mask: a query sees the valid keys at or before it, `window` of them.

    Positions are places in the padded sequence, so one row serves a whole batch; key_valid is False at
    padding. window counts the query's own key: 1 means that each token sees only itself.
    """
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    seen = distance >= 0
    if window is not None:
        seen = seen & (distance < window)
    if key_valid is not None:
        seen = seen & key_valid[:, None, :]
    return seen[:, None]


def causal_mask(
    query_length: int, key_length: int, device: torch.device | str | None = None
) -> Bool[Tensor, "1 1 query key"]:
    """Each query sees the keys up to its own; with more keys than queries, the queries are the last ones."""
    keys = torch.arange(key_length, device=device)[None]
    return visible(keys[:, key_length - query_length :], keys)


def causal_flag_suffices(
    query_length: int, key_length: int, key_valid: Bool[Tensor, "batch key"] | None, window: int | None
) -> bool:
    """Whether a kernel's own causal flag gives exactly this mask, so that none has to be built.

    Kernels align their triangle at the top left: right for as many queries as keys, and not needed for one
    query.
    """
    aligned = query_length in (1, key_length)
    within_window = window is None or key_length <= window
    return aligned and within_window and (key_valid is None or bool(key_valid.all()))


def mask_to_bias(mask: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """0 where visible and dtype's lowest finite number elsewhere, to be added to the scores.

    Finite, because a row of -inf alone becomes NaN in the softmax and spreads from there.
    """
    return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), torch.finfo(dtype).min)


def position_ids_from_mask(
    attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"],
) -> Int[Tensor, "batch length"]:
    """Count the real tokens of each row from 0, so that padding on the left does not shift a text.

    Padding gets the position of the last real token before it, or 0: any value does, since nothing sees it.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
