"""What tests of exercises ask of a function: what it looks at, and whether its bits are beyond dispute."""

from collections.abc import Callable

import torch
from torch import Tensor

ROUNDING = 1e-5  # a gradient so much smaller than the largest one is what rounding left of 0


def looks_ahead(
    function: Callable[[Tensor], Tensor], x: Tensor, axis: int = -2, shift: int = 0
) -> tuple[int, int] | None:
    """The first place of the result that depends on a later place of x, and the latest place it looks at.

    function: its result has places along the same axis as x. x: floating.
    shift:    place t of the result may see the places of x up to t + shift.
    Returns:  None where nothing looks ahead. A dependence whose gradient is 0 at x is not seen.
    """
    x = x.detach().clone().requires_grad_()
    result = function(x)
    others = [index for index in range(x.ndim) if index != axis % x.ndim]
    for place, part in enumerate(result.unbind(axis)):
        weights = torch.linspace(0.5, 1.5, part.numel(), dtype=part.dtype).view(part.shape)
        (gradient,) = torch.autograd.grad((part * weights).sum(), x, retain_graph=True, allow_unused=True)
        if gradient is None:
            continue
        strength = gradient.abs().nan_to_num(1.0).amax(dim=others)
        seen = (strength > ROUNDING * strength.max()).nonzero().flatten().tolist()
        if seen and max(seen) > place + shift:
            return place, max(seen)
    return None


def settled(value: Tensor, dtype: torch.dtype, room: float = 2e-6) -> Tensor:
    """Where a value, computed in fp64, rounds to a narrow dtype the same way whatever fp32 does to it before.

    Elsewhere it lies within `room` of the middle between two neighbours, and right answers differ in a bit.
    """
    return (value - room).to(dtype) == (value + room).to(dtype)
