"""Checkpoints: complete or refused on the way in, bit for bit the same on the way out."""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
from reference import load_reference, make_reference
from torch import Tensor
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import minilm
from minilm import CheckpointError, ConfigError, checkpoint, staging
from minilm.families import FAMILIES

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> Callable:
    """Checkpoints of transformers, made once and only read: (family, dtype) -> (directory, model)."""
    root = tmp_path_factory.mktemp("references")
    return functools.cache(lambda model_type, dtype=torch.float32: make_reference(model_type, root, dtype))


@pytest.fixture
def llama(tmp_path) -> Path:
    """A small checkpoint of one file, to be damaged; it is untied and has grouped key heads."""
    return make_reference("llama", tmp_path)[0]


def weights_of(directory: Path) -> dict[str, Tensor]:
    """Every tensor of every safetensors file of a directory."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= safetensors.torch.load_file(path)
    return tensors


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a checkpoint of one file."""
    tensors = weights_of(directory)
    change(tensors)
    safetensors.torch.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def parameters_of(model: minilm.CausalLM) -> dict[str, Tensor]:
    """A model's parameters by the names of its family's files."""
    family = FAMILIES[model.family]
    return {family.file_name(name): parameter.detach() for name, parameter in model.named_parameters()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Same names, dtypes, shapes and bits; unlike ==, this tells -0 from 0 and knows NaN."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype
        and tensor.shape == other[name].shape
        and torch.equal(tensor.contiguous().view(torch.uint8), other[name].contiguous().view(torch.uint8))
        for name, tensor in one.items()
    )


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file of a directory, hidden ones included, with its content."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(12).view(2, 6) * 7).logits


def refusal(source: Path | str, error: type[Exception] = CheckpointError) -> str:
    """The message with which a source is refused."""
    with pytest.raises(error) as caught:
        minilm.load(source)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------
# Reading and writing what transformers reads and writes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_load_gives_every_tensor_unchanged_and_in_its_place(references, model_type, dtype):
    directory, reference = references(model_type, dtype)
    model = minilm.load(directory)
    assert same_bits(parameters_of(model), weights_of(directory))
    assert (model.dtype, model.family, model.training, model.backend) == (dtype, model_type, False, "sdpa")
    assert model.generation_config == json.loads((directory / "generation_config.json").read_text())
    model.backend = "eager"
    assert torch.equal(logits(model), logits(reference))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_save_keeps_every_tensor_and_transformers_reads_it(references, model_type, dtype, tmp_path):
    directory, reference = references(model_type, dtype)
    model = minilm.load(directory)
    minilm.save(model, tmp_path)
    assert same_bits(weights_of(tmp_path), weights_of(directory))
    assert f"torch.{json.loads((tmp_path / 'config.json').read_text())['dtype']}" == str(dtype)
    again = load_reference(tmp_path)
    assert again.dtype == dtype
    assert torch.equal(logits(again), logits(reference))
    assert minilm.load(tmp_path).config == model.config
    assert minilm.load(tmp_path).generation_config == model.generation_config


def test_save_keeps_zeros_with_a_sign_and_numbers_that_are_none(llama, tmp_path):
    def mark(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"][:3] = torch.tensor([-0.0, float("nan"), float("inf")])
        tensors["model.norm.weight"].view(torch.int32)[3] = 0x7FC01234  # a NaN with a message

    rewrite(llama, mark)
    minilm.save(minilm.load(llama), tmp_path / "out")
    assert same_bits(weights_of(tmp_path / "out"), weights_of(llama))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_shards_in_and_out(references, model_type, tmp_path):
    directory, reference = references(model_type)
    reference.save_pretrained(tmp_path / "in", max_shard_size="50KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    model = minilm.load(tmp_path / "in")
    assert same_bits(parameters_of(model), weights_of(directory))

    minilm.save(model, tmp_path / "out", max_shard_bytes=50_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 2
    assert set(json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"].values()) == set(files)
    assert same_bits(weights_of(tmp_path / "out"), weights_of(directory))
    assert torch.equal(logits(load_reference(tmp_path / "out")), logits(reference))


def test_the_class_name_of_the_head_is_read_as_well(references, tmp_path):
    """gpt_neox files call the head embed_out; the class of transformers calls it lm_head."""
    directory, reference = references("gpt_neox")
    reference.config.save_pretrained(tmp_path)
    safetensors.torch.save_file(
        reference.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    assert "lm_head.weight" in weights_of(tmp_path)
    assert same_bits(parameters_of(minilm.load(tmp_path)), weights_of(directory))

    rewrite(tmp_path, lambda tensors: tensors.update({"embed_out.weight": tensors["lm_head.weight"].clone()}))
    assert "two tensors for embed_out.weight" in refusal(tmp_path)


def test_a_new_model_can_be_saved(tmp_path):
    config = FAMILIES["qwen2"].read_config(FAMILIES["qwen2"].tiny)
    model = minilm.CausalLM(config, backend="eager").eval()
    with pytest.raises(ValueError, match=r"no family yet.*set model\.family: .*qwen2"):
        minilm.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.family = "qwen2"
    minilm.save(model, tmp_path / "out")
    assert torch.equal(logits(load_reference(tmp_path / "out")), logits(model))
    model.family = "llama"
    with pytest.raises(ConfigError, match=r"a llama config\.json cannot say"):
        minilm.save(model, tmp_path / "llama")


# ----------------------------------------------------------------------------------------------------------
# Saving over what is there


def test_files_of_an_earlier_save_do_not_stay(references, tmp_path):
    """One file over shards, then shards over one file: only the last save stays, and other files."""
    first, second = minilm.load(references("llama")[0]), minilm.load(references("qwen2")[0])
    second.generation_config = {}
    (tmp_path / "tokenizer.json").write_text("{}")
    minilm.save(first, tmp_path, max_shard_bytes=50_000)
    minilm.save(second, tmp_path)
    assert sorted(snapshot(tmp_path)) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert same_bits(parameters_of(minilm.load(tmp_path)), parameters_of(second))

    minilm.save(first, tmp_path, max_shard_bytes=50_000)
    assert not (tmp_path / "model.safetensors").exists()
    assert same_bits(parameters_of(minilm.load(tmp_path)), parameters_of(first))
    assert minilm.load(tmp_path).generation_config == first.generation_config != {}


@pytest.mark.parametrize("max_shard_bytes", [50_000, 10_000_000])
def test_save_over_the_file_that_the_weights_are_mapped_from(references, tmp_path, max_shard_bytes):
    directory, _ = references("llama")
    minilm.save(minilm.load(directory), tmp_path, max_shard_bytes=50_000)
    model = minilm.load(tmp_path)
    minilm.save(model, tmp_path, max_shard_bytes=max_shard_bytes)
    assert same_bits(parameters_of(model), weights_of(directory))
    assert same_bits(weights_of(tmp_path), weights_of(directory))


@pytest.mark.parametrize("interruption", [OSError("No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("stage", ["second shard", "config"])
def test_an_interrupted_save_changes_nothing(references, tmp_path, monkeypatch, stage, interruption):
    """Shards of the same names are there already, so half a save would be a mixture of two models."""
    model = minilm.load(references("llama")[0])
    minilm.save(model, tmp_path, max_shard_bytes=50_000)
    before = snapshot(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)

    def failing(function: Callable) -> Callable:
        def write(values: dict, path: Path, **options) -> None:
            if path.name.startswith("model-00002") or path.name == "config.json":
                path.write_bytes(b"half")
                raise interruption
            function(values, path, **options)

        return write

    if stage == "second shard":
        monkeypatch.setattr(checkpoint, "save_file", failing(checkpoint.save_file))
    else:
        fail = failing(lambda values, path: path.write_text(json.dumps(values)))
        monkeypatch.setattr(checkpoint, "write_json", lambda path, values: fail(values, path))
    with pytest.raises(type(interruption)):
        minilm.save(model, tmp_path, max_shard_bytes=50_000)
    assert snapshot(tmp_path) == before
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_save_that_is_cut_off_while_it_replaces_files_is_done(references, tmp_path, monkeypatch):
    """The new model is whole, and loaded; transformers is told of none; the next save clears up."""
    first, second = minilm.load(references("llama")[0]), minilm.load(references("qwen2")[0])
    minilm.save(first, tmp_path)

    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(staging.os, "link", interrupted)
        minilm.save(second, tmp_path, also=lambda folder: (folder / "tokenizer.json").write_text("{}"))
    assert same_bits(parameters_of(minilm.load(tmp_path)), parameters_of(second))
    assert (checkpoint.resolve(tmp_path) / "tokenizer.json").is_file()
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        load_reference(tmp_path)
    minilm.save(second, tmp_path)
    assert same_bits(weights_of(tmp_path), parameters_of(second))
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("max_shard_bytes", [50_000, 10_000_000])
def test_a_save_where_files_cannot_have_two_names(references, tmp_path, monkeypatch, max_shard_bytes):
    """On a file system without hard links files are copied."""

    def refused(source: Path, target: Path) -> None:
        raise PermissionError("not supported here")

    monkeypatch.setattr(staging.os, "link", refused)
    first, second = minilm.load(references("llama")[0]), minilm.load(references("qwen2")[0])
    minilm.save(first, tmp_path, max_shard_bytes=50_000)
    minilm.save(second, tmp_path, max_shard_bytes=max_shard_bytes)
    assert same_bits(weights_of(tmp_path), parameters_of(second))
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# ----------------------------------------------------------------------------------------------------------
# Tied tables, buffers, dtypes


def test_a_tied_model_with_one_table_or_two(tmp_path):
    directory, reference = make_reference("llama", tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in weights_of(directory)
    expected = parameters_of(minilm.load(directory))
    assert minilm.load(directory).lm_head is None

    def add_copy(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(directory, add_copy)
    assert same_bits(parameters_of(minilm.load(directory)), expected)
    rewrite(directory, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert same_bits(parameters_of(minilm.load(directory)), expected)
    assert torch.equal(
        logits(load_reference(directory)), logits(reference)
    )  # transformers reads it so as well


def test_a_tied_model_with_two_different_tables_is_refused(tmp_path):
    directory, _ = make_reference("llama", tmp_path, tie_word_embeddings=True)
    rewrite(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    assert "two different tables; set tie_word_embeddings to false" in refusal(directory)
    edit_config(directory, tie_word_embeddings=False)
    model = minilm.load(directory)
    assert torch.equal(model.lm_head.weight, model.decoder.embed_tokens.weight + 1)


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        (
            "gpt_bigcode",
            ["transformer.h.0.attn.bias", "transformer.h.2.attn.masked_bias", "transformer.bias"],
        ),
        (
            "gpt_neox",
            ["gpt_neox.layers.1.attention." + n for n in ("bias", "masked_bias", "rotary_emb.inv_freq")],
        ),
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("gemma", ["model.layers.2.self_attn.rotary_emb.inv_freq"]),
    ],
)
def test_buffers_that_old_files_carry_are_ignored(references, tmp_path, model_type, names):
    directory, _ = references(model_type)
    minilm.save(minilm.load(directory), tmp_path)
    rewrite(
        tmp_path,
        lambda tensors: tensors.update({name: torch.ones(1, 1, 4, 4).tril().bool() for name in names}),
    )
    assert same_bits(parameters_of(minilm.load(tmp_path)), weights_of(directory))


def test_buffers_are_told_from_biases(references, tmp_path):
    """`attention.bias` is a mask, `attention.dense.bias` a parameter that must be there."""
    minilm.save(minilm.load(references("gpt_neox")[0]), tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop("gpt_neox.layers.1.attention.dense.bias"))
    assert "missing gpt_neox.layers.1.attention.dense.bias" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.float16, torch.bfloat16), torch.float32),  # neither holds the other
        ((torch.float16, torch.float64), torch.float64),
    ],
)
def test_mixed_dtypes_are_widened_without_loss(llama, dtypes, widest):
    def mix(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(dtypes["norm" in name])

    rewrite(llama, mix)
    model = minilm.load(llama)
    assert model.dtype == widest
    assert same_bits(parameters_of(model), {name: t.to(widest) for name, t in weights_of(llama).items()})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_dtype_can_be_chosen(references, dtype):
    directory, _ = references("llama", torch.bfloat16)
    model = minilm.load(directory, dtype=dtype)
    assert same_bits(parameters_of(model), {name: t.to(dtype) for name, t in weights_of(directory).items()})


# ----------------------------------------------------------------------------------------------------------
# Damaged checkpoints


def test_tensors_that_do_not_fit_are_named(llama):
    def damage(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.3.mlp.up_proj.weight"] = torch.zeros(1)
        tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(48, 16)
        tensors["model.layers.0.self_attn.v_proj.weight"] = torch.zeros(16, 48, dtype=torch.int8)
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(48, 48).to(torch.float8_e4m3fn)

    rewrite(llama, damage)
    message = refusal(llama)
    assert "the weights do not fit the llama model of config.json" in message
    assert "missing model.layers.1.mlp.up_proj.weight" in message
    assert "unexpected model.layers.3.mlp.up_proj.weight" in message
    assert "model.layers.0.self_attn.k_proj.weight is (48, 16) where (16, 48) is needed" in message
    assert (
        "model.layers.0.self_attn.v_proj.weight is torch.int8; quantised weights are not supported" in message
    )
    assert "model.layers.0.self_attn.q_proj.weight is torch.float8_e4m3fn; quantised" in message


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_tensor_may_be_missing(references, model_type, tmp_path):
    """Leave out each tensor in turn; not one of them is replaced by a fresh value."""
    directory, _ = references(model_type)
    tensors = weights_of(directory)
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    for name in tensors:
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        safetensors.torch.save_file(rest, tmp_path / "model.safetensors")
        assert f"missing {name}" in refusal(tmp_path)


def test_many_problems_are_counted(llama):
    edit_config(llama, num_hidden_layers=5)
    message = refusal(llama)
    assert message.count("missing") == 8
    assert message.endswith("; and 10 more")


def test_a_checkpoint_of_pickles_is_refused(llama):
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    message = refusal(llama)
    assert "pytorch_model.bin, a pickle, which can run code" in message and "save_pretrained" in message


def test_a_directory_without_weights_or_config(llama):
    (llama / "model.safetensors").unlink()
    assert f"{llama} has neither model.safetensors nor {INDEX}" in refusal(llama)
    (llama / "config.json").unlink()
    assert f"{llama} has no config.json" in refusal(llama)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{'model_type': 'llama'}", "is not valid JSON"),
        (b'{"model_type": "llama"', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b'["llama"]', "holds a list; a JSON object is needed"),
        (b"null", "holds a NoneType; a JSON object is needed"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_that_is_none(llama, name, content, complaint):
    (llama / name).write_bytes(content)
    assert f"{llama / name} {complaint}" in refusal(llama)


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        (
            {"weight_map": {"a": "../evil.safetensors"}},
            "names '../evil.safetensors'; shards must lie in the same",
        ),
        ({"weight_map": {"a": "/tmp/evil.safetensors"}}, "names '/tmp/evil.safetensors'; shards must lie in"),
        ({"weight_map": {"a": "sub/model.safetensors"}}, "names 'sub/model.safetensors'; shards must lie in"),
        ({"weight_map": {"a": ".."}}, "names .., which"),
        (
            {"weight_map": {"a": "model-00001-of-00002.safetensors"}},
            "names model-00001-of-00002.safetensors, which",
        ),
        ({"weight_map": {}}, "names no shards"),
        ({"weight_map": ["model.safetensors"]}, "has no weight_map"),
        ({"weight_map": {"a": None, "b": "model.safetensors"}}, "has no weight_map"),
        ({}, "has no weight_map"),
    ],
)
def test_an_index_that_cannot_be_followed(llama, index, complaint):
    (llama / "model.safetensors").rename(llama.parent / "evil.safetensors")
    (llama / INDEX).write_text(json.dumps(index))
    message = refusal(llama)
    assert message.startswith(f"{llama / INDEX} ") and complaint in message


def test_a_tensor_in_two_shards(references, tmp_path):
    minilm.save(minilm.load(references("llama")[0]), tmp_path, max_shard_bytes=50_000)
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    tensors = safetensors.torch.load_file(second)
    name, tensor = next(iter(safetensors.torch.load_file(first).items()))
    safetensors.torch.save_file(tensors | {name: tensor}, second)
    assert f"{name} stands in {second.name} and in another shard" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_file_that_was_cut_off(llama, keep):
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} cannot be read as safetensors" in refusal(llama)


# ----------------------------------------------------------------------------------------------------------
# Sources and arguments


def test_sources_that_do_not_exist(tmp_path):
    assert "there is no checkpoint 'tiny-nothing'; give a directory" in refusal("tiny-nothing")
    assert "there is no checkpoint" in refusal(tmp_path / "nowhere")
    assert "there is no checkpoint" in refusal("owner/model/file")
    (tmp_path / "model.bin").write_bytes(b"")
    assert "is a file of a kind that is not read here" in refusal(tmp_path / "model.bin")


def test_a_hub_name_without_the_hub():
    message = refusal("nobody-here/no-such-model")
    assert message.startswith("could not get 'nobody-here/no-such-model' from the Hub (")
    assert "check its path" in message and "python -m minilm fetch smollm2" in message


def test_smollm2_before_and_after_fetching(references, tmp_path, monkeypatch):
    monkeypatch.setenv("MINILM_HOME", str(tmp_path))
    assert refusal("smollm2") == "smollm2 has not been fetched yet; run: python -m minilm fetch smollm2"
    minilm.save(minilm.load(references("llama")[0]), tmp_path / "smollm2")
    assert minilm.load("smollm2").family == "llama"


def test_sources_may_be_strings_and_may_start_at_home(references, monkeypatch):
    directory, _ = references("llama")
    assert minilm.load(str(directory)).family == "llama"
    monkeypatch.setenv("HOME", str(directory.parent))
    assert minilm.load(f"~/{directory.name}").family == "llama"


def test_wrong_arguments_are_answered_with_the_right_ones(references):
    directory, _ = references("llama")
    with pytest.raises(ValueError, match="task 'lm' does not exist; choose one of causal-lm"):
        minilm.load(directory, task="lm")
    with pytest.raises(ValueError, match="backend 'math' does not exist; choose one of eager, sdpa"):
        minilm.load(directory, backend="math")
    with pytest.raises(ValueError, match="num_labels is for classifiers"):
        minilm.load(directory, num_labels=3)


# ----------------------------------------------------------------------------------------------------------
# GGUF files

Kind = gguf.GGMLQuantizationType

GGUF_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "tie_word_embeddings": False, "bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 5,
}  # fmt: skip  # rows of 32·n, which quantised blocks need
GGUF_MODULES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def interleave_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows: (0, 1, …, half, …) becomes (0, half, 1, …)."""
    half = weight.shape[0] // heads // 2
    rows = [
        head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in range(2)
    ]
    return weight[rows]


def gguf_tensors(directory: Path, model_type: str) -> dict[str, np.ndarray]:
    """A checkpoint's weights in fp32 by their names in GGUF, changed as the converter changes them."""
    config = json.loads((directory / "config.json").read_text())
    tensors = {}
    for name, tensor in weights_of(directory).items():
        array = tensor.float().numpy()
        module, _, kind = name.rpartition(".")
        if model_type == "llama" and module.endswith("q_proj"):
            array = interleave_halves(array, config["num_attention_heads"])
        if model_type == "llama" and module.endswith("k_proj"):
            array = interleave_halves(array, config["num_key_value_heads"])
        if model_type == "gemma" and "norm" in module:
            array = array + 1
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", module)
        outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        place = f"blk.{layer[1]}.{GGUF_MODULES[layer[2]]}" if layer else outside[module]
        tensors[f"{place}.{kind}"] = array
    return tensors


def write_gguf(
    path: Path,
    directory: Path,
    architecture: str,
    kind: Kind = Kind.F32,
    kind_of_vectors: Kind = Kind.F32,
    change: Callable[[gguf.GGUFWriter, dict], object] = lambda writer, tensors: None,
) -> Path:
    """A GGUF file of a checkpoint: matrices as `kind`, biases and norms as `kind_of_vectors`."""
    config, tensors = (
        json.loads((directory / "config.json").read_text()),
        gguf_tensors(directory, architecture),
    )
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    change(writer, tensors)
    for name, array in tensors.items():
        stored_as = kind if array.ndim > 1 else kind_of_vectors
        if array.dtype == np.float32:
            writer.add_tensor(name, gguf.quantize(array, stored_as), raw_dtype=stored_as)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_source(tmp_path_factory) -> Callable:
    """Checkpoints to make GGUF files of, in fp32: (family, config changes) -> directory."""
    root = tmp_path_factory.mktemp("gguf-sources")

    @functools.cache
    def make(model_type: str, **changes) -> Path:
        return make_reference(model_type, root / str(changes), **GGUF_SIZES | changes)[0]

    return make


GGUF_FAMILIES = ["llama", "qwen2", "gemma", "qwen3"]
GGUF_OPTIONS = {"qwen2": {"use_sliding_window": False}}  # a GGUF file does not say which layers slide


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("model_type", GGUF_FAMILIES)
def test_gguf_gives_the_original_model(gguf_source, tmp_path, model_type, tied):
    """In fp32 nothing is lost but, in gemma, what adding 1 to a norm weight and taking it away rounds off."""
    directory = gguf_source(model_type, tie_word_embeddings=tied, **GGUF_OPTIONS.get(model_type, {}))
    model, original = (
        minilm.load(write_gguf(tmp_path / "m.gguf", directory, model_type)),
        minilm.load(directory),
    )
    assert model.config == original.config
    expected = parameters_of(original)
    if model_type == "gemma":
        expected = {name: (value + 1) - 1 if "norm" in name else value for name, value in expected.items()}
    assert same_bits(parameters_of(model), expected)
    assert (model.lm_head is None) == tied


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_gguf_gives_the_tensors_that_transformers_reads(gguf_source, tmp_path, model_type):
    """transformers has its own reader, with its own way back from the converter's permutation (no gemma)."""
    directory = gguf_source(model_type, **GGUF_OPTIONS.get(model_type, {}))
    path = write_gguf(tmp_path / "m.gguf", directory, model_type, kind=Kind.Q8_0)
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=load_reference(directory))
    assert same_bits(parameters_of(minilm.load(path)), theirs["tensors"])


@pytest.mark.parametrize("vectors", [Kind.F32, None], ids=["vectors-F32", "vectors-too"])
@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F16, torch.float16), (Kind.BF16, torch.bfloat16)])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_gguf_in_16_bits_is_exact(gguf_source, tmp_path, model_type, kind, dtype, vectors):
    """Converters leave vectors in fp32, so the model is widened to it; the numbers stay those of 16 bits."""
    directory = gguf_source(model_type, **GGUF_OPTIONS.get(model_type, {}))
    model = minilm.load(write_gguf(tmp_path / "m.gguf", directory, model_type, kind, vectors or kind))
    whole = torch.float32 if vectors else dtype
    expected = {
        name: (value.to(dtype) if value.ndim > 1 or not vectors else value).to(whole)
        for name, value in weights_of(directory).items()
    }
    assert same_bits(parameters_of(model), expected)


@pytest.mark.parametrize(
    "kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_gguf_that_is_quantised_gives_the_values_of_its_blocks(gguf_source, tmp_path, model_type, kind):
    """Blocks lie within rows, so the rows of the original, quantised and expanded, are what must come out."""
    directory = gguf_source(model_type, **GGUF_OPTIONS.get(model_type, {}))
    model = minilm.load(write_gguf(tmp_path / "m.gguf", directory, model_type, kind))
    expected = {
        name: torch.from_numpy(gguf.dequantize(gguf.quantize(value.numpy(), kind), kind))
        if value.ndim > 1
        else value
        for name, value in weights_of(directory).items()
    }
    assert not torch.equal(expected["lm_head.weight"], weights_of(directory)["lm_head.weight"])
    assert same_bits(parameters_of(model), expected)


def test_a_gguf_model_can_be_saved_as_a_directory(gguf_source, tmp_path):
    model = minilm.load(write_gguf(tmp_path / "m.gguf", gguf_source("llama"), "llama"))
    minilm.save(model, tmp_path / "out")
    assert same_bits(weights_of(tmp_path / "out"), weights_of(gguf_source("llama")))
    assert minilm.load(tmp_path / "out").config == model.config


def test_a_gguf_file_that_was_replaced_is_read_again(gguf_source, tmp_path):
    first = minilm.load(write_gguf(tmp_path / "m.gguf", gguf_source("llama"), "llama"))
    (tmp_path / "m.gguf").unlink()
    second = minilm.load(write_gguf(tmp_path / "m.gguf", gguf_source("llama", num_hidden_layers=1), "llama"))
    assert (first.config.num_layers, second.config.num_layers) == (3, 1)


def _rename(old: str, new: str) -> Callable:
    return lambda writer, tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda writer, tensors: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
            "scales its rotary frequencies; load this model's Hugging Face directory",
        ),
        (
            lambda writer, tensors: tensors.update({"rope_freqs.weight": np.ones(8, np.float32)}),
            "scales its rotary frequencies; load this model's Hugging Face directory",
        ),
        (
            lambda writer, tensors: tensors.update(
                {"blk.0.ffn_gate_exps.weight": np.ones((2, 32), np.float32)}
            ),
            "holds blk.0.ffn_gate_exps.weight, for which a llama model has no place",
        ),
        (lambda writer, tensors: writer.add_expert_count(8), "has the metadata expert_count, which"),
        (
            lambda writer, tensors: writer.add_sliding_window(8),
            "has the metadata attention.sliding_window, which",
        ),
        (
            _rename("blk.2.attn_v.weight", "blk.3.attn_v.weight"),
            "holds blk.3.attn_v.weight, for which a llama model",
        ),
        (_rename("token_embd.weight", "embedding.weight"), "has no token_embd.weight, the embedding table"),
        (
            lambda writer, tensors: tensors.pop("blk.1.attn_norm.weight"),
            "missing model.layers.1.input_layernorm.weight",
        ),
        (
            lambda writer, tensors: tensors.update({"output_norm.weight": np.ones(32, np.float32)}),
            "model.norm.weight is (32,) where (64,) is needed",
        ),
        (
            lambda writer, tensors: tensors.update({"output_norm.weight": np.ones(64, np.int8)}),
            "output_norm.weight is quantised as I8, which the gguf package does not expand",
        ),
    ],
)
def test_gguf_models_that_are_not_understood_are_refused(gguf_source, tmp_path, change, complaint):
    path = write_gguf(tmp_path / "m.gguf", gguf_source("llama"), "llama", change=change)
    assert complaint in refusal(path, ValueError)


def test_gguf_with_partly_rotated_heads_is_refused(gguf_source, tmp_path, monkeypatch):
    add = gguf.GGUFWriter.add_rope_dimension_count
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_rope_dimension_count", lambda writer, count: add(writer, count // 2)
    )
    message = refusal(write_gguf(tmp_path / "m.gguf", gguf_source("llama"), "llama"), ConfigError)
    assert "has rope.dimension_count = 8; only heads that are 16 wide throughout are read" in message


def test_gguf_of_another_architecture_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    message = refusal(tmp_path / "m.gguf", ConfigError)
    assert "holds a 'mamba' model; of GGUF files minilm reads" in message
    assert all(name in message for name in GGUF_FAMILIES)


@pytest.mark.parametrize("keep", [0, 3, 20, 300, -1])
def test_a_broken_gguf_file_is_refused(gguf_source, tmp_path, keep):
    path = write_gguf(tmp_path / "m.gguf", gguf_source("llama"), "llama")
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} cannot be read as GGUF" in refusal(path, ConfigError)


def test_a_file_that_only_claims_to_be_gguf(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"not a model" * 100)
    assert "cannot be read as GGUF" in refusal(tmp_path / "m.gguf", ConfigError)


# ----------------------------------------------------------------------------------------------------------
# Memory

MEASURE = """
import sys, torch
import minilm
torch.set_num_threads(1)

def peak() -> int:  # of this program alone: ru_maxrss also counts what ran in the process before it
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

with torch.inference_mode():
    minilm.CausalLM(minilm.ModelConfig(8, 8, 1, 1, 1, 8, 8, 8))(torch.arange(8)[None])  # loads libraries
    start = peak()
    model = minilm.load(sys.argv[1])
    loaded = peak()
    model(torch.arange(8)[None])
    print(loaded - start, peak() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_loading_half_a_gigabyte_takes_its_size_once(tmp_path):
    """Weights are mapped: loading takes almost no memory, and the first forward pass what the file holds."""
    values = FAMILIES["llama"].tiny | {
        "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "tie_word_embeddings": True,
    }  # fmt: skip
    family, config = FAMILIES["llama"], FAMILIES["llama"].read_config(values)
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in minilm.CausalLM(config).named_parameters()}
    tensors = {family.file_name(name): torch.randn(shape) for name, shape in shapes.items()}
    (tmp_path / "config.json").write_text(json.dumps(values))
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    size = (tmp_path / "model.safetensors").stat().st_size
    assert 530e6 < size < 545e6

    run = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True
    )
    loaded, used = map(int, run.stdout.split())
    assert loaded < 0.2 * size
    assert used < 1.2 * size


def test_saved_files_can_be_read_by_others(tmp_path):
    """With the permissions that any new file gets: a teacher's models in a shared folder are of use."""
    plain = tmp_path / "plain"
    plain.touch()
    model = minilm.CausalLM(FAMILIES["llama"].read_config(FAMILIES["llama"].tiny))
    model.family = "llama"
    minilm.save(model, tmp_path / "saved")
    for path in (tmp_path / "saved").iterdir():
        assert path.stat().st_mode == plain.stat().st_mode, path.name
