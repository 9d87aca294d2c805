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
    raise NotImplementedError("exercise 18.1")
