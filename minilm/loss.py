"""Losses: how wrong the model was, as one number to reduce."""

from jaxtyping import Float, Int
from torch import Tensor, nn

IGNORED = -100  # a label that counts for nothing: padding, or a prompt that is not trained on


def next_token_loss(
    logits: Float[Tensor, "batch length vocab"], labels: Int[Tensor, "batch length"], reduction: str = "mean"
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of each token given those before it.

    labels are the input ids themselves: the shift by one happens here, so logits at t are compared with
    labels at t + 1. Labels of -100 are left out of the sum and of the count. Logits are compared in fp32.
    reduction "sum" does not divide by the count, so that parts of a batch can be added.
    """
    predicted, target = logits[:, :-1].float(), labels[:, 1:]
    return nn.functional.cross_entropy(
        predicted.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction=reduction
    )
