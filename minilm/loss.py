"""Losses: how wrong the model was, as one number to reduce. NaN where no label counts, as in transformers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

IGNORED = -100  # a label that counts for nothing: padding, or a prompt that is not trained on

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


def cross_entropy(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"], reduction: str = "mean"
) -> Float[Tensor, ""]:
    """Mean surprise in nats, −log p(label), over the rows whose label is not −100; or its "sum"."""
    if labels.is_cpu and not torch.compiler.is_compiling():  # on a GPU its own assertion tells
        wrong = labels[((labels < 0) | (labels >= logits.shape[1])) & (labels != IGNORED)]
        if wrong.numel():
            raise ValueError(
                f"label {int(wrong[0])} does not exist; allowed are 0 to {logits.shape[1] - 1}, and "
                f"{IGNORED} for what does not count"
            )
    return nn.functional.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction=reduction)


def next_token_loss(
    logits: Float[Tensor, "batch length vocab"], labels: Int[Tensor, "batch length"], reduction: str = "mean"
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of each token given those before it.

    labels are the input ids themselves: the shift by one happens here, so logits at t are compared with
    labels at t + 1. Labels of -100 are left out of the sum and of the count. Logits are compared in fp32.
    reduction "sum" does not divide by the count, so that parts of a batch can be added.
    """
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), reduction)


def token_loss(
    logits: Float[Tensor, "batch length labels"], labels: Int[Tensor, "batch length"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of each token's own label, in fp32; −100 is left out."""
    return cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def choose_problem(num_labels: int, labels: Tensor) -> str:
    """What labels mean where nobody says: for one output a number to hit; for several the right one, where
    labels are integers, else a yes or no for each.
    """
    if num_labels == 1:
        return "regression"
    one_class = labels.dtype in (torch.int64, torch.int32)
    return "single_label_classification" if one_class else "multi_label_classification"


def sequence_loss(
    logits: Float[Tensor, "batch labels"], labels: Tensor, problem_type: str | None = None
) -> Float[Tensor, ""]:
    """The loss of one answer per row, in the logits' dtype.

    problem_type: "regression": mean squared error to labels of [batch, labels] (or [batch] for one).
                  "single_label_classification": cross-entropy in nats with classes of [batch].
                  "multi_label_classification": mean binary cross-entropy with 0s and 1s of [batch, labels].
                  None: `choose_problem` decides.
    """
    problem_type = problem_type or choose_problem(logits.shape[1], labels)
    one_class = problem_type == "single_label_classification"
    needed = logits.shape[:1] if one_class else logits.shape
    if labels.numel() != needed.numel() or labels.shape[:1] != needed[:1]:
        raise ValueError(
            f"labels are {tuple(labels.shape)} {labels.dtype}; {problem_type} with {logits.shape[1]} outputs "
            f"needs {tuple(needed)}. Another problem_type can be named in the model's config"
        )
    labels = labels.reshape(needed)
    if one_class:
        return cross_entropy(logits, labels)
    labels = labels if labels.is_floating_point() else labels.to(logits.dtype)
    if problem_type == "regression":
        return nn.functional.mse_loss(logits, labels)
    if problem_type == "multi_label_classification":
        return nn.functional.binary_cross_entropy_with_logits(logits, labels)
    raise ValueError(f"problem_type is {problem_type!r}; allowed are {', '.join(PROBLEMS)}")


def span_loss(
    logits: Float[Tensor, "batch length 2"], start_positions: Tensor, end_positions: Tensor
) -> Float[Tensor, ""]:
    """Mean of two cross-entropies in nats over the tokens of a row: where the answer starts, where it ends.

    Positions are [batch]. One beyond the row, because the text was cut, does not count; one before it means
    the first token.
    """
    ends = torch.stack([start_positions.flatten(), end_positions.flatten()]).clamp(min=0)
    ends = ends.masked_fill(ends >= logits.shape[1], IGNORED)
    return (cross_entropy(logits[..., 0], ends[0]) + cross_entropy(logits[..., 1], ends[1])) / 2
