"""What checks the exercises of notebook 14, and the wrong answers that people give."""

import json
import math
import re
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save

from minilm.course.spec import Case, Unit
from minilm.families import FAMILIES

UNIT = Unit(14, "checkpoints")

# --------------------------------------------------------------------------------------------------
# 14.1

read_safetensors_header = UNIT.exercise(
    "read_safetensors_header",
    minutes=25,
    difficulty=2,
    hints=(
        "Open the file as bytes. int.from_bytes(…, 'little') makes a number of the first eight.",
        (
            "The data begin at 8 + n. Compare n with the size of the file "
            "(os.path.getsize) before you read n bytes."
        ),
        "Sort the tensors by their offsets: each must begin where the one "
        "before it ended, the first at 0, and "
        "the last must end with the file.",
    ),
)


def from_file(answer, content):
    """Give an answer the path of a file that holds these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        path.write_bytes(content)
        return answer(path)


def file_of(header, data=b"", padding=0) -> bytes:
    """A safetensors file of a header, given as what it should say or as JSON, and data."""
    text = header if isinstance(header, str) else json.dumps(header, ensure_ascii=False)
    encoded = text.encode() + b" " * padding
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(dtype, shape, begin, end) -> dict:
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def small_model(draw) -> dict:
    """A few tensors of several dtypes and ranks."""
    hidden, vocab = draw.integer(2, 5), draw.integer(6, 9)
    return {
        "model.embed_tokens.weight": draw.normal(vocab, hidden, dtype=torch.bfloat16),
        "model.norm.weight": draw.normal(hidden),
        "model.layers.0.mlp.up_proj.weight": draw.normal(7, hidden, dtype=torch.float16),
        "steps": draw.integers(0, 100, 1, 1, 3),
    }


@read_safetensors_header.inputs
def _(draw):
    def case(content, label="", refused=None):
        return Case((content,), label, use=from_file, exact=True, refused=refused)

    example = {"__metadata__": {"format": "pt"}, "w": entry("F32", [2], 0, 8)}
    yield case(file_of(example, bytes(8)), "the example")
    yield case(save(small_model(draw), {"format": "pt"}), "as safetensors writes it, with metadata")
    yield case(save(small_model(draw)), "as safetensors writes it, without metadata")
    sizes = draw.integer(1, 4), draw.integer(5, 8)
    odd = {
        "größe": entry("U8", list(sizes), 8, 8 + math.prod(sizes)),
        "empty": entry("BF16", [0, 3], 8, 8),
        "scalar": entry("F64", [], 0, 8),
    }
    data = bytes(8 + math.prod(sizes))
    yield case(file_of(odd, data), "a scalar, an empty tensor, a name with umlauts, in no order")
    yield case(file_of(odd, data, padding=5), "spaces behind the JSON")
    yield case(file_of({}), "no tensors")

    two = {"a": entry("F32", [2], 0, 8), "b": entry("F16", [3], 8, 14)}
    whole = file_of(two, bytes(14))
    yield case(b"", refused="the file is empty")
    yield case(whole[:5], refused="it ends within the first 8 bytes")
    yield case(whole[:30], refused="it ends within the header")
    yield case((2**60).to_bytes(8, "little") + whole[8:], refused="a header of 2⁶⁰ bytes")
    yield case(whole[:-1], refused="the last byte is missing")
    yield case(whole + b"\0", refused="one byte more than its tensors need")
    yield case(file_of('{"a": '), refused="the header is not JSON")
    yield case(file_of([]), refused="the header is a list")
    yield case(file_of(two | {"b": entry("F16", [3], 6, 12)}, bytes(12)), refused="b overlaps a")
    yield case(file_of(two | {"b": entry("F16", [3], 10, 16)}, bytes(16)), refused="2 bytes between a and b")
    yield case(file_of(two | {"b": entry("F16", [3], 800, 806)}, bytes(14)), refused="b lies outside")
    yield case(
        file_of(two | {"b": entry("F16", [4], 8, 14)}, bytes(14)), refused="6 bytes for 4 values of fp16"
    )
    yield case(file_of(two | {"b": entry("F17", [3], 8, 14)}, bytes(14)), refused="there is no dtype F17")


@read_safetensors_header.law("the bytes from start to end are the tensor")
def _(answer, draw):
    tensors = small_model(draw)
    content = save(tensors)
    found = from_file(answer, content)
    assert set(found) == set(tensors), f"The file has {sorted(tensors)}, and you found {sorted(found)}."
    for name, tensor in tensors.items():
        start, end = found[name][2]
        expected = tensor.contiguous().view(torch.uint8).flatten().tolist()
        assert list(content[start:end]) == expected, f"Those of {name} are others."


def header_of(path, *, skip=("__metadata__",), start=lambda length, text: 8 + length, shape=tuple,
              span=lambda begin, end: (begin, end)):  # fmt: skip
    """The header, with the places where people go wrong; what is broken is not refused."""
    content = Path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first = start(length, content[8 : 8 + length].decode())
    return {
        name: (
            each["dtype"],
            shape(each["shape"]),
            span(*(first + offset for offset in each["data_offsets"])),
        )
        for name, each in header.items()
        if name not in skip
    }


@read_safetensors_header.mistake(
    "offsets of the data",
    "You return the offsets as the header has them, counted from the start of the data and not of the file.",
    "Reading there gives pieces of the header and of other tensors: numbers without meaning, and no error.",
    "notebook 14, The header by hand",
)
def _(path):
    return header_of(path, start=lambda length, text: 0)


@read_safetensors_header.mistake(
    "without the length",
    "You add the length of the header, and not the 8 bytes in which that length stands.",
    "Every tensor starts 8 bytes early: in bf16 it is shifted by four values, and only looks plausible.",
    "notebook 14, The header by hand",
)
def _(path):
    return header_of(path, start=lambda length, text: length)


@read_safetensors_header.mistake(
    "metadata as a tensor",
    "You read __metadata__ as if it were a tensor; it has no dtype.",
    "transformers writes it into every file, with the format that the file was saved from.",
    "notebook 14, The header by hand",
)
def _(path):
    return header_of(path, skip=())


@read_safetensors_header.mistake(
    "characters counted",
    "You find the start of the data by counting the characters of the header; its length is in bytes.",
    "A letter such as ö takes two bytes, so one name with it shifts every tensor of the file.",
    "notebook 14, First by hand",
)
def _(path):
    return header_of(path, start=lambda length, text: 8 + len(text))


@read_safetensors_header.mistake(
    "spaces left out",
    "You find the start of the data by the end of the JSON; the spaces behind it belong to the header too.",
    "safetensors adds them so that the data start at a multiple of 8. Most files have some.",
    "notebook 14, The header by hand",
)
def _(path):
    return header_of(path, start=lambda length, text: 8 + len(text.rstrip(" ").encode()))


@read_safetensors_header.mistake(
    "size for end",
    "You give the start and the number of bytes; the second number is the end.",
    "A slice from start to size is empty, or holds the beginning of something else.",
    "notebook 14, First by hand",
)
def _(path):
    return header_of(path, span=lambda begin, end: (begin, end - begin))


@read_safetensors_header.mistake(
    "shape reversed",
    "You turn the shape round. GGUF files write it so; safetensors writes it as torch does.",
    "The number of values is right, so a view of this shape works, and mixes rows and columns.",
    "notebook 14, GGUF blocks",
)
def _(path):
    return header_of(path, shape=lambda shape: tuple(reversed(shape)))


# --------------------------------------------------------------------------------------------------
# 14.2

rename = UNIT.exercise(
    "rename",
    minutes=15,
    difficulty=2,
    hints=(
        "Cut the kind of parameter off the name first: only the module's path is looked up.",
        "Make a regular expression of a rule: (\\d+) where it has {}, re.escape for the pieces between.",
        (
            "re.fullmatch(pattern, module) gives the numbers as match.groups(); "
            "new.format(*numbers) puts them in."
        ),
    ),
)

SWAPPED = {
    "layers.{}.attention": "h.{}.attn",
    "layers.{}.norm_1": "layers.{}.norm_2",
    "layers.{}.norm_2": "layers.{}.norm_1",
    "final.norm": "ln_f",
    "final_norm": "norm_of_the_stream",
}
EXPERTS = {"blocks.{}.experts.{}.up": "layers.{}.mlp.{}.w3", "head.0": "classifier.dense"}


@rename.inputs
def _(draw):
    def case(name, rules, label):
        return Case((name, rules), label, exact=True)

    yield case("layers.12.mlp.up.weight", {"layers.{}.mlp.up": "h.{}.mlp.c_fc"}, "the example")
    for name, family in FAMILIES.items():
        rules = dict(family.weights)
        for module in draw.random.sample(sorted(rules), 3):
            kind = draw.random.choice(["weight", "bias"])
            path = module.format(draw.integer(0, 120))
            yield case(f"{path}.{kind}", rules, f"{path}.{kind} of {name}")
    both = {"decoder.layers.{}.mlp": "a.{}.b", "decoder.layers.{}.mlp_norm": "a.{}.c"}
    yield case("decoder.layers.7.mlp_norm.weight", both, "a rule for mlp, and one for mlp_norm")
    for module in ("layers.0.attention", "layers.25.norm_1", "layers.4.norm_2", "final_norm"):
        yield case(f"{module}.bias", SWAPPED, f"{module}.bias, by rules that swap two norms")
    layer, expert = draw.integer(10, 40), draw.integer(0, 9)
    yield case(f"blocks.{layer}.experts.{expert}.up.weight", EXPERTS, "two numbers")
    yield case("head.0.weight", EXPERTS, "a number in the rule itself")
    yield case("embed.weight", {"embed": "wte"}, "no number")
    refused = {
        "layers.3.attention_norm.weight": "no rule fits attention_norm",
        "model.layers.3.attention.weight": "no rule has a model in front",
        "layers.x.attention.weight": "x is no number",
        "layers.attention.weight": "the layer's index is missing",
        "finalxnorm.weight": "a dot in a rule means a dot",
    }
    for name, reason in refused.items():
        yield Case((name, SWAPPED), refused=reason)


@rename.law("with the rules turned round, the name comes back")
def _(answer, draw):
    for name, family in FAMILIES.items():
        rules = dict(family.weights)
        back = {new: old for old, new in rules.items()}
        for module in rules:
            ours = f"{module.format(draw.integer(0, 99))}.weight"
            theirs = answer(ours, rules)
            assert answer(theirs, back) == ours, f"In {name}, {ours} becomes {theirs}, and not itself again."


def renamed(
    name,
    rules,
    *,
    digits=r"\d+",
    escape=re.escape,
    match=re.fullmatch,
    kind=None,
    rest="",
    fill=True,
    chain=False,
):
    """Renaming with the places where people go wrong."""
    module, _, own_kind = name.rpartition(".")
    found = False
    for old, new in rules.items():
        hit = match(f"({digits})".join(escape(piece) for piece in old.split("{}")), module)
        if hit is not None:
            found = True
            left_over = module[hit.end() :] if rest == "kept" else ""
            module = (new.format(*hit.groups()) if fill else new) + left_over
            if not chain:
                break
    if not found:
        raise ValueError
    return f"{module}.{kind or own_kind}" if kind != "" else module


@rename.mistake(
    "beginning of a name",
    "A rule that fits the beginning of a module's path is enough for you, and the rest of the path stays.",
    "The rule for mlp takes mlp_norm as well: the tensor gets a name that no model has, or another's.",
    "notebook 14, Name rules",
)
def _(name, rules):
    return renamed(name, rules, match=re.match, rest="kept")


@rename.mistake(
    "rules in a chain",
    "You apply every rule in turn, each to what the one before it made.",
    "A rule that makes norm_2 of norm_1 and one that makes norm_1 of norm_2 "
    "undo each other, and the two norms "
    "come out unswapped.",
    "notebook 14, Break it",
)
def _(name, rules):
    return renamed(name, rules, chain=True)


@rename.mistake(
    "replaced anywhere",
    "You replace what a rule names wherever it stands in the name, rule after rule.",
    "A rule for mlp then changes mlp_norm too, and rules that swap two names undo each other.",
    "notebook 14, Break it",
)
def _(name, rules):
    for old, new in rules.items():
        pattern = r"(\d+)".join(re.escape(piece) for piece in old.split("{}"))
        name = re.sub(pattern, lambda match, new=new: new.format(*match.groups()), name)
    return name


@rename.mistake(
    "one digit",
    "Your {} takes a single digit: layers 0 to 9 are renamed and layer 10 is not.",
    "It passes on every small test model, and fails on the first real one.",
    "notebook 14, Name rules",
)
def _(name, rules):
    return renamed(name, rules, digits=r"\d")


@rename.mistake(
    "index lost",
    "You return the rule's right side with {} still in it.",
    "All layers then claim one name, and the last one read wins.",
    "notebook 14, First by hand",
)
def _(name, rules):
    return renamed(name, rules, fill=False)


@rename.mistake(
    "always weight",
    "You end every name in .weight, also that of a bias.",
    "A bias then claims the place of its matrix: a shape error if you are lucky, and a missing bias if not.",
    "notebook 14, Break it",
)
def _(name, rules):
    return renamed(name, rules, kind="weight")


@rename.mistake(
    "module alone",
    "You return the module's path, without .weight or .bias.",
    "A module with both has then one name for two tensors.",
    "notebook 14, First by hand",
)
def _(name, rules):
    return renamed(name, rules, kind="")


@rename.mistake(
    "dots for anything",
    (
        "A dot in a rule stands for any character with you, as in a regular "
        "expression: final.norm takes final_norm."
    ),
    "Two modules whose paths differ by one character get one name. re.escape makes a dot a dot.",
    "notebook 14, Name rules",
)
def _(name, rules):
    return renamed(name, rules, escape=str)


# --------------------------------------------------------------------------------------------------
# 14.3

first_divergence = UNIT.exercise(
    "first_divergence",
    minutes=20,
    difficulty=2,
    hints=(
        "Walk through trace_a in its order. What can go wrong before you have subtracted two results?",
        "inf - inf is NaN, and so is everything with NaN in it; and NaN > "
        "tolerance is False. Treat equal values "
        "first, then NaN.",
        (
            "gap = (a.float() - b.float()).abs(); gap[a == b] = 0; "
            "gap.nan_to_num(nan=inf). Compare shapes before."
        ),
    ),
)

OPERATIONS = ("input", "norm", "query", "scores", "context", "stream", "logits")


def as_tensors(answer, trace_a, trace_b, tolerance):
    """The answer with its difference as a tensor, in which rounding is allowed for."""
    found = answer(trace_a, trace_b, tolerance)
    if isinstance(found, (tuple, list)) and len(found) == 2 and not isinstance(found[1], str):
        return found[0], torch.tensor(float(found[1]))
    return found


def traces(draw, dtype=torch.float32, **errors):
    """Two traces that are equal but for some errors, which are added to one value each: name -> amount.

    Values are eighths, which every dtype and every order of subtracting leaves exact.
    """
    a = {name: (draw.integers(-40, 40, 2, 3, 4) / 8).to(dtype) for name in OPERATIONS}
    b = {name: tensor.clone() for name, tensor in a.items()}
    for name, amount in errors.items():
        b[name].view(-1)[draw.integer(0, 23)] += amount
    return a, b


@first_divergence.inputs
def _(draw):
    def case(a, b, tolerance, label):
        return Case((a, b, tolerance), label, use=as_tensors)

    a = {"norm": torch.tensor([1.0, 2.0]), "mlp": torch.tensor([3.0, 4.0])}
    b = {"norm": torch.tensor([1.0, 2.5]), "mlp": torch.tensor([9.0, 4.0])}
    for tolerance in (0.1, 1.0, 0.5, 7.0):
        yield case(a, b, tolerance, f"the example with tolerance {tolerance}")
    sign = draw.random.choice([-1, 1])
    yield case(*traces(draw), 0.0, "no difference")
    yield case(*traces(draw, query=0.5, context=-2.0, logits=30.0), 0.01, "errors that grow")
    yield case(*traces(draw, query=-0.5 * sign, scores=0.5 * sign), 0.01, "errors of both signs")
    yield case(
        *traces(draw, norm=0.125, context=3.0), 1.0, "a difference within the tolerance, then a larger one"
    )

    a, b = traces(draw, logits=1.0)
    b["scores"][0, 0, 0] = math.nan
    yield case(a, b, 0.1, "NaN in one trace")
    a, b = traces(draw, stream=1.0)
    a["context"][1, 2, 3] = b["context"][1, 2, 3] = math.nan
    yield case(a, b, 0.1, "NaN at the same place of both")
    for label in ("masked scores: -inf in both", "masked scores: another place masked in b"):
        a, b = traces(draw, stream=4.0)
        a["scores"][:, 0, 1:] = b["scores"][:, 0, 1:] = -math.inf
        if "another" in label:
            b["scores"][1, 2, 0] = -math.inf
        yield case(a, b, 0.1, label)

    a, b = traces(draw, logits=1.0)
    b["norm"], a["norm"] = a["norm"][:, :1], a["norm"][:, :1].expand(2, 3, 4).clone()
    yield case(a, b, 0.1, "shapes that can be broadcast, [2, 3, 4] and [2, 1, 4]")
    a, b = traces(draw, context=1.0)
    b["query"] = b["query"][:, :, :3]
    yield case(a, b, 0.1, "shapes that cannot, [2, 3, 4] and [2, 3, 3]")

    a, b = traces(draw, query=0.5, stream=2.0, logits=3.0)
    del b["input"], b["query"]
    yield case(a, b | {"extra": torch.ones(2)}, 0.1, "operations that only one trace has")
    a, b = traces(draw, query=1.0, context=2.0)
    yield case(a, {name: b[name] for name in reversed(b)}, 0.1, "trace_b in another order")
    a, b = ({"stream": torch.tensor([value], dtype=torch.bfloat16)} for value in (256.0, 0.5))
    yield case(a, b, 1.0, "bf16, where 256 - 0.5 would round to 256")
    a, b = traces(draw, context=0.25, logits=1.0)
    yield case(a, {name: b[name].bfloat16() for name in b}, 0.125, "one trace in fp32, the other in bf16")
    yield Case((traces(draw)[0], {"wte": torch.ones(3)}, 0.1), refused="the traces share no operation")


@first_divergence.law("what comes after the first difference does not matter")
def _(answer, draw):
    first = draw.integer(1, 5)
    a, b = traces(draw, **{name: 1.0 + index for index, name in enumerate(OPERATIONS) if index >= first})
    found = answer(a, b, 0.5)
    assert found is not None, f"{OPERATIONS[first]} differs by {1 + first}, and you return None."
    assert found[0] == OPERATIONS[first], f"{OPERATIONS[first]} differs first, and you say {found[0]!r}."


def divergences(
    a,
    b,
    tolerance,
    *,
    magnitude=torch.abs,
    reduce=torch.amax,
    nan=math.inf,
    equal_infinities=True,
    shapes=True,
    missing=False,
    wide=True,
    at_tolerance=False,
):
    """Every operation that differs, with the places where people go wrong."""
    if not a.keys() & b.keys():
        raise ValueError
    for name in a:
        if name not in b:
            if missing:
                yield name, math.inf
            continue
        x, y = a[name], b[name]
        if x.shape != y.shape and (shapes or x.shape[-1] != y.shape[-1]):
            if shapes:
                yield name, math.inf
            continue
        gap = magnitude(x.float() - y.float() if wide else x - y).float()
        if equal_infinities:
            gap = gap.masked_fill(x == y, 0.0)
        difference = float(reduce(gap.nan_to_num(nan=nan, posinf=math.inf, neginf=-math.inf)))
        if difference > tolerance or (at_tolerance and difference == tolerance):
            yield name, difference


@first_divergence.mistake(
    "the largest",
    "You return the operation that differs most; the first one is asked for.",
    "An error grows on its way through the layers, so the largest difference is mostly at the end, far from "
    "its cause.",
    "notebook 14, First divergence",
)
def _(a, b, tolerance):
    return max(divergences(a, b, tolerance), key=lambda each: each[1], default=None)


@first_divergence.mistake(
    "the last",
    "You return the last operation that differs; the first one is asked for.",
    "It is the logits in nearly every comparison, and tells nothing about the cause.",
    "notebook 14, First divergence",
)
def _(a, b, tolerance):
    return next(reversed(list(divergences(a, b, tolerance))), None)


@first_divergence.mistake(
    "NaN passes",
    "You do not see NaN: every comparison with it is False, also NaN > tolerance.",
    "The operation that first made NaN passes for equal, and so does everything after it.",
    "notebook 14, Break it",
)
def _(a, b, tolerance):
    return next(divergences(a, b, tolerance, nan=0.0), None)


@first_divergence.mistake(
    "sign kept",
    "You take the largest a - b and not the largest |a - b|: results that are too large in b pass.",
    "About half of the errors stay unseen, whatever their size.",
    "notebook 14, First divergence",
)
def _(a, b, tolerance):
    return next(divergences(a, b, tolerance, magnitude=lambda x: x), None)


@first_divergence.mistake(
    "mean difference",
    "You compare the mean of |a - b| with the tolerance; the largest is asked for.",
    "One wrong row of a long text, or one head of many, vanishes in a mean.",
    "notebook 14, First divergence",
)
def _(a, b, tolerance):
    return next(divergences(a, b, tolerance, reduce=torch.mean), None)


@first_divergence.mistake(
    "equal infinities differ",
    "Scores that are -inf in both traces differ with you: -inf - -inf is NaN.",
    "A causal mask that writes -inf then stops the search at the first scores, in every comparison.",
    "notebook 14, Break it",
)
def _(a, b, tolerance):
    return next(divergences(a, b, tolerance, equal_infinities=False), None)


@first_divergence.mistake(
    "shapes not compared",
    "You do not compare the shapes: two that can be broadcast are subtracted, and others are passed over.",
    "A missing head or a lost axis can look equal: [2, 1, 4] and three copies of it differ by 0.",
    "notebook 01, Break it",
)
def _(a, b, tolerance):
    return next(divergences(a, b, tolerance, shapes=False), None)


@first_divergence.mistake(
    "missing is different",
    "You report an operation that only one trace has; such operations are passed over.",
    "Two libraries cut a model into different pieces, and what both have can still be compared.",
    "notebook 14, First divergence",
)
def _(a, b, tolerance):
    return next(divergences(a, b, tolerance, missing=True), None)


@first_divergence.mistake(
    "subtracted in bf16",
    "You subtract results of bf16 in bf16: the difference is rounded to 8 bits.",
    "Differences come out as 0 or twice too large near the tolerance, which is where you look.",
    "notebook 01, Break it",
)
def _(a, b, tolerance):
    return next(divergences(a, b, tolerance, wide=False), None)


@first_divergence.mistake(
    "at the tolerance",
    "You report a difference that equals the tolerance; it has to be larger.",
    "With tolerance 0, which asks for equal bits, two equal models would differ at once.",
    "notebook 14, First divergence",
)
def _(a, b, tolerance):
    return next(divergences(a, b, tolerance, at_tolerance=True), None)
