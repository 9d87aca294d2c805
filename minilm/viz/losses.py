"""How well a model predicts a text, token by token."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from minilm.heads import CausalLM
from minilm.viz.picture import Picture, subplots


@torch.no_grad()
def token_losses(model: CausalLM, input_ids: Int[Tensor, "1 length"]) -> Float[Tensor, " length_less_1"]:
    """The loss in nats of each token but the first, given those before it."""
    logits = model(input_ids).logits
    return cross_entropy(logits[0, :-1].float(), input_ids[0, 1:], reduction="none")


def running_mean(values: Float[Tensor, " length"], window: int) -> list[float]:
    """The mean of each value and up to window - 1 before it."""
    return [values[max(0, end - window) : end].mean().item() for end in range(1, len(values) + 1)]


def losses_by_position(
    losses: dict[str, Float[Tensor, " length_less_1"]], alt: str, window: int = 8
) -> Picture:
    """The losses of several models along one text, each averaged over its last few tokens.

    losses: title -> from token_losses. window: over how many tokens a point is averaged.
    """
    figure, axes = subplots(height=2.6)
    for title, values in losses.items():
        axes.plot(range(1, len(values) + 1), running_mean(values, window), label=title)
    axes.set(xlabel="position in the text, in tokens", ylabel="loss, in nats", ylim=(0, None))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, alt)
