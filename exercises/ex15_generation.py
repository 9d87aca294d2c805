"""Exercises of notebook 15: how does it choose?

A model gives one number, a logit, for each token that could come next. Filters make some of these tokens
impossible, decoding takes one of what is left, and beam search follows several texts at once.

Check your answers with `python -m minilm.course check 15`.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


def top_k_filter(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """Leave the k best tokens of each row: none of the bad rest is ever drawn (exercise 15.1, 10 min).

    The logits of all other tokens become -inf: their probability is 0. Tokens that tie with the k-th best
    stay too, so that more than k may be left. A k larger than the vocabulary keeps all.

    Example: [3, 1, 2, 0] and k = 2 give [3, -inf, 2, -inf]; [3, 2, 2, 0] and k = 2 give [3, 2, 2, -inf].
    Raises: ValueError if k is less than 1.
    """
    raise NotImplementedError("exercise 15.1")


def top_p_filter(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Leave the smallest set of best tokens whose probability reaches p (exercise 15.2, 20 min).

    Where the model is sure, one or two tokens stay; where it is not, many do. The token with which the sum
    reaches p belongs to the set, so at least one token always stays. All other logits become -inf.
    Probabilities are computed and summed in fp32; the result has the dtype of the logits.

    Example: of probabilities 0.5, 0.2, 0.15, 0.1, 0.05, p = 0.8 keeps three (0.85 in all), p = 0.3 keeps one,
    p = 1 keeps all.
    Raises: ValueError if p is not above 0 and at most 1.
    Source: nucleus sampling, Holtzman et al. 2019.
    """
    raise NotImplementedError("exercise 15.2")


def penalize_repetition(
    logits: Float[Tensor, "batch vocab"], input_ids: Int[Tensor, "batch length"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Make tokens that already stand in the row less likely, against loops (exercise 15.3, 10 min).

    A positive logit is divided by the penalty and a negative one is multiplied by it: both go down. A token
    counts once, however often it stands in the row. All other logits stay as they are.

    Example: logits [4, -1, 2], the text [0, 1, 0] and a penalty of 2 give [2, -2, 2].
    Raises: ValueError if penalty is not positive.
    Source: CTRL, Keskar et al. 2019, §4.1.
    """
    raise NotImplementedError("exercise 15.3")


def greedy_batch(
    model: Callable[[Tensor, Tensor], Tensor],
    input_ids: Int[Tensor, "batch length"],
    attention_mask: Int[Tensor, "batch length"],
    eos_token_ids: list[int],
    pad_token_id: int,
    max_new_tokens: int,
) -> Int[Tensor, "batch total"]:
    """Continue several texts of different lengths at once, always by the best token (exercise 15.4, 30 min).

    model:          model(input_ids, attention_mask) gives logits [batch, length, vocab]; those at place t
                    say what comes after the token at t. It keeps nothing: each call reads the whole text.
    attention_mask: 1 = real token. Rows are padded on the left, so that every row ends in text.
    eos_token_ids:  each of them ends the row that writes it; the list may be empty. One that stands in the
                    prompt ends nothing.
    Returns: prompts and new tokens. A row keeps the token that ended it and goes on with pad_token_id. It is
             over when every row has ended, or after max_new_tokens: there is no column of padding alone.

    Example: two rows, of which one writes 7 8 2 and the other 9 2, with 2 as the end and 0 as padding: the
    new columns are [[7, 8, 2], [9, 2, 0]], even if max_new_tokens is 10.
    Raises: ValueError if a row ends in padding.
    """
    raise NotImplementedError("exercise 15.4")


def beam_step(
    scores: Float[Tensor, "batch beams"], log_probs: Float[Tensor, "batch beams vocab"], num_beams: int
) -> tuple[Float[Tensor, "batch num_beams"], Int[Tensor, "batch num_beams"], Int[Tensor, "batch num_beams"]]:
    """Choose the best ways to go on by one token, among all beams of a prompt (exercise 15.5, 20 min).

    scores:    the log-probability of each beam's text so far.
    log_probs: of each token after that text. The score of the longer text is the sum of the two.
    num_beams: how many to keep, which need not be as many as there are: a search begins with one beam.
    Returns:   for each prompt, best first: the new scores, the beam that each one continues, the token that
               it adds. Several may continue the same beam, and others die out.

    Example: scores [[-1, -2]] and log_probs [[[-1, -3], [-0.5, -1.5]]] with num_beams = 2 give scores
    [[-2, -2.5]], beams [[0, 1]] and tokens [[0, 0]].
    Raises: ValueError if there are fewer than num_beams ways to go on.
    """
    raise NotImplementedError("exercise 15.5")
