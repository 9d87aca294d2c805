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
    # BEGIN SOLUTION 19.1
    if length < 1:
        raise ValueError(f"length is {length}; a new token comes from at least one")
    # The heads side by side. Their widths need not add up to hidden_size, and the key heads are fewer.
    query_width = config.num_heads * config.head_dim
    key_width = config.num_kv_heads * config.head_dim
    attention = config.hidden_size * (query_width + 2 * key_width)  # to queries, keys and values …
    attention += query_width * config.hidden_size  # … and back into the residual stream
    matrices = 3 if config.mlp == "gated" else 2
    mlp = matrices * config.hidden_size * config.intermediate_size
    # Every token of the vocabulary gets a logit, whoever owns the matrix. Of the embedding table as such, one
    # token needs one row.
    head = config.vocab_size * config.hidden_size
    weights = config.num_layers * (attention + mlp) + head
    # A layer with a window reads its last keys only, so the layers are asked one by one.
    windows = [config.window(layer) for layer in range(config.num_layers)]
    visible = sum(length if window is None else min(length, window) for window in windows)
    cache = visible * 2 * key_width  # 2: a key and a value
    return (weights + cache) * bytes_per_value
    # END SOLUTION


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
    # BEGIN SOLUTION 19.2
    if length < 1:
        raise ValueError(f"length is {length}; a text has at least one token")
    query_width = config.num_heads * config.head_dim
    key_width = config.num_kv_heads * config.head_dim
    attention = config.hidden_size * (2 * query_width + 2 * key_width)
    mlp = (3 if config.mlp == "gated" else 2) * config.hidden_size * config.intermediate_size
    head = config.vocab_size * config.hidden_size
    weights = config.num_layers * (attention + mlp) + head
    # The token at place t sees t tokens, or as many as the window shows. Added up over the text this grows
    # with the square of the length, and beyond a window with the length alone.
    pairs = 0
    for layer in range(config.num_layers):
        window = config.window(layer) or length
        pairs += sum(min(place, window) for place in range(1, length + 1))
    # query_width and not key_width: heads that share a key still have a score each. Sharing saves bytes only.
    per_pair = 2 * query_width + 2 * query_width  # the score, and the mixture
    return 2 * weights * length + per_pair * pairs
    # END SOLUTION


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
    # BEGIN SOLUTION 19.3
    if peak_flops <= 0 or bandwidth <= 0:
        raise ValueError(f"a machine with {peak_flops} operations and {bandwidth} bytes a second never ends")
    # Amount over rate is a time. The two go on side by side: not their sum, but the longer one.
    return max(flops / peak_flops, bytes_moved / bandwidth)
    # END SOLUTION
