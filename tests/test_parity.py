"""The comparison itself: it finds nothing in an intact model, and a planted mistake where it was planted."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import minilm
from minilm import attention, backends, masks, mlp, norm, parity, parity_command, rope
from minilm.families import FAMILIES, get_family
from minilm.parity import Case, Result


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Callable[[str], Path]:
    """The small randomised checkpoint of a family."""
    made = {}

    def get(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = tmp_path_factory.mktemp(model_type)
            parity.make_checkpoint(get_family(model_type), made[model_type])
        return made[model_type]

    return get


@pytest.fixture(scope="module")
def reference_trace(directory) -> Callable[[str, torch.dtype], parity.Trace]:
    """What every operation of transformers' model gives, traced once for all mistakes."""
    made = {}

    def get(model_type: str, dtype: torch.dtype) -> parity.Trace:
        if (model_type, dtype) not in made:
            model = minilm.load(directory(model_type), dtype=dtype)
            reference = parity.load_reference(directory(model_type), dtype)
            made[model_type, dtype] = parity.trace_reference(reference, model, input_ids(model))
        return made[model_type, dtype]

    return get


def input_ids(model: minilm.CausalLM) -> Tensor:
    return parity.make_batch(model.config.vocab_size, "none", rows=2).input_ids


# ----------------------------------------------------------------------------------------------------------
# The models that are compared


def test_randomised_parameters_have_the_promised_size():
    """Norm weights 1 + 0.3·N (0.3·N where the norm adds the 1), biases 0.3·N, matrices 1.5/√fan_in·N."""
    for model_type in FAMILIES:
        model = minilm.CausalLM(get_family(model_type).read_config(FAMILIES[model_type].tiny))
        parity.randomise(model, seed=0)
        biases, scales = [], []
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias":
                    biases.append(parameter.flatten())
                elif isinstance(module, norm.Norm):
                    scales.append(parameter)
                else:
                    fan_in = parameter.shape[-1]
                    assert parameter.std().item() == pytest.approx(1.5 / fan_in**0.5, rel=0.06)
                    assert parameter.mean().abs().item() < 5 * 1.5 / (fan_in * parameter.numel()) ** 0.5
        scales = torch.cat(scales)
        center = 0.0 if model.config.norm == "offset_rms" else 1.0
        assert scales.mean().item() == pytest.approx(center, abs=0.06)
        assert scales.std().item() == pytest.approx(0.3, rel=0.15)
        if biases:
            biases = torch.cat(biases)
            assert biases.mean().abs().item() < 0.06
            assert biases.std().item() == pytest.approx(0.3, rel=0.15)


def test_the_seed_decides_the_parameters():
    """The same seed gives the same model, another seed another one."""
    config = get_family("llama").read_config(FAMILIES["llama"].tiny)
    models = [minilm.CausalLM(config) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        parity.randomise(model, seed)
    one, same, other = (nn.utils.parameters_to_vector(model.parameters()) for model in models)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_checkpoint_gives_both_the_same_weights(directory, model_type):
    """The reference gets every weight of ours, and logits have the size of a real model's."""
    model = minilm.load(directory(model_type), backend="eager")
    reference = parity.load_reference(directory(model_type), torch.float32)
    count = sum(parameter.numel() for parameter in reference.parameters())
    assert count == sum(parameter.numel() for parameter in model.parameters())
    assert 1 < model(input_ids(model)).logits.abs().max() < 60


def test_batches_leave_one_row_unpadded():
    """Rows of different lengths, padded on the side that was asked for, and one that is full."""
    left, right, none = (parity.make_batch(50, side, length=9, rows=3) for side in ("left", "right", "none"))
    assert none.mask.all()
    for batch in (left, right):
        assert batch.mask.sum(-1).tolist() == [9, 5, 2]
    assert left.mask[:, -1].all()
    assert right.mask[:, 0].all()
    assert left.position_ids[1].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4]
    assert right.position_ids[1, :5].tolist() == [0, 1, 2, 3, 4]
    assert int(none.input_ids.max()) < 50


@pytest.mark.parametrize("cache", parity.CACHES)
def test_pieces_cover_the_text_once(cache):
    """Whatever the use of the cache, every token is computed once, in order."""
    pieces = parity.pieces(cache, 17)
    assert [index for start, end in pieces for index in range(start, end)] == list(range(17))
    assert len(pieces) == {"none": 1, "chunks": 4, "steps": 17}[cache]


# ----------------------------------------------------------------------------------------------------------
# Comparing results


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_intact_model_has_no_difference(directory, model_type):
    """Exactly 0 and the same greedy tokens; every case that was asked for is there, once."""
    settings = {"backend_names": ["eager"], "caches": ["none", "steps"], "paddings": ["left"]}
    results = list(parity.compare(directory(model_type), **settings))
    assert {(item.difference, item.tokens_agree) for item in results} == {(0.0, True)}
    cases = [item.case for item in results]
    assert len(cases) == len(set(cases)) == len(parity.DTYPES) * 2
    assert {case.dtype for case in cases} == {"fp32", "bf16"}


def test_a_changed_weight_is_a_difference(directory, monkeypatch):
    """As is every mistake that moves a logit: the number says by how much, and greedy tokens change."""
    load = minilm.checkpoint.load

    def load_changed(*args, **settings):
        model = load(*args, **settings)
        model.decoder.layers[1].mlp.up_proj.weight.data *= 2
        return model

    monkeypatch.setattr(minilm.checkpoint, "load", load_changed)
    results = list(
        parity.compare(directory("llama"), dtypes=["fp32"], backend_names=["eager"], paddings=["left"])
    )
    assert len(results) == 3
    assert all(item.difference > 0.1 and not item.tokens_agree for item in results)


def test_greedy_tokens_are_compared_beyond_the_text(directory, monkeypatch):
    """A mistake that only decoding makes is found, though every logit of the given text is equal."""
    decode = parity.generate

    def one_token_wrong(*args, **settings):
        tokens = decode(*args, **settings).clone()
        tokens[0, -1] += 1
        return tokens

    monkeypatch.setattr(parity, "generate", one_token_wrong)
    settings = {"dtypes": ["fp32"], "backend_names": ["eager"], "paddings": ["none"]}
    results = {item.case.cache: item for item in parity.compare(directory("llama"), **settings)}
    assert {item.difference for item in results.values()} == {0.0}
    assert {cache: item.tokens_agree for cache, item in results.items()} == {
        "none": True, "chunks": True, "steps": False,
    }  # fmt: skip


def test_what_is_no_checkpoint_is_refused_in_our_words(tmp_path):
    with pytest.raises(minilm.CheckpointError, match=r"has no config\.json, so it is not a checkpoint"):
        list(parity.compare(tmp_path))


def test_small_models_run_on_one_thread():
    """Several threads are many times slower on a busy machine; their number is restored, whatever happens."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results = parity.compare_families(["llama"])
        next(results)
        assert torch.get_num_threads() == 1
        results.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ----------------------------------------------------------------------------------------------------------
# The table


def render(results: list[Result]) -> str:
    """The table as a screen of 80 columns shows it."""
    screen = io.StringIO()
    Console(file=screen, width=80).print(parity_command.as_table(results))
    return screen.getvalue()


def all_cases(
    name: str, difference: Callable[[Case], float], agree: Callable[[Case], bool]
) -> Iterator[Result]:
    for dtype in parity.DTYPES:
        for padding in parity.PADDINGS:
            for cache in parity.CACHES:
                for backend in parity.BACKENDS:
                    case = Case(dtype, backend, cache, padding)
                    yield Result(name, case, difference(case), agree(case))


def test_the_table_of_all_families_fits_80_columns():
    """With the widest numbers that occur and backends that disagree about tokens: nothing is cut off."""
    results = [
        result
        for name in FAMILIES
        for result in all_cases(name, lambda case: 1.234e-05, lambda case: case.backend == "eager")
    ]
    text = render(results)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("1e-05") == len(results)
    assert text.count("eager only") == len(FAMILIES) * len(parity.DTYPES) * len(parity.PADDINGS)
    for name in FAMILIES:
        assert sum(line.startswith(name) for line in text.splitlines()) == 1, "a name stands once per model"


def test_a_long_path_does_not_cut_the_table():
    """It is folded over several lines; the numbers stay."""
    path = "/home/learner/checkpoints/experiments/2024/a-model-with-a-long-name"
    text = render(list(all_cases(path, lambda case: 0.0, lambda case: True)))
    assert "…" not in text
    assert "greedy" in text and "tokens" in text
    assert text.count("yes") == 6
    squeezed = "".join(line[:30].split(" ")[0] for line in text.splitlines()[3:])
    assert squeezed.startswith(path), "every letter of the path is there"


def test_the_table_says_who_agrees():
    """yes, no, or which backends do; differences are 0, small powers of ten, or plain."""

    def verdicts(agree: Callable[[Case], bool]) -> list[str]:
        lines = render(list(all_cases("m", lambda case: 0.0, agree))).splitlines()[-6:]
        return [line.split("0 ")[-1].strip() for line in lines]

    assert verdicts(lambda case: True) == ["yes"] * 6
    assert verdicts(lambda case: False) == ["no"] * 6
    assert verdicts(lambda case: case.backend == "eager" or case.cache == "none") == ["eager only"] * 6
    numbers = [0.0, 3e-7, 0.0625, float("nan")]
    results = [Result(str(n), Case("fp32", "eager", "none", "none"), n, True) for n in numbers]
    shown = [line.split()[3] for line in render(results).splitlines()[-4:]]
    assert shown == ["0", "3e-07", "0.062", "nan"]


# ----------------------------------------------------------------------------------------------------------
# Operation by operation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_both_traces_name_the_same_operations(directory, reference_trace, model_type, dtype):
    """The same names in the same order, and no difference in an intact model."""
    model = minilm.load(directory(model_type), dtype=dtype)
    ours = parity.trace_ours(model, input_ids(model))
    theirs = reference_trace(model_type, dtype)
    assert list(ours) == list(theirs)
    assert parity.first_divergence(ours, theirs) is None
    layers = model.config.num_layers
    assert next(iter(ours)) == "input" and list(ours)[-2:] == ["final_norm", "logits"]
    for (
        part
    ) in "attention_norm value scores probabilities context attention.o_proj mlp.activated stream".split():
        assert sum(name.endswith(f".{part}") for name in ours) == layers, part
    assert torch.equal(ours["logits"], model_logits(model)), "tracing changes nothing"


def model_logits(model: minilm.CausalLM) -> Tensor:
    model.backend = "eager"
    with torch.no_grad():
        return model(input_ids(model)).logits


def shown_in(path: str) -> str:
    """The first operation in which a changed parameter of this module shows."""
    if path in ("decoder.embed_tokens", "decoder.embed_positions"):
        return "input"
    if path == "lm_head":
        return "logits"
    name = path.removeprefix("decoder.")
    for letter, word in (("q", "query"), ("k", "key")):
        name = name.replace(f"attention.{letter}_norm", f"{word} before rotation")
    return name


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_changed_parameter_is_found_where_it_is(directory, reference_trace, model_type):
    """Every parameter of layer 1 and those outside the layers: the module, how much agreed before, a hint."""
    model = minilm.load(directory(model_type))
    theirs = reference_trace(model_type, torch.float32)
    found = 0
    for name, parameter in model.named_parameters():
        if ".layers." in name and ".layers.1." not in name:
            continue
        kept = parameter.data
        parameter.data = kept + 0.01
        divergence = parity.first_divergence(parity.trace_ours(model, input_ids(model)), theirs)
        parameter.data = kept
        expected = shown_in(name.rpartition(".")[0])
        assert divergence is not None, name
        assert divergence.name == expected
        assert divergence.equal_before == list(theirs).index(expected)
        assert divergence.difference > 0
        assert f"first divergence: {expected} differs by up to" in str(divergence)
        assert f"operations before it that agree: {divergence.equal_before}. Look at: " in str(divergence)
        found += 1
    assert found >= 10
    assert parity.first_divergence(parity.trace_ours(model, input_ids(model)), theirs) is None


def swap(module, name: str, change: Callable) -> Callable:
    """A mistake that puts change(original) in the place of a function."""

    def plant(monkeypatch, model):
        monkeypatch.setattr(module, name, change(getattr(module, name)))

    return plant


def in_layer_1(change: Callable[[nn.Module], None]) -> Callable:
    """A mistake in one block only."""

    def plant(monkeypatch, model):
        change(model.decoder.layers[1])

    return plant


def set_eps(block: nn.Module) -> None:
    block.mlp_norm.eps *= 10


def make_sequential(block: nn.Module) -> None:
    block.parallel = False


def drop_head_norms(block: nn.Module) -> None:
    block.attention.config = block.attention.config.replace(qk_norm=False)


def every_second_call_tiled(repeat_kv: Callable) -> Callable:
    """Keys are repeated rightly and values are not: they come second."""
    calls = iter(range(10**6))
    return lambda x, groups: x.repeat(1, groups, 1, 1) if next(calls) % 2 else repeat_kv(x, groups)


def positions_off_by_one(cos_sin: Callable) -> Callable:
    return lambda position_ids, *args, **settings: cos_sin(position_ids + 1, *args, **settings)


def unscaled_embedding(embed: Callable) -> Callable:
    return lambda self, ids: self.embed_tokens(ids)


def sees_not_itself(causal_mask: Callable) -> Callable:
    return lambda queries, keys, device=None: torch.ones(1, 1, queries, keys).tril(-1).bool()


def gate_and_up_swapped(forward: Callable) -> Callable:
    return lambda self, x: self.down_proj(mlp.activate(self.up_proj(x), self.activation) * self.gate_proj(x))


def no_minus_sign(rotate_half: Callable) -> Callable:
    return lambda x: torch.cat((x.chunk(2, dim=-1)[1], x.chunk(2, dim=-1)[0]), dim=-1)


def three_blocks(split: Callable) -> Callable:
    return lambda qkv, heads: tuple(attention.split_heads(part, heads) for part in qkv.chunk(3, dim=-1))


def key_and_value_swapped(split: Callable) -> Callable:
    return lambda *args: tuple(split(*args)[index] for index in (0, 2, 1))


MISTAKES = {
    "theta": (
        "llama", "fp32",
        swap(rope, "inverse_frequencies", lambda f: lambda dim, theta: f(dim, theta * 100)),
        "layers.0.query rotated", "theta",
    ),
    "position off by one": (
        "qwen2", "fp32", swap(rope, "cos_sin", positions_off_by_one),
        "layers.0.query rotated", "positions",
    ),
    "sign in rotate_half": (
        "gpt_neox", "fp32", swap(rope, "rotate_half", no_minus_sign),
        "layers.0.query rotated", "how dimensions pair",
    ),
    "key not rotated": (
        "gemma", "fp32",
        swap(rope, "apply_rope", lambda f: lambda q, k, cos, sin: (f(q, k, cos, sin)[0], k)),
        "layers.0.key rotated", "the rotary frequencies",
    ),
    "repeat_kv tiled": (
        "mistral", "fp32",
        swap(attention, "repeat_kv", lambda f: lambda x, groups: x.repeat(1, groups, 1, 1)),
        "layers.0.scores", "repeat_kv",
    ),
    "values tiled": (
        "llama", "fp32", swap(attention, "repeat_kv", every_second_call_tiled),
        "layers.0.context", "which value head",
    ),
    "softmax in bf16": (
        "qwen3", "bf16",
        swap(backends, "attention_weights", lambda f: lambda scores, mask, softmax: f(scores, mask, "input")),
        "layers.0.probabilities", "the precision of the softmax",
    ),
    "no scale": (
        "gpt_bigcode", "fp32",
        swap(backends, "attention_scores", lambda f: lambda q, k, scale, *rest: f(q, k, 1.0, *rest)),
        "layers.0.scores", "the scale",
    ),
    "mask without the diagonal": (
        "llama", "fp32", swap(masks, "causal_mask", sees_not_itself), "layers.0.scores", "the mask",
    ),
    "heads merged without the transpose": (
        "gemma", "fp32",
        swap(attention, "merge_heads", lambda f: lambda x: x.reshape(x.shape[0], x.shape[2], -1)),
        "layers.0.attention.o_proj", "how the heads are merged",
    ),
    "fused rows in three blocks": (
        "gpt_neox", "fp32", swap(attention, "split_qkv_per_head", three_blocks),
        "layers.0.query before rotation", "fused rows",
    ),
    "key and value swapped": (
        "gpt_bigcode", "fp32", swap(attention, "split_qkv_blocks", key_and_value_swapped),
        "layers.0.value", "fused rows",
    ),
    "activation": (
        "qwen2", "fp32", swap(mlp, "silu", lambda f: mlp.gelu),
        "layers.0.mlp.activated", "the activation function",
    ),
    "tanh for the exact GELU": (
        "gpt_neox", "fp32", swap(mlp, "gelu", lambda f: mlp.gelu_tanh),
        "layers.0.mlp.activated", "the activation function",
    ),
    "gate and up swapped": (
        "llama", "fp32", swap(mlp.GatedMLP, "forward", gate_and_up_swapped),
        "layers.0.mlp.activated", "gate and up swapped",
    ),
    "norm eps": ("llama", "fp32", in_layer_1(set_eps), "layers.1.mlp_norm", "its eps"),
    "norm rounds later": (
        "llama", "bf16",
        swap(norm, "rms_norm", lambda f: lambda x, w, eps: f(x.float(), w.float(), eps).to(x.dtype)),
        "layers.0.attention_norm", "where it rounds",
    ),
    "w for 1 + w": (
        "gemma", "fp32", swap(norm, "offset_rms_norm", lambda f: norm.rms_norm),
        "layers.0.attention_norm", "the norm's kind",
    ),
    "no norm of the heads": (
        "qwen3", "fp32", in_layer_1(drop_head_norms),
        "layers.1.query before rotation", "a norm on heads",
    ),
    "sequential for parallel": (
        "gpt_neox", "fp32", in_layer_1(make_sequential), "layers.1.middle stream", "parallel or sequential",
    ),
    "embedding not scaled": (
        "gemma", "fp32", swap(minilm.model.Decoder, "embed", unscaled_embedding), "input", "its scale",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_where_it_was_made(directory, reference_trace, monkeypatch, mistake):
    """The first operation that differs is the one with the mistake, and the sentence says what to look at."""
    model_type, dtype, plant, expected, hint = MISTAKES[mistake]
    model = minilm.load(directory(model_type), dtype=parity.DTYPES[dtype])
    theirs = reference_trace(model_type, parity.DTYPES[dtype])
    plant(monkeypatch, model)
    divergence = parity.first_divergence(parity.trace_ours(model, input_ids(model)), theirs)
    assert divergence is not None
    assert divergence.name == expected
    assert divergence.equal_before == list(theirs).index(expected)
    assert hint in str(divergence).partition("Look at: ")[2]


def test_the_place_is_named(directory, reference_trace):
    """One row of a projection is changed: the index of the largest difference points at that feature."""
    model = minilm.load(directory("llama"))
    model.decoder.layers[1].attention.o_proj.weight.data[5] += 0.1
    trace = parity.trace_ours(model, input_ids(model))
    divergence = parity.first_divergence(trace, reference_trace("llama", torch.float32))
    assert divergence.name == "layers.1.attention.o_proj"
    assert divergence.where[-1] == 5
    gap = trace[divergence.name] - reference_trace("llama", torch.float32)[divergence.name]
    assert gap[divergence.where].abs().item() == divergence.difference == gap.abs().max().item()
    assert f"at index {list(divergence.where)}" in str(divergence)


def test_tracing_leaves_nothing_behind(directory, monkeypatch):
    """No hooks, no replaced functions, the backend as before; also when the model fails."""
    model = minilm.load(directory("llama"), backend="sdpa")
    before = rope.apply_rope, backends.eager_attention, parity.backends.eager_attention

    def check():
        assert (rope.apply_rope, backends.eager_attention, parity.backends.eager_attention) == before
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert model.backend == "sdpa"

    parity.trace_ours(model, input_ids(model))
    check()
    with monkeypatch.context() as patch:

        def fail(*args, **settings):
            raise RuntimeError("in the middle")

        patch.setattr(mlp, "activate", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            parity.trace_ours(model, input_ids(model))
    check()


# ----------------------------------------------------------------------------------------------------------
# First divergence, on traces written by hand


def diverge(ours: dict, reference: dict, tolerance: float = 0.0) -> parity.Divergence | None:
    as_tensors = [{name: torch.tensor(value) for name, value in trace.items()} for trace in (ours, reference)]
    return parity.first_divergence(*as_tensors, tolerance=tolerance)


def test_equal_traces_do_not_diverge():
    inf = float("inf")
    trace = {"input": [1.0, -0.0], "layers.0.scores": [inf, -inf], "logits": [0.0]}
    assert diverge(trace, trace) is None
    assert diverge({}, {}) is None


def test_the_first_of_several_is_reported():
    """In the order of computing, not by size."""
    found = diverge(
        {"input": [1.0], "a": [2.0, 2.5], "b": [99.0]}, {"input": [1.0], "a": [2.0, 2.0], "b": [0.0]}
    )
    assert (found.name, found.difference, found.where, found.equal_before) == ("a", 0.5, (1,), 1)


def test_tolerance_forgives_what_is_not_larger():
    ours, theirs = {"a": [1.0], "b": [1.5]}, {"a": [1.25], "b": [1.0]}
    assert diverge(ours, theirs, tolerance=0.2).name == "a"
    assert diverge(ours, theirs, tolerance=0.25).name == "b"
    assert diverge(ours, theirs, tolerance=0.5) is None


def test_shapes_that_differ_are_named():
    """They cannot be compared, so both are shown; no tolerance forgives them."""
    whole, flat = ({"input": [0.0], "layers.0.value": value} for value in ([[1.0, 2.0]], [1.0, 2.0]))
    found = diverge(whole, flat, tolerance=9)
    assert found.shapes == ((1, 2), (2,))
    assert "layers.0.value is (1, 2), not (2,); operations before it that agree: 1." in str(found)
    assert "Look at: how the projection" in str(found)


@pytest.mark.parametrize("ours", [float("nan"), float("inf")])
def test_nan_and_infinity_are_differences(ours):
    """Comparisons with NaN are false, so it would pass unseen; no tolerance forgives it."""
    found = diverge({"input": [1.0, ours, 2.0]}, {"input": [1.0, 0.0, 1.0]}, tolerance=1e30)
    assert (found.name, found.where, found.difference) == ("input", (1,), float("inf"))
    assert "input differs by NaN or infinity, at index [1]" in str(found)
    assert diverge({"input": [0.0]}, {"input": [ours]}) is not None


def test_how_far_below_masked_scores_are_does_not_matter():
    """Each model has its own large negative number; a score that only one of them masks is a difference."""
    low = float("-inf")
    assert diverge({"layers.0.scores": [0.5, -3e38]}, {"layers.0.scores": [0.5, low]}) is None
    assert diverge({"layers.0.scores": [0.5, -3e38]}, {"layers.0.scores": [0.5, 1.0]}).where == (1,)
    assert diverge({"layers.0.value": [0.5, -3e38]}, {"layers.0.value": [0.5, low]}) is not None


def test_operations_of_one_model_only_are_left_out():
    """A learner's softmax may not be seen; the comparison goes on with what both have."""
    found = diverge({"input": [1.0], "own": [3.0], "logits": [2.0]}, {"input": [1.0], "logits": [1.0]})
    assert (found.name, found.equal_before) == ("logits", 1)


def test_every_hint_is_used(directory, reference_trace):
    """A hint whose name no operation has would never be shown, and every operation has one."""
    names = {name for model_type in FAMILIES for name in reference_trace(model_type, torch.float32)}
    for end in parity.HINTS:
        assert any(name.endswith(end) for name in names), end
    for name in names:
        assert any(name.endswith(end) for end in parity.HINTS), name
