"""Exercise of notebook 18: how does a decoder read something else?

Queries come from the text, keys and values from a memory: an encoder's states, a picture, a sound. The memory
has no order relative to the text, so nothing is causal.

Check your answer with `python -m minilm.course check 18`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def cross_attention(
    hidden: Float[Tensor, "batch length hidden"],
    memory: Float[Tensor, "batch memory hidden"],
    q_weight: Float[Tensor, "query_width hidden"],
    kv_weight: Float[Tensor, "kv_width hidden"],
    out_weight: Float[Tensor, "hidden query_width"],
    num_heads: int,
    memory_mask: Int[Tensor, "batch memory"] | Bool[Tensor, "batch memory"] | None = None,
) -> Float[Tensor, "batch length hidden"]:
    """Let every token of a text look at a memory (exercise 18.1, 25 min).

    This is how a translation reads its source. Matrices are stored as torch.nn.Linear stores them,
    [outputs, inputs], and have no bias. The rows of q_weight are the query heads one after the other; so
    head_dim = query_width / num_heads. The rows of kv_weight are two blocks: all key heads, then all value
    heads. There may be fewer of them than query heads: query head h reads key head h // (heads // kv_heads),
    where heads is num_heads and kv_heads follows from kv_width.

    memory_mask: 1 or True = real; None means that all of it is. A row whose memory is all padding reads 0.
    Every token sees every real place of its row's memory. Scores are divided by √head_dim, and the softmax is
    taken in fp32. The result has the dtype of hidden.

    Example: with q_weight = 0 all scores are equal, and every token reads the mean of the real places'
    values. With a memory of one place, every token reads its value, whatever the query.
    Raises: ValueError if num_heads does not divide query_width, or memory_mask is not [batch, memory].
    """
    # BEGIN SOLUTION 18.1
    query_width = q_weight.shape[0]
    if query_width % num_heads:
        raise ValueError(f"{query_width} rows of q_weight cannot be cut into {num_heads} heads")
    if memory_mask is not None and memory_mask.shape != memory.shape[:2]:
        raise ValueError(
            f"memory_mask is {tuple(memory_mask.shape)}; it must be [batch, memory] = "
            f"{tuple(memory.shape[:2])}. Is it the mask of the text?"
        )
    head_dim = query_width // num_heads

    def split_heads(x: Tensor) -> Tensor:
        """[batch, places, features] becomes [batch, heads, places, head_dim]."""
        return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)

    # The one difference from self-attention: keys and values are made of the memory.
    query = split_heads(hidden @ q_weight.T)
    key, value = (split_heads(x) for x in (memory @ kv_weight.T).chunk(2, dim=-1))
    groups = num_heads // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))

    scores = query @ key.transpose(-1, -2) / head_dim**0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if memory_mask is None:
        memory_mask = memory.new_ones(memory.shape[:2])
    # The same for every head and every token: [batch, 1, 1, memory]. Nothing is causal.
    hidden_places = ~memory_mask.bool()[:, None, None]
    weights = scores.masked_fill(hidden_places, -torch.inf).softmax(dim=-1)
    # Where no place is real the softmax is 0/0, NaN; such a row reads nothing.
    weights = weights.masked_fill(hidden_places, 0.0).to(value.dtype)
    # Back to [batch, length, features]: the heads of a token side by side.
    context = (weights @ value).transpose(1, 2).flatten(2)
    return context @ out_weight.T
    # END SOLUTION
