"""Exercises of notebook 14: how do I load real weights?

A checkpoint is a file of named tensors. Reading it, calling each tensor what your model calls it, and finding
the first operation that goes wrong when it does not work: that is all of loading.

Check your answers with `python -m minilm.course check 14`.
"""

import json
import math
import os
import re
from collections.abc import Mapping

from torch import Tensor

# How many bytes one value takes, by what a safetensors file calls its dtype.
BYTES_PER_VALUE = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


def read_safetensors_header(
    path: str | os.PathLike,
) -> dict[str, tuple[str, tuple[int, ...], tuple[int, int]]]:
    """Read which tensors a safetensors file holds, and where (exercise 14.1, 25 min).

    The header of a file of many gigabytes is read in a moment, and tells all but the values. The file is

        8 bytes: n, a little-endian integer  |  n bytes: the header, JSON in UTF-8  |  data, to the end

    and the header is an object that names for each tensor its dtype, its shape and the first byte of its
    values and the one after its last, counted from the start of the data:

        {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}

    "__metadata__" holds notes, is no tensor, and may be missing. Spaces behind the JSON may fill the n bytes.

    Returns: for each name its dtype as the file spells it, its shape, and (start, end) counted from the start
             of the *file*: file.seek(start) and file.read(end - start) give the tensor's values.
    Example: the header above takes 95 bytes, so the data start at byte 8 + 95 = 103, and the result is
             {"w": ("F32", (2,), (103, 111))}.
    Raises:  ValueError for a file that is shorter than it says (its length, its header or its data), whose
             header is not a JSON object, with a dtype that BYTES_PER_VALUE does not know, with more or fewer
             bytes for a tensor than its dtype and shape need, or whose tensors do not fill the data from the
             first byte to the last, without gap or overlap.
    """
    # BEGIN SOLUTION 14.1
    file_size = os.path.getsize(path)
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        # Look before you read: a damaged prefix may well ask for 2⁶⁰ bytes of memory.
        if len(prefix) < 8 or 8 + length > file_size:
            raise ValueError(f"{path} has {file_size} bytes, too few for its header; download it again")
        header = json.loads(file.read(length))  # an error in the JSON is a ValueError already
    if not isinstance(header, dict):
        raise ValueError(f"the header of {path} is a {type(header).__name__}; it must be an object")

    data_start = 8 + length
    tensors, spans = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if dtype not in BYTES_PER_VALUE:
            raise ValueError(f"{name} is {dtype}; known are {', '.join(BYTES_PER_VALUE)}")
        needed = math.prod(shape) * BYTES_PER_VALUE[dtype]  # the product of no numbers is 1: a scalar
        if end - begin != needed:
            raise ValueError(f"{name} has {end - begin} bytes; {dtype} of shape {shape} needs {needed}")
        tensors[name] = (dtype, shape, (data_start + begin, data_start + end))
        spans.append((begin, end, name))

    # Laid in order, each tensor must begin where the one before it ended: then none overlap and none lie
    # outside. What the last one leaves is data that nobody names, or, below 0, data that are missing.
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise ValueError(
                f"{name} begins at byte {begin} of the data; the tensors before it end at {reached}"
            )
        reached = end
    if data_start + reached != file_size:
        raise ValueError(f"{path} has {file_size} bytes; its tensors end at {data_start + reached}")
    return tensors
    # END SOLUTION


def rename(name: str, rules: Mapping[str, str]) -> str:
    """What a checkpoint calls a parameter, by rules that hold for all layers (exercise 14.2, 15 min).

    A parameter's name is the path of a module and the kind of parameter: "layers.3.norm" and "weight". A rule
    gives the module's new path; the kind stays as it is. {} in a rule stands for a number, such as the index
    of a layer, and everything else for itself. The first {} on the right takes the number of the first {} on
    the left, and so on; both sides have equally many.

    A rule fits only the whole path of a module. The first rule that fits is used, once. With keys and values
    of the rules exchanged, the same function turns a checkpoint's names into the model's.

    Example: rename("layers.12.mlp.up.weight", {"layers.{}.mlp.up": "h.{}.mlp.c_fc"}) gives
             "h.12.mlp.c_fc.weight".
    Raises:  ValueError if no rule fits.
    """
    # BEGIN SOLUTION 14.2
    module, _, kind = name.rpartition(".")
    for old, new in rules.items():
        # As a regular expression: what stands between the {} is meant literally (a dot is a dot), and each {}
        # becomes a group that takes a whole number. fullmatch leaves no rest, so that "layers.{}.mlp" does
        # not fit "layers.3.mlp_norm", nor "layers.1" the beginning of "layers.12".
        pattern = r"(\d+)".join(re.escape(piece) for piece in old.split("{}"))
        match = re.fullmatch(pattern, module)
        if match is not None:
            # One rule and done: applying the others to the result could rename it a second time.
            return f"{new.format(*match.groups())}.{kind}"
    raise ValueError(f"no rule fits {module!r}; there are rules for {', '.join(rules)}")
    # END SOLUTION


def first_divergence(
    trace_a: Mapping[str, Tensor], trace_b: Mapping[str, Tensor], tolerance: float
) -> tuple[str, float] | None:
    """The first operation at which two models differ (exercise 14.3, 20 min).

    A trace holds what each operation gave: name → tensor, in the order of computing. After the first error
    everything differs, so the first place is the one that tells. It is how a port of a model is debugged.

    Operations are taken in the order of trace_a; those that only one trace has are passed over. The
    difference of two results is the largest |a - b| of their values, computed in fp32 at least:

    - where a and b are the same infinity, as in masked scores, it is 0
    - where a or b is NaN, or both are, it is inf: nothing can be said of such a result
    - for two shapes that are not the same, it is inf

    Returns: the name and the difference of the first operation that differs by more than tolerance; None if
             none does.
    Example: for a = {"norm": [1, 2], "mlp": [3, 4]}, b = {"norm": [1, 2.5], "mlp": [9, 4]} and tolerance 0.1
             it is ("norm", 0.5); with tolerance 1 it is ("mlp", 6.0).
    Raises:  ValueError if the traces have no operation in common: where nothing is compared, None would be a
             false all-clear.
    """
    # BEGIN SOLUTION 14.3
    shared = [name for name in trace_a if name in trace_b]
    if not shared:
        raise ValueError("the traces have no operation in common; do both use the same names?")
    for name in shared:
        a, b = trace_a[name], trace_b[name]
        if a.shape != b.shape:  # subtracting would stretch [1, 4] to [3, 4], or raise torch's own error
            return name, math.inf
        gap = (a.float() - b.float()).abs()
        gap = gap.masked_fill(a == b, 0.0)  # inf - inf is NaN, although the two are equal
        # Every comparison with NaN is False, also "NaN > tolerance": it would pass for equal.
        gap = gap.nan_to_num(nan=math.inf, posinf=math.inf)
        difference = gap.max().item()
        if difference > tolerance:
            return name, difference
    return None
    # END SOLUTION
