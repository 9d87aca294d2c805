"""Exercises of notebook 19: where does the time go?

A processor is limited in two ways: how many operations it does in a second, and how many bytes its memory
hands over. From the structure of a model alone one can count both, and predict a time before measuring it.

Check your answers with `python -m minilm.course check 19`.
"""

from minilm.config import ModelConfig


def decode_bytes_per_token(config: ModelConfig, length: int, bytes_per_value: int) -> int:
    """How many bytes are read to write one token: what decoding waits for (exercise 19.1, 20 min).

    length: tokens of the one text that is continued, the newest included; all of them are in the cache.
    Read are, once each: the weight matrices of every block (queries, keys, values, output, and the two of a
    plain MLP or three of a gated one), the matrix of the output head, and the cached keys and values that
    each layer sees: of all `length` tokens, or of the last config.window(layer) where that is not None and
    less. Where the head is tied, the embedding table serves as its matrix and is read all the same. Left out
    are what is small (norms, biases, one row of the embedding table), all that is written, and
    cross-attention.

    Example: vocab_size 10, hidden_size 4, 1 layer, 2 heads and 1 key head of 2 dimensions, a gated MLP of
    width 8 have 48 + 96 weights in the block and 40 in the head. With length 5 there are 20 values in the
    cache: 204 values in all, 408 bytes in bf16.
    Raises: ValueError if length is less than 1.
    """
    raise NotImplementedError("exercise 19.1")


def forward_flops(config: ModelConfig, length: int) -> int:
    """How many operations one pass over a text takes: what reading a prompt costs (exercise 19.2, 20 min).

    length: tokens of the text; each of them gets logits. Nothing is cached before.
    An addition and a multiplication are two operations. A token takes both once for every weight of the
    matrices of all blocks and of the output head (see 19.1). In attention it takes both for every dimension
    of every query head, for each token it sees (itself and those before it, at most config.window(layer) of
    them): once for the score, and once more for mixing the values. Hidden tokens cost nothing. All else
    (norms, biases, RoPE, softmax, activations, cross-attention) is left out.

    Example: the model of 19.1 has 184 weights. Five tokens take 5 · 2 · 184 = 1840 for the matrices. They see
    1 + 2 + 3 + 4 + 5 = 15 tokens in all, for 15 · 4 · (2 · 2) = 240: together 2080.
    Raises: ValueError if length is less than 1.
    """
    raise NotImplementedError("exercise 19.2")


def roofline_seconds(flops: float, bytes_moved: float, peak_flops: float, bandwidth: float) -> float:
    """The least time that a computation can take on a machine (exercise 19.3, 5 min).

    It computes while the next bytes are on their way, so the slower of the two decides. A machine cannot be
    faster than this; how close a program comes says how good it is.
    peak_flops: operations in a second. bandwidth: bytes in a second.

    Example: 6e9 operations and 1e9 bytes on a machine of 1e12 operations and 5e10 bytes a second: 0.006 s
    of arithmetic, 0.02 s of reading, so 0.02 s.
    Raises: ValueError if peak_flops or bandwidth is not positive.
    Source: the roofline model, Williams et al. 2009.
    """
    raise NotImplementedError("exercise 19.3")
