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
    raise NotImplementedError("exercise 14.1")


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
    raise NotImplementedError("exercise 14.2")


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
    raise NotImplementedError("exercise 14.3")
