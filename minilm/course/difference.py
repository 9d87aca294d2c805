"""How two values differ, in words that point to the cause."""

import itertools
from collections.abc import Callable, Iterator
from math import isinf, isnan
from typing import Any

import torch
from torch import Tensor


def leaves(value: Any) -> Iterator[Any]:
    """The value itself, or all that tuples, lists and dicts in it hold."""
    if isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a value."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, Tensor))


def map_leaves(change: Callable[[Any], Any], value: Any) -> Any:
    """The same structure with every leaf changed (see leaves)."""
    if isinstance(value, dict):
        return {key: map_leaves(change, part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [map_leaves(change, part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return change(value)


def detach(value: Any) -> Any:
    """The value without its history, as it is now, whatever is written into it later."""
    return map_leaves(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, value)


def plain(value: Any) -> Any:
    """The value with its tensors as numbers in memory, of torch's own class, whatever a subclass does.

    Raises: TypeError where a tensor is not of that kind, or where lists contain themselves.
    """

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        with torch._C.DisableTorchFunctionSubclass():
            if leaf.device.type != "cpu":
                raise TypeError(f"the result is on the device {leaf.device}; its inputs are on the CPU")
            if leaf.layout != torch.strided or leaf.is_nested or leaf.is_quantized:
                kind = "nested" if leaf.is_nested else "quantized" if leaf.is_quantized else leaf.layout
                raise TypeError(f"the result is a {kind} tensor; give an ordinary (dense) one")
            return leaf.as_subclass(Tensor)

    try:
        return map_leaves(change, value)
    except RecursionError:
        raise TypeError("the result holds lists in lists without end") from None


def size(tensor: Tensor) -> float:
    """The largest finite number in a tensor, by absolute value."""
    finite = tensor[tensor.isfinite()].double().abs()
    return finite.max().item() if finite.numel() else 0.0


def largest(a: Any, b: Any) -> float:
    """The largest difference between two values of the same structure; 0 where they cannot be compared."""
    pairs = zip(tensors(a), tensors(b), strict=False)
    return max((size(x.double() - y.double()) for x, y in pairs if x.shape == y.shape), default=0.0)


def describe(found: Any, expected: Any, allowed: float, what: str = "the result") -> str | None:
    """What is wrong with a value, as a sentence; None where it lies within what is allowed."""
    if isinstance(expected, dict):
        return describe_dict(found, expected, allowed, what)
    if isinstance(expected, (tuple, list)):
        return describe_sequence(found, expected, allowed, what)
    if isinstance(expected, Tensor):
        return describe_tensor(found, expected, allowed, what)
    one_number = isinstance(found, (int, float)) or (isinstance(found, Tensor) and found.numel() == 1)
    if isinstance(expected, float) and one_number:
        number = float(found)
        near = abs(number - expected) <= max(allowed, 1e-9 * abs(expected)) and not isinf(expected)
        if near or number == expected or (isnan(number) and isnan(expected)):
            return None
        return f"{what} is {number:.6g}, expected {expected:.6g}"
    if type(found) is type(expected) and found == expected:
        return None
    kinds = "" if type(found) is type(expected) else f" ({type(expected).__name__})"
    got = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else shown(found)
    return f"{what} is {got}{kinds and f' ({type(found).__name__})'}, expected {expected!r}{kinds}"


def shown(value: Any) -> str:
    """A value as Python writes it, not too long, whatever its own __repr__ does."""
    try:
        return repr(value)[:500]
    except Exception as error:
        return f"a value that cannot be printed ({type(error).__name__})"


def describe_sequence(found: Any, expected: tuple | list, allowed: float, what: str) -> str | None:
    """Another number of values, or the first one that is wrong; short lists of numbers and words whole."""
    short = len(expected) <= 12 and all(isinstance(leaf, (int, float, str)) for leaf in leaves(expected))
    if not isinstance(found, (tuple, list)) or len(found) != len(expected):
        kind = f"a {type(expected).__name__} of {len(expected)}"
        got = f"one of {len(found)}" if isinstance(found, (tuple, list)) else f"a {type(found).__name__}"
        shown = f": {in_short(expected)} was expected, not {in_short(found)}"[:300] if short else ""
        return f"{what} should be {kind}, and is {got}{shown}"
    name = "result" if what == "the result" else what
    parts = (
        describe(one, other, allowed, f"{name}[{index}]")
        for index, (one, other) in enumerate(zip(found, expected, strict=True))
    )
    wrong = next((sentence for sentence in parts if sentence is not None), None)
    if wrong and len(expected) <= 4:
        for i, j in itertools.combinations(range(len(expected)), 2):
            swapped = list(found)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            matches = zip(swapped, expected, strict=True)
            if all(describe(one, other, allowed) is None for one, other in matches):
                return f"{what} has its values {i + 1} and {j + 1} exchanged"
    return f"{what} is {in_short(found)}, expected {in_short(expected)}" if wrong and short else wrong


def in_short(value: Any) -> str:
    """A list of numbers and words as Python writes it, with six digits of each number."""
    return shown(map_leaves(lambda x: float(f"{x:.6g}") if isinstance(x, float) else x, value))[:150]


def describe_dict(found: Any, expected: dict, allowed: float, what: str) -> str | None:
    """Keys that are missing or should not be there, then the first value that is wrong."""
    if not isinstance(found, dict):
        return f"{what} should be a dict, and is {type(found).__name__}"
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or extra:
        parts = [f"{word} {', '.join(sorted(map(repr, keys)))}"
                 for word, keys in (("lacks", missing), ("should not have", extra)) if keys]  # fmt: skip
        return f"{what} {' and '.join(parts)}"
    parts = (describe(found[key], value, allowed, f"{what}[{key!r}]") for key, value in expected.items())
    return next((sentence for sentence in parts if sentence is not None), None)


def describe_tensor(found: Any, expected: Tensor, allowed: float, what: str) -> str | None:
    """The first of these that is true: no tensor, another shape, another dtype, NaN, other values."""
    if not isinstance(found, Tensor):
        hint = "; is there a return at the end?" if found is None else ""
        return f"{what} should be a tensor, and is {'None' if found is None else type(found).__name__}{hint}"
    if found.shape != expected.shape:
        turned = " (transposed?)" if sorted(found.shape) == sorted(expected.shape) else ""
        return f"{what} has shape {list(found.shape)}, expected {list(expected.shape)}{turned}"
    if found.dtype != expected.dtype:
        return f"{what} is {found.dtype}, expected {expected.dtype}"
    apart = differs(found, expected, allowed)
    if not apart.any():
        return None
    if expected.dtype == torch.bool:
        return f"{what} {explain_booleans(found, expected)}"
    return f"{what} {explain(found, expected, apart, allowed)}"


def differs(found: Tensor, expected: Tensor, allowed: float) -> Tensor:
    """Where two tensors lie further apart than allowed; infinities and NaNs must be the same."""
    if not expected.is_floating_point():
        return found != expected
    both = found.isfinite() & expected.isfinite()
    distance = (found.double() - expected.double()).abs()
    same_special = (found == expected) | (found.isnan() & expected.isnan())
    return torch.where(both, distance > allowed, ~same_special)


def explain(found: Tensor, expected: Tensor, apart: Tensor, allowed: float) -> str:
    """Where and how: NaN, one factor, a sign, another order of an axis, a shift; else how many places."""
    if found.is_floating_point() and (found.isnan() & ~expected.isnan()).any():
        return f"is NaN {where(found.isnan() & ~expected.isnan())}"
    if found.is_floating_point() and not torch.equal(found.isinf(), expected.isinf()):
        return explain_infinities(found, expected)
    pattern = next((text for text in patterns(found, expected, allowed) if text), None)
    if pattern is not None:
        return pattern
    distance = (found.double() - expected.double()).abs().nan_to_num(0.0)  # two equal infinities
    worst = torch.unravel_index((distance * apart).argmax(), distance.shape)
    place = [int(index) for index in worst]
    return (
        f"differs {where(apart)}; most at {place}: {found[tuple(place)].item():.6g} instead of "
        f"{expected[tuple(place)].item():.6g}"
    )


def explain_infinities(found: Tensor, expected: Tensor) -> str:
    """How many infinities are missing, and how many are there that should not be."""
    missing, extra = expected.isinf() & ~found.isinf(), found.isinf() & ~expected.isinf()
    parts = []
    if missing.any():
        parts.append(f"a number where {expected[missing][0].item()} is expected {where(missing)}")
    if extra.any():
        parts.append(f"{found[extra][0].item()} where a number is expected {where(extra)}")
    return "is " + "; and ".join(parts)


def explain_booleans(found: Tensor, expected: Tensor) -> str:
    """Everything reversed or shifted; else how many places are True that should not be, and the reverse."""
    if torch.equal(found, ~expected):
        return "has True and False exchanged everywhere"
    for axis in range(expected.ndim):
        for step in (1, -1) if expected.shape[axis] > 2 else ():
            inner = torch.arange(1, expected.shape[axis] - 1)  # what is rolled in at the ends tells nothing
            moved = found.roll(step, axis).index_select(axis, inner)
            if torch.equal(moved, expected.index_select(axis, inner)) and expected.any() != expected.all():
                return f"is shifted by {-step} along axis {axis}"
    parts = []
    for value in (False, True):
        wrong = (found == value) & (expected != value)
        if wrong.any():
            first = wrong.nonzero()[0].tolist()
            parts.append(f"{value} where {not value} is expected {where(wrong)}, first at {first}")
    return "is " + "; and ".join(parts)


def patterns(found: Tensor, expected: Tensor, allowed: float) -> Iterator[str | None]:
    """Simple relations between two tensors, the commonest first."""
    x, y = found.double(), expected.double()

    def close(a: Tensor, b: Tensor) -> bool:
        if a.shape != b.shape:
            return False
        same_special = (a == b) | (a.isnan() & b.isnan())
        return bool((same_special | ((a - b).abs() <= max(allowed, 1e-12))).all())

    if found.is_floating_point():
        yield "has every sign reversed" if close(-x, y) and size(y) > allowed else None
        factor = (x * y).nansum() / (y * y).nansum() if size(y) > 0 else torch.tensor(1.0)
        if not factor.isfinite():
            factor = torch.tensor(1.0)
        simple = any(abs(factor.item() * k - round(factor.item() * k)) < 1e-4 for k in (1, 2, 3))
        if factor.abs() > 1e-6 and factor != 1 and (expected.numel() > 1 or simple) and close(x / factor, y):
            yield f"is everywhere {name_factor(factor.item(), expected.shape)} times what is expected"
    for axis in range(expected.ndim):
        length = expected.shape[axis]
        if length < 2:
            continue
        for step in {1, -1, length // 2}:
            if close(x.roll(step, axis), y):
                yield f"is shifted by {-step} along axis {axis}"
        if close(x.flip(axis), y):
            yield f"is reversed along axis {axis}"
        order = permutation(x, y, axis, close) if length <= 64 else None
        if order is not None and len(set(order)) == length:
            yield f"has axis {axis} in another order: {order} where 0 … {length - 1} is expected"
        elif order is not None and len(set(order)) == 1:
            yield f"has what belongs to place {order[0]} of axis {axis} at every place of it"
    for a in range(expected.ndim):
        for b in range(a + 1, expected.ndim):
            if close(x.transpose(a, b), y):
                yield f"has axes {a} and {b} exchanged"


def name_factor(factor: float, shape: torch.Size) -> str:
    """A factor, and what it is of a length of the tensor, where it is that: 0.447214 (1/√5)."""
    for length in dict.fromkeys(size for size in reversed(shape) if size > 1):
        names = {1 / length: f"1/{length}", length**0.5: f"√{length}", length**-0.5: f"1/√{length}"}
        for value, name in names.items():
            if abs(abs(factor) - value) < 1e-5 * value and not value.is_integer():
                return f"{factor:.6g} ({'-' * (factor < 0)}{name})"
    return f"{factor:.6g}"


def permutation(x: Tensor, y: Tensor, axis: int, close: Callable[[Tensor, Tensor], bool]) -> list[int] | None:
    """Which slice of the expected value each slice of the found one is, if that explains everything."""
    found, wanted = x.movedim(axis, 0), y.movedim(axis, 0)
    order = []
    for piece in found:
        matches = [index for index, other in enumerate(wanted) if close(piece, other)]
        if not matches:
            return None
        order.append(next((index for index in matches if index not in order), matches[0]))
    return order


def where(apart: Tensor) -> str:
    """Which places, by the axis that tells most: all, or some rows of one axis."""
    count, total = int(apart.sum()), apart.numel()
    if count == total:
        return "everywhere"
    share = f"at {count} of {total} places"
    for axis in range(apart.ndim):
        others = [index for index in range(apart.ndim) if index != axis]
        touched = apart.any(dim=others) if others else apart
        hit = touched.nonzero().flatten().tolist()
        if 0 < len(hit) <= apart.shape[axis] // 2:
            return f"{share}, all with index {', '.join(map(str, hit[:8]))} on axis {axis}"
    return share
