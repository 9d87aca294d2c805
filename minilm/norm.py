"""Normalisation: the three kinds that decoder models use, and the precision each is computed in."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minilm.config import ModelConfig


def rms_norm(
    x: Float[Tensor, "*batch hidden"], weight: Float[Tensor, " hidden"], eps: float
) -> Float[Tensor, "*batch hidden"]:
    """Divide each vector by its root mean square, then scale each dimension by its weight.

    The mean is taken in fp32 and the quotient is rounded to x's dtype before the weight is applied: in bf16
    the other order gives other bits.
    Source: Zhang & Sennrich 2019; rounding order of Llama and its descendants.
    """
    wide = x.float()
    mean_square = wide.pow(2).mean(-1, keepdim=True)
    return weight * (wide * torch.rsqrt(mean_square + eps)).to(x.dtype)


def offset_rms_norm(
    x: Float[Tensor, "*batch hidden"], weight: Float[Tensor, " hidden"], eps: float
) -> Float[Tensor, "*batch hidden"]:
    """RMS normalisation whose weight is stored as its distance from 1, and applied before rounding.

    A weight of 0 changes nothing, so weight decay pulls towards the plain norm.
    Source: Gemma, 2024; the product with 1 + weight stays in fp32 until the end.
    """
    wide = x.float()
    mean_square = wide.pow(2).mean(-1, keepdim=True)
    return (wide * torch.rsqrt(mean_square + eps) * (1.0 + weight.float())).to(x.dtype)


def layer_norm(
    x: Float[Tensor, "*batch hidden"],
    weight: Float[Tensor, " hidden"],
    bias: Float[Tensor, " hidden"],
    eps: float,
) -> Float[Tensor, "*batch hidden"]:
    """Subtract the mean, divide by the standard deviation, then scale and shift each dimension.

    Source: Ba et al. 2016. torch's kernel accumulates in fp32 and rounds once.
    """
    return nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


class Norm(nn.Module):
    """The learned parameters of one normalisation; config.norm says which function uses them."""

    def __init__(self, config: ModelConfig, size: int | None = None):
        super().__init__()
        self.kind, self.eps = config.norm, config.norm_eps
        size = config.hidden_size if size is None else size
        self.weight = nn.Parameter(torch.zeros(size) if self.kind == "offset_rms" else torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if self.kind == "layer" else None

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        if self.kind == "rms":
            return rms_norm(x, self.weight, self.eps)
        if self.kind == "offset_rms":
            return offset_rms_norm(x, self.weight, self.eps)
        return layer_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, kind={self.kind}, eps={self.eps:g}"
