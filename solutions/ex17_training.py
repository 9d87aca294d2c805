"""Exercises of notebook 17: how did it learn?

A model learns by predicting each token of a text from those before it. What counts is which places are
compared, by what the loss is divided, how texts are laid into rows, and how fast the weights move.

Check your answers with `python -m minilm.course check 17`.
"""

from math import cos, pi

import torch
from jaxtyping import Float, Int
from torch import Tensor


def next_token_loss(
    logits: Float[Tensor, "batch length vocab"], labels: Int[Tensor, "batch length"]
) -> Float[Tensor, ""]:
    """How much the next token surprises the model on average: what training lowers (exercise 17.1, 15 min).

    labels are the input ids themselves. Logits at place t predict the label at t + 1, so the last logits and
    the first label have no partner. A label of -100 (padding, or a prompt that is not trained on) counts for
    nothing: neither in the sum nor in the number by which it is divided.
    Returns: the mean of -ln p(label) over the labels of the whole batch that count, computed in fp32; NaN
             where none counts.

    Example: two tokens of probability 1/2 and 1/8 have (ln 2 + ln 8) / 2 = 1.386.
    Raises: ValueError if a label to be predicted is neither -100 nor a token of the vocabulary.
    """
    # BEGIN SOLUTION 17.1
    # Fit the two together: what is said at places 0 … n - 2 is about the labels at 1 … n - 1.
    predictions, targets = logits[:, :-1].float(), labels[:, 1:]
    counts = targets != -100
    vocab_size = logits.shape[-1]
    if (counts & ((targets < 0) | (targets >= vocab_size))).any():
        raise ValueError(
            f"a label is not one of the tokens 0 to {vocab_size - 1}, nor -100 for what is left out"
        )
    # -100 cannot be looked up, so it borrows token 0 for a moment; its surprise is dropped in the last line.
    looked_up = targets.masked_fill(~counts, 0)
    log_probs = predictions.log_softmax(dim=-1)
    surprise = -log_probs.gather(-1, looked_up[:, :, None])[:, :, 0]
    return surprise[counts].mean()
    # END SOLUTION


def pack_documents(
    documents: list[list[int]], length: int, eos_token_id: int
) -> tuple[Int[Tensor, "rows length"], Int[Tensor, "rows length"], Int[Tensor, "rows length"]]:
    """Lay texts side by side into rows of one length, so that no place is wasted (exercise 17.2, 25 min).

    Each document gets eos_token_id behind it, and all stand in one long line, which is cut into rows. A
    document that does not fit goes on in the next row. The last row is filled up with eos_token_id.
    Returns: three int64 tensors.
        input_ids     the tokens
        position_ids  counted from 0 at the start of each document, and anew at the start of each row: a
                      document that goes on there sees nothing of what came before. Padding counts as a
                      document of its own.
        document_ids  the index in `documents` of each token, its end-of-text token included; -1 = padding.
                      Attention is later allowed only between equal ones, so that no document sees another.

    Example: documents [[5, 6], [7, 8, 9]], length 4 and end 0 give
        input_ids     5 6 0 7 | 8 9 0 0
        position_ids  0 1 2 0 | 0 1 2 0
        document_ids  0 0 0 1 | 1 1 1 -1
    Raises: ValueError if length is less than 2: a row has to hold a token and the next one.
    """
    # BEGIN SOLUTION 17.2
    if length < 2:
        raise ValueError(f"rows of {length} tokens; at least 2 are needed, for one predicts the next")
    line, owners = [], []
    for index, document in enumerate(documents):
        line += [*document, eos_token_id]
        owners += [index] * (len(document) + 1)
    missing = -len(line) % length  # what is missing to a multiple of length; 0 where the rows are full
    line += [eos_token_id] * missing
    owners += [-1] * missing
    input_ids = torch.tensor(line).view(-1, length)
    document_ids = torch.tensor(owners).view(-1, length)
    # Counting starts in the first column, and wherever the owner is not the one of the place before.
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    # The latest start up to each place: its own column where it is one, else the largest before.
    columns = torch.arange(length).expand_as(document_ids)
    latest_start = columns.masked_fill(~starts, 0).cummax(dim=1).values
    return input_ids, columns - latest_start, document_ids
    # END SOLUTION


def cosine_schedule(step: int, warmup: int, total: int, peak: float, floor: float) -> float:
    """The learning rate of a step: up slowly, then down along half a cosine (exercise 17.3, 10 min).

    At first the averages of the optimizer know nothing, so the steps begin small; at the end small steps let
    the weights settle. step counts from 0, and the last one is total - 1.
    The first `warmup` steps rise linearly, peak / (warmup + 1) each: (step + 1) / (warmup + 1) of the peak.
    Step number `warmup` has the peak itself, and from there half a period of a cosine leads down to `floor`,
    a learning rate, which the last step has. Where step `warmup` is the last one, it has the peak.

    Example: warmup = 1, total = 4, peak = 8, floor = 2 give 4, 8, 5, 2.
    Raises: ValueError if warmup is negative, or not less than total.
    Source: SGDR, Loshchilov & Hutter 2016, §3.
    """
    # BEGIN SOLUTION 17.3
    if not 0 <= warmup < total:
        raise ValueError(f"warmup is {warmup}; of {total} steps it can take 0 to {total - 1}")
    if step < warmup:
        # step + 1, so that the first step learns something; warmup + 1, so that the peak comes only once.
        return peak * (step + 1) / (warmup + 1)
    # From 0 at the peak to 1 at the last step, which is total - 1 - warmup steps later. Where it is the same
    # step, there is nothing to divide by.
    progress = (step - warmup) / max(1, total - 1 - warmup)
    share = (1 + cos(pi * progress)) / 2  # cos goes from 1 to -1; this goes from 1 to 0
    return floor + (peak - floor) * share
    # END SOLUTION


def accumulated_loss(
    losses: Float[Tensor, " parts"], token_counts: Int[Tensor, " parts"]
) -> Float[Tensor, ""]:
    """The loss of a batch that was computed in parts, as if it had been one (exercise 17.4, 10 min).

    A batch that does not fit into memory is computed a few rows at a time, and the gradients add up. The
    update is the same only if each part weighs as much as it has tokens.

    losses:       the mean loss of each part's tokens. A part without tokens has NaN there and counts for 0.
    token_counts: how many tokens each mean was taken over.

    Example: losses 2 and 5 over 1 and 3 tokens are (2 · 1 + 5 · 3) / 4 = 4.25, and not 3.5.
    Raises: ValueError if there is no token in any part.
    """
    # BEGIN SOLUTION 17.4
    if token_counts.sum() == 0:
        raise ValueError("no part has a token, so there is nothing to take a mean of")
    # A weight of 0 would not help against NaN: 0 · NaN is NaN. Such parts are left out altogether.
    counts = token_counts > 0
    weights = token_counts[counts].to(losses.dtype)
    # Mean times count gives back each part's sum. All sums over all tokens are the mean of the whole batch.
    return (losses[counts] * weights).sum() / weights.sum()
    # END SOLUTION
