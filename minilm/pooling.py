"""Pooling: which token's vector answers for the whole row."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def real_tokens(
    hidden: Float[Tensor, "batch length hidden"],
    input_ids: Int[Tensor, "batch length"] | None,
    attention_mask: Tensor | None,
    pad_token_id: int | None,
) -> Bool[Tensor, "batch length"]:
    """Which tokens are no padding: by the mask; where none is given, those whose id is not the pad id.

    The mask comes first because text may hold the pad id too, most of all where it is the end's as well.
    attention_mask: [batch, keys]; keys that are cached stand first and are left out. A 4-D mask tells which
                    tokens see which, not which are real, and counts as none.
    Raises:         ValueError for several rows with neither.
    """
    if attention_mask is not None and attention_mask.ndim == 2:
        return attention_mask[:, -hidden.shape[1] :].bool()
    if input_ids is not None and pad_token_id is not None:
        return input_ids != pad_token_id
    if hidden.shape[0] > 1:
        raise ValueError(
            f"{hidden.shape[0]} rows came with neither an attention_mask of [batch, keys] nor token ids and "
            "a pad_token_id, so the last real token of each is unknown. Give attention_mask (all ones where "
            "nothing is padded), or input_ids to a model whose config has a pad_token_id"
        )
    return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)


def last_real_token(real: Bool[Tensor, "batch length"]) -> Int[Tensor, " batch"]:
    """The index of the last True of each row, whichever side is padded; 0 in a row that has none.

    Source: transformers 5.23, which takes the rightmost token that is not the pad token.
    """
    return (real * torch.arange(real.shape[1], device=real.device)).argmax(-1)


def pool(
    x: Float[Tensor, "batch length width"], index: Int[Tensor, " batch"]
) -> Float[Tensor, "batch width"]:
    """The vector at one index of each row."""
    return x[torch.arange(x.shape[0], device=x.device), index]
