"""Matrix products: the reference's own kernel where every bit counts, a faster one where it does not.

torch multiplies fp32 matrices with MKL, and so does the reference; only the same kernel gives the same bits.
On many CPUs torch's second library, oneDNN, is about twice as fast: for one row, which is bound by reading
the weights, as for a thousand.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

# The operator that torch's own compiler uses for these products; a torch built without oneDNN lacks it.
_ONEDNN = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)
# A call of oneDNN takes some 15 µs before it computes: it pays for large matrices and for many rows.
_LARGE_MATRIX, _MUCH_WORK = 2**16, 2**21  # entries, and multiplications


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies these faster: much work, in fp32, on a CPU, without gradients."""
    return (
        (weight.numel() > _LARGE_MATRIX or x.numel() * weight.shape[0] >= _MUCH_WORK)
        and x.dtype == weight.dtype == torch.float32
        and x.is_cpu
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.numel() > 0
        and _ONEDNN is not None
    )


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias by oneDNN, whose sums are taken in another order: the last bits differ."""
    return _ONEDNN(x, weight, bias, "none", [], "")


def fast_linear(
    x: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "*batch outputs"]:
    """x · weightᵀ + bias by the library that is faster for it. A compiler makes its own choice."""
    if pays(x, weight) and not torch.compiler.is_compiling():
        return onednn_linear(x, weight, bias)
    return nn.functional.linear(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear that takes the faster kernel, unless `exact` asks for the reference's bits."""

    exact = False

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if self.exact:
            return nn.functional.linear(x, self.weight, self.bias)
        return fast_linear(x, self.weight, self.bias)
