"""What is wrong with an input is said where it comes in: the value, what is allowed, what to do.

Every table names kinds of bad input, each with the words that its error must hold; and nothing may be left
half done. The package runs without the test run's shape checks here, as it does for a user. Kinds that
another file tests stand in ELSEWHERE, at the end.
"""

import dataclasses
import errno
import http.server
import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gguf
import huggingface_hub
import jaxtyping
import numpy as np
import pytest
import safetensors.torch
import tiny_tokenizer
import torch
from gguf import GGUFValueType as Type
from reference import make_reference
from test_checkpoint import GGUF_SIZES, INDEX, write_gguf
from test_cli import minilm_command, refused  # noqa: F401  the first is a fixture

import minilm
from minilm import CheckpointError, ConfigError, checkpoint, data, families, train, training_state
from minilm.course import api, curves, grade, lab, notebooks, progress, sources
from minilm.families import FAMILIES

NAN, INF = float("nan"), float("inf")
KINDS: list[str] = []  # the name of every case below, for the count at the end


@pytest.fixture(autouse=True)
def as_a_user_runs_it() -> Iterator[None]:
    """Without the checks of annotations, wrong types reach the package's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def table(**cases: tuple) -> pytest.MarkDecorator:
    """Parametrise a test with named cases; a name is a sentence with _ for its spaces."""
    names = [name.strip("_").replace("_", " ") for name in cases]
    KINDS.extend(names)
    return pytest.mark.parametrize("case", cases.values(), ids=names)


def refusal(error: type[Exception], call: Callable[[], object], *parts: str) -> None:
    """The call raises this error, and its message holds all the parts: the value, the limit, the fix."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, repr(caught.value)
    assert not [part for part in parts if part not in message], message


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with its bytes, every folder and link, hidden ones included."""

    def content(path: Path) -> bytes | None:
        if path.is_symlink():
            return os.readlink(path).encode()
        return None if path.is_dir() else path.read_bytes()

    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*"))}


def make_model(family: str = "llama", task: type = minilm.CausalLM, **changes) -> minilm.CausalLM:
    """A family's small model with random weights."""
    values = FAMILIES[family].tiny | changes
    model = task(FAMILIES[family].read_config(values)).eval()
    model.family = family
    return model


@pytest.fixture(scope="module")
def model() -> minilm.CausalLM:
    return make_model()


# ------------------------------------------------------------------------------------------------------------
# Files of weights


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A small checkpoint of one file, and the same in shards."""
    folder = tmp_path_factory.mktemp("saved")
    minilm.save(make_model(), folder / "one")
    minilm.save(make_model(), folder / "shards", max_shard_bytes=50_000)
    return folder


KEYS = "model.layers.0.self_attn.k_proj.weight"


def change_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Damage model.safetensors as bytes."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def change_header(**entry: object) -> Callable[[Path], None]:
    """Change what the header of model.safetensors says of the key projection; None takes it out."""

    def change(content: bytes) -> bytes:
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        header[KEYS] |= entry
        if not entry:
            del header[KEYS]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    return change_bytes(change)


def change_tensor(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Change the key projection, and write a sound file."""

    def damage(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        tensors[KEYS] = change(tensors[KEYS])
        safetensors.torch.save_file(tensors, folder / "model.safetensors")

    return damage


def in_its_place(name: str, kind: str) -> Callable[[Path], None]:
    """Put a folder, a link to nowhere or a link to itself in the place of a file."""

    def damage(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        path.mkdir() if kind == "folder" else path.symlink_to(name if kind == "loop" else "nowhere")

    return damage


def renamed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def length(claimed: int) -> Callable[[Path], None]:
    """Let the first eight bytes claim a header of this length."""
    return change_bytes(lambda content: struct.pack("<Q", claimed) + content[8:])


BROKEN = ("model.safetensors cannot be read as safetensors", "Download or save it again")
MISFIT = "the weights do not fit the llama model of config.json"
PICKLE = ("a pickle, which can run code", "Convert it once where you trust it", "save_pretrained")


@table(
    a_file_cut_in_half=(change_bytes(lambda content: content[: len(content) // 2]), BROKEN),
    a_file_with_bytes_behind_its_end=(change_bytes(lambda content: content + b"more"), BROKEN),
    an_empty_file=(change_bytes(lambda content: b""), BROKEN),
    a_page_of_HTML_instead=(change_bytes(lambda content: b"<!DOCTYPE html><html>404</html>"), BROKEN),
    the_pointer_of_git_lfs_instead=(
        change_bytes(lambda content: b"version https://git-lfs.github.com/spec/v1\nsize 12345\n"), BROKEN,
    ),
    a_header_larger_than_allowed=(length(2**40), (*BROKEN, "header too large")),
    a_header_longer_than_the_file=(length(10**6), BROKEN),
    a_header_of_no_length=(length(0), BROKEN),
    a_header_that_is_no_JSON=(change_bytes(lambda content: content[:8] + b"?" * 40 + content[48:]), BROKEN),
    tensors_that_overlap=(change_header(data_offsets=[0, 3072]), (*BROKEN, "invalid offset")),
    a_hole_between_tensors=(change_header(), (*BROKEN, "invalid offset")),
    offsets_behind_the_end=(change_header(data_offsets=[10**9, 10**9 + 3072]), (*BROKEN, "invalid offset")),
    a_negative_offset=(change_header(data_offsets=[-5, 3072]), (*BROKEN, "`-5`")),
    a_negative_size=(change_header(shape=[-16, -48]), (*BROKEN, "`-16`")),
    fewer_bytes_than_the_shape_needs=(change_header(shape=[16, 49]), (*BROKEN, "invalid shape")),
    a_dtype_that_does_not_exist=(change_header(dtype="F77"), (*BROKEN, "F77")),
    a_matrix_that_is_transposed=(change_header(shape=[48, 16]), (MISFIT, KEYS, "(48, 16)", "(16, 48)")),
    a_number_where_a_matrix_belongs=(
        change_tensor(lambda tensor: torch.tensor(1.0)), (MISFIT, KEYS, "is () where (16, 48) is needed"),
    ),
    weights_of_whole_numbers=(
        change_tensor(lambda tensor: tensor.to(torch.int32)), (MISFIT, f"{KEYS} is torch.int32", "quantised"),
    ),
    weights_of_complex_numbers=(
        change_tensor(lambda tensor: tensor.to(torch.complex64)), (MISFIT, f"{KEYS} is torch.complex64"),
    ),
    a_folder_in_the_place_of_the_weights=(
        in_its_place("model.safetensors", "folder"), ("model.safetensors is a directory", "get it again"),
    ),
    a_link_to_nowhere=(in_its_place("model.safetensors", "link"), ("is a link to a file that is not there",)),
    a_link_to_itself=(in_its_place("model.safetensors", "loop"), ("is a link to a file that is not there",)),
    a_folder_in_the_place_of_config_json=(
        in_its_place("config.json", "folder"),
        ("config.json cannot be read", "directory", "a JSON file is needed"),
    ),
    a_folder_in_the_place_of_generation_config=(
        in_its_place("generation_config.json", "folder"),
        ("generation_config.json cannot be read", "JSON file"),
    ),
    architectures_that_are_no_list=(
        lambda folder: edit(folder / "config.json", architectures=5),
        ("config.json says architectures = 5", "a list of names"),
    ),
    a_pickle_of_one_file=(renamed("model.pth"), ("model.pth", *PICKLE)),
    a_pickle_of_a_training_program=(renamed("epoch-3.ckpt"), ("epoch-3.ckpt", *PICKLE)),
    a_shard_of_pickles_without_its_index=(
        renamed("pytorch_model-00001-of-00002.bin"), ("pytorch_model-00001-of-00002.bin", *PICKLE),
    ),
    weights_of_another_program=(
        renamed("tf_model.h5"), ("neither model.safetensors nor", INDEX, "copy the weights there"),
    ),
    a_GGUF_file_in_a_directory=(renamed("small.gguf"), ("as GGUF; load the file itself", "small.gguf")),
    an_adapter_without_its_model=(
        renamed("adapter_model.safetensors"), ("an adapter to the weights of another model", "merge"),
    ),
)  # fmt: skip
def test_a_damaged_checkpoint(case, saved, tmp_path):
    damage, parts = case
    shutil.copytree(saved / "one", tmp_path / "model")
    damage(tmp_path / "model")
    before = contents(tmp_path)
    refusal(
        CheckpointError,
        lambda: minilm.load(tmp_path / "model"),
        str(tmp_path) if parts[0] != MISFIT else "",
        *parts,
    )
    assert contents(tmp_path) == before


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def point(name: object) -> Callable[[Path], None]:
    """Let the index say that the embeddings are in the file of this name."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        edit(folder / INDEX, weight_map=index["weight_map"] | {"model.embed_tokens.weight": name})

    return damage


def first_shard(change: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda folder: change(min(folder.glob("*.safetensors")))


INSIDE = "shards must lie in the same directory"


@table(
    an_index_that_leads_upwards=(
        point("sub/../../x.safetensors"), (INDEX, "'sub/../../x.safetensors'", INSIDE),
    ),
    an_index_with_an_absolute_path=(point("/etc/passwd"), (INDEX, "'/etc/passwd'", INSIDE)),
    an_index_that_leads_home=(point("~/x.safetensors"), (INDEX, "'~/x.safetensors'", INSIDE)),
    an_index_that_names_its_own_folder=(point("."), (INDEX, "'.'", INSIDE)),
    an_index_with_a_path_of_Windows=(
        point("C:\\x.safetensors"), (INDEX, "C:\\x.safetensors", "does not have"),
    ),
    an_index_with_a_null_character=(point("x\0.safetensors"), (INDEX, "does not have")),
    an_index_with_a_number_for_a_name=(point(5), (INDEX, "has no weight_map of tensor names to file names")),
    a_shard_that_is_missing=(first_shard(Path.unlink), (INDEX, "model-00001-of-", "does not have")),
    a_shard_that_was_cut_off=(
        first_shard(lambda path: path.write_bytes(path.read_bytes()[:-3])),
        ("model-00001-of-", "cannot be read as"),
    ),
    a_shard_that_is_a_folder=(
        first_shard(lambda path: (path.unlink(), path.mkdir())), (INDEX, "model-00001-of-", "does not have"),
    ),
    a_shard_that_is_a_copy_of_another=(
        lambda folder: shutil.copy(*sorted(folder.glob("*.safetensors"))[:2]),
        ("stands in", "in another shard"),
    ),
    an_index_that_is_a_folder=(
        in_its_place(INDEX, "folder"), (INDEX, "cannot be read", "JSON file is needed"),
    ),
)  # fmt: skip
def test_a_damaged_set_of_shards(case, saved, tmp_path):
    damage, parts = case
    shutil.copytree(saved / "shards", tmp_path / "model")
    damage(tmp_path / "model")
    refusal(CheckpointError, lambda: minilm.load(tmp_path / "model"), *parts)


def test_shards_may_be_links(saved, tmp_path):
    """The Hub's own cache is made of them: names are confined to the directory, files need not be."""
    for path in (saved / "shards").iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert torch.equal(
        minilm.load(tmp_path).decoder.embed_tokens.weight,
        minilm.load(saved / "shards").decoder.embed_tokens.weight,
    )


def poison(folder: Path, names: Callable[[str], bool], value: float) -> minilm.CausalLM:
    """The model of a checkpoint in which one entry of some tensors is no number."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for name in filter(names, tensors):
        tensors[name].view(-1)[0] = value
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return minilm.load(folder)


@table(
    every_tensor_full_of_NaN=(
        lambda name: True, NAN, {}, "decoder.embed_tokens.weight", "as 29 more parameters do",
    ),
    one_NaN_in_a_norm=(
        lambda name: name == "model.norm.weight", NAN, {}, "decoder.final_norm.weight holds NaN",
    ),
    one_infinity_in_a_matrix=(
        lambda name: name.endswith("1.mlp.up_proj.weight"), INF, {}, "1.mlp.up_proj.weight",
    ),
    a_NaN_met_by_beams=(
        lambda name: name == "lm_head.weight", NAN, {"num_beams": 2}, "lm_head.weight holds NaN",
    ),
    a_NaN_met_while_guessing=(
        lambda name: name == "lm_head.weight", NAN, {"draft": "lookup"}, "lm_head.weight",
    ),
    a_NaN_met_while_drawing=(
        lambda name: name == "lm_head.weight", NAN, {"do_sample": True}, "lm_head.weight",
    ),
)  # fmt: skip
def test_weights_that_are_no_numbers(case, saved, tmp_path):
    """A file is read as it is used, so this shows itself in the first scores; then the weights are named."""
    names, value, settings, *parts = case
    shutil.copytree(saved / "one", tmp_path / "model")
    model = poison(tmp_path / "model", names, value)
    refusal(
        ValueError,
        lambda: minilm.generate(model, torch.tensor([[1, 2, 3]]), **settings),
        "the scores of the next token are NaN", "get it again, or load another", *parts,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------
# Sources, and the arguments of load


@table(
    None_as_a_source=(None, "None is no checkpoint", "as a string"),
    bytes_as_a_source=(b"tiny-qwen2", "b'tiny-qwen2' is no checkpoint", "as a string"),
    an_empty_source=("", "there is no checkpoint ''", "give a directory", "tiny-qwen2"),
    a_path_upwards_to_nothing=(
        "../nothing-here", "there is no checkpoint '../nothing-here'", "give a directory",
    ),
    the_address_of_a_web_page=("https://huggingface.co/a/b", "there is no checkpoint 'https:", "owner/model"),
    a_source_too_long_for_a_path=("x" * 5000, "there is no checkpoint", "give a directory"),
    a_source_with_a_null_character=("a\0b", "there is no checkpoint 'a\\x00b'", "give a directory"),
    the_home_of_nobody=("~nobody-of-this-name/x", "there is no checkpoint '~nobody", "give a directory"),
    a_shipped_name_in_capitals=("Tiny-Qwen2", "there is no checkpoint 'Tiny-Qwen2'", "tiny-qwen2"),
    a_folder_without_a_model=(os.sep, "has no config.json", "give the one that has it"),
)  # fmt: skip
def test_a_source_that_is_none(case):
    source, *parts = case
    refusal(CheckpointError, lambda: minilm.load(source), *parts)
    refusal(
        CheckpointError,
        lambda: minilm.load_tokenizer(source),
        *parts[:1] if source != os.sep else ["tokenizer"],
    )


@table(
    a_dtype_as_a_word=({"dtype": "fp32"}, "dtype is 'fp32'", "torch.float32, torch.bfloat16"),
    a_dtype_of_whole_numbers=({"dtype": torch.int32}, "dtype is torch.int32", "torch.float32"),
    a_dtype_of_eight_bits=({"dtype": torch.float8_e4m3fn}, "dtype is torch.float8_e4m3fn", "torch.bfloat16"),
    a_device_that_does_not_exist=({"device": "toaster"}, "device 'toaster' cannot be used", "cpu always can"),
    half_a_label=(
        {"num_labels": 2.5, "task": "token-classification"}, "num_labels is 2.5", "an integer is needed",
    ),
    a_task_that_is_None=({"task": None}, "task None does not exist", "choose one of causal-lm"),
    a_backend_that_is_a_number=({"backend": 5}, "backend 5 does not exist", "choose one of eager, sdpa"),
)  # fmt: skip
def test_arguments_of_load(case, saved):
    settings, *parts = case
    refusal(ValueError, lambda: minilm.load(saved / "one", **settings), *parts)


# ------------------------------------------------------------------------------------------------------------
# Structures

# What each family calls the heads, the layers, the hidden size and the activation in its config.json.
FAMILY_KEYS = {
    "gpt_bigcode": ("n_head", "n_layer", "n_embd", "activation_function"),
    "gemma": ("num_attention_heads", "num_hidden_layers", "hidden_size", "hidden_activation"),
}
USUAL_KEYS = ("num_attention_heads", "num_hidden_layers", "hidden_size", "hidden_act")


@pytest.mark.parametrize("family", FAMILIES)
@table(
    a_negative_number_of_heads=(0, -4, "-4", "must"),
    no_layers=(1, 0, "0; it must be a positive integer"),
    a_hidden_size_in_words=(2, "large", "'large'; it must be"),
    a_size_that_is_true=(2, True, "True; it must be"),
    an_activation_in_a_list=(3, ["gelu"], "['gelu']", "gelu_pytorch_tanh"),
    no_key_at_all=(2, ..., "it is missing"),
)  # fmt: skip
def test_a_config_of_any_family(family, case):
    index, value, *parts = case
    values = dict(FAMILIES[family].tiny)
    values[FAMILY_KEYS.get(family, USUAL_KEYS)[index]] = value
    if value is ...:
        del values[FAMILY_KEYS.get(family, USUAL_KEYS)[index]]
    refusal(ConfigError, lambda: families.read_config(values), *parts)


YARN = {"rope_type": "yarn", "factor": 2.0}


@table(
    an_end_token_in_words=("llama", {"eos_token_id": "</s>"}, "eos_token_ids is ('</s>',)", "integers"),
    end_tokens_of_two_kinds=("qwen2", {"eos_token_id": [1, "2"]}, "eos_token_ids is (1, '2')", "integers"),
    no_for_a_flag=(
        "gpt_neox", {"use_parallel_residual": "no"}, "use_parallel_residual = 'no'", "true or false",
    ),
    null_for_a_flag=("gpt_bigcode", {"multi_query": None}, "multi_query = None", "true or false"),
    yes_for_a_window=("qwen2", {"use_sliding_window": "yes"}, "use_sliding_window = 'yes'", "true or false"),
    a_window_that_is_true=(
        "mistral", {"sliding_window": True}, "a sliding window of True keys", "at least 1",
    ),
    a_negative_window=("mistral", {"sliding_window": -3}, "a sliding window of -3 keys", "at least 1"),
    a_negative_first_window=("qwen2", {"max_window_layers": -1}, "max_window_layers = -1", "0 or more"),
    a_first_window_in_words=("qwen3", {"max_window_layers": "all"}, "max_window_layers = 'all'", "0 or more"),
    layer_types_that_are_a_number=("qwen2", {"layer_types": 5}, "layer_types = 5", "must be a list"),
    heads_of_no_width=("llama", {"head_dim": 0}, "head_dim is 0", "a positive integer"),
    heads_of_odd_width=("llama", {"head_dim": 7}, "head_dim 7 rotates 7 dimensions", "even"),
    no_key_heads=("llama", {"num_key_value_heads": 0}, "num_kv_heads is 0", "a positive integer"),
    more_key_heads_than_heads=("mistral", {"num_key_value_heads": 12}, "num_heads (6)", "num_kv_heads (12)"),
    an_mlp_of_no_width=("gpt_bigcode", {"n_inner": 0}, "intermediate_size is 0", "a positive integer"),
    a_third_of_a_head_turned=("gpt_neox", {"rotary_pct": 0.3}, "0.3 of head_dim 12 rotates 3", "even"),
    more_than_a_head_turned=("gpt_neox", {"rotary_pct": 1.5}, "fraction is 1.5", "(0, 1]"),
    a_rope_type_in_a_list=(
        "llama", {"rope_parameters": {"rope_type": ["yarn"]}}, "['yarn']", "known are default",
    ),
    rope_settings_in_a_list=("llama", {"rope_parameters": []}, "rope_parameters = []", "an object"),
    an_infinite_rope_base=("llama", {"rope_theta": INF}, "theta is inf", "positive and finite"),
    an_infinite_rope_factor=(
        "llama", {"rope_parameters": {"rope_type": "linear", "factor": INF}}, "factor is inf", "finite",
    ),
    a_negative_number_of_turns=(
        "qwen2", {"rope_parameters": YARN | {"beta_fast": -1.0}}, "beta_fast (-1.0)", "> 0",
    ),
    turns_in_the_wrong_order=(
        "qwen2", {"rope_parameters": YARN | {"beta_fast": 1.0, "beta_slow": 32.0}}, "beta_slow (32.0)", ">=",
    ),
    a_negative_attention_factor=(
        "llama", {"rope_parameters": YARN | {"attention_factor": -1.0}}, "attention_factor is -1.0",
        "positive",
    ),
    a_model_type_in_a_list=(
        "llama", {"model_type": ["llama"]}, "model_type is ['llama']", "minilm knows gemma",
    ),
    an_epsilon_that_is_NaN=("llama", {"rms_norm_eps": NAN}, "norm_eps is nan", "must not be negative"),
    a_padding_token_of_half=("gemma", {"pad_token_id": 1.5}, "pad_token_id is 1.5", "an integer"),
)  # fmt: skip
def test_a_config_that_contradicts_itself(case):
    family, changes, *parts = case
    refusal(ConfigError, lambda: families.read_config(FAMILIES[family].tiny | changes), *parts)


@table(
    windows_that_are_a_number=({"layer_windows": 5}, "layer_windows is 5", "a tuple"),
    windows_in_a_list=({"layer_windows": [3, 3, 3]}, "layer_windows is [3, 3, 3]", "a tuple"),
    a_rope_in_words=({"rope": "linear"}, "rope is 'linear'", "give a RopeConfig, or None"),
    end_tokens_that_are_one_number=({"eos_token_ids": 2}, "eos_token_ids is 2", "a tuple of integers"),
    labels_in_one_word=({"label_names": "ab"}, "label_names is 'ab'", "a tuple of names"),
)  # fmt: skip
def test_a_structure_made_by_hand(case, model):
    changes, *parts = case
    refusal(ConfigError, lambda: model.config.replace(**changes), *parts)


@table(
    a_model_of_a_name=(
        lambda: minilm.CausalLM("tiny-qwen2"), "'tiny-qwen2'", "a ModelConfig", "model.config",
    ),
    a_model_of_a_config_json=(
        lambda: minilm.TokenClassifier({"hidden_size": 8}), "{'hidden_size': 8}", "ModelConfig",
    ),
    a_cache_of_a_model=(lambda: minilm.DynamicCache(make_model()), "got a CausalLM", "model.config"),
    a_cache_of_a_name=(lambda: minilm.SlidingWindowCache("mistral"), "got 'mistral'", "model.config"),
)  # fmt: skip
def test_what_is_no_structure(case):
    make, *parts = case
    refusal(ValueError, make, *parts)


# ------------------------------------------------------------------------------------------------------------
# What a model is called with

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
ONES = torch.ones_like(IDS)
FULL = torch.ones(2, 1, 3, 3, dtype=torch.bool)
SHAPE = "give [batch, length] with at least one token"
INTEGERS = "ids are torch.int64 (or int32): convert them with .long()"
PADDING = "allowed are [batch, keys] = (2, 3) with 1 = real token"

BAD_IDS = dict(
    negative_ids=(IDS - 3, "token ids run from -2 to 3", "knows 0 to 198", "another model's tokenizer"),
    ids_beyond_the_vocabulary=(IDS + 198, "from 199 to 204", "knows 0 to 198", "another model's tokenizer"),
    ids_with_a_fraction=(IDS.float(), "input_ids is torch.float32", INTEGERS),
    ids_of_one_byte=(IDS.to(torch.uint8), "input_ids is torch.uint8", INTEGERS),
    ids_that_are_true_or_false=(IDS > 2, "input_ids is torch.bool", INTEGERS),
    ids_without_a_batch=(IDS[0], "input_ids is (3,)", SHAPE),
    ids_with_an_axis_too_many=(IDS[None], "input_ids is (1, 2, 3)", SHAPE),
    no_ids_in_a_row=(IDS[:, :0], "input_ids is (2, 0)", SHAPE, "beginning-of-text"),
    no_rows_of_ids=(IDS[:0], "input_ids is (0, 3)", SHAPE),
    ids_in_a_list=([[1, 2]], "input_ids is [[1, 2]]", "torch.tensor([ids])"),
    text_instead_of_ids=("the fox", "input_ids is 'the fox'", "torch.tensor([ids])"),
    ids_on_another_device=(IDS.to("meta"), "input_ids is on meta and the model on cpu", ".to('cpu')"),
)  # fmt: skip


@table(**BAD_IDS)
def test_token_ids(case, model):
    """In a pass of the model, and before anything is generated."""
    ids, *parts = case
    refusal(ValueError, lambda: model(ids), *parts)
    refusal(ValueError, lambda: minilm.generate(model, ids), *parts)


@table(
    a_mask_of_fractions=(
        {"attention_mask": ONES.float()}, "(2, 3) torch.float32", PADDING, "integers or booleans",
    ),
    a_mask_of_twos=(
        {"attention_mask": 2 * ONES}, "attention_mask holds 2", "1 at real tokens and 0 at padding",
    ),
    a_mask_of_what_is_added=({"attention_mask": ONES - 2}, "attention_mask holds -1", "nothing is added"),
    a_mask_in_a_list=({"attention_mask": [[1, 1, 1]]}, "attention_mask is [[1, 1, 1]]", PADDING),
    a_mask_without_a_batch=({"attention_mask": ONES[0]}, "(3,) torch.int64", PADDING),
    a_mask_of_one_number=({"attention_mask": torch.tensor(1)}, "() torch.int64", PADDING),
    a_mask_of_complex_numbers=({"attention_mask": ONES.to(torch.complex64)}, "torch.complex64", PADDING),
    a_mask_for_other_heads=({"attention_mask": FULL.expand(2, 4, 3, 3)}, "(2, 4, 3, 3)", "6 heads or 1"),
    a_mask_for_another_batch=(
        {"attention_mask": FULL.expand(2, 1, 3, 3)[[0, 1, 1]]}, "(3, 1, 3, 3)", "[batch or 1,",
    ),
    a_mask_of_five_axes=({"attention_mask": FULL[None]}, "(1, 2, 1, 3, 3)", "4-D boolean"),
    a_mask_on_another_device=(
        {"attention_mask": ONES.to("meta")}, "on meta and the model on cpu", ".to('cpu')",
    ),
    positions_without_a_batch=(
        {"position_ids": torch.arange(3)}, "position_ids is (3,)", "[batch or 1, length]",
    ),
    positions_for_other_tokens=({"position_ids": torch.arange(4)[None]}, "(1, 4) torch.int64", "(2 or 1, 3)"),
    positions_for_other_rows=({"position_ids": IDS[[0, 0, 1]]}, "(3, 3) torch.int64", "(2 or 1, 3)"),
    positions_with_an_axis_too_many=({"position_ids": IDS[None]}, "(1, 2, 3)", "(2 or 1, 3)"),
    positions_with_a_fraction=({"position_ids": IDS.float()}, "(2, 3) torch.float32", "integers"),
    positions_in_a_list=(
        {"position_ids": [[0, 1, 2]]}, "position_ids is [[0, 1, 2]]", "None counts the real tokens",
    ),
    positions_on_another_device=({"position_ids": IDS.to("meta")}, "position_ids is on meta", ".to('cpu')"),
    labels_for_other_tokens=({"labels": IDS[:, :2]}, "labels is (2, 2)", "(2, 3)", "-100"),
    labels_with_a_fraction=(
        {"labels": IDS.float()}, "labels is (2, 3) torch.float32", "one integer per token",
    ),
    labels_in_a_list=({"labels": [[1]]}, "labels is [[1]]", "(2, 3)"),
    half_a_position_to_score=(
        {"logits_to_keep": 1.5}, "logits_to_keep is 1.5", "an integer is needed", "0 for all",
    ),
    a_word_instead_of_a_cache=({"cache": "dynamic"}, "cache is 'dynamic'", "DynamicCache(model.config)"),
)  # fmt: skip
def test_what_a_model_is_called_with(case, model):
    settings, *parts = case
    refusal(ValueError, lambda: model(IDS, **settings), *parts)


@table(
    vectors_of_another_width=(torch.zeros(2, 3, 47), "inputs_embeds is (2, 3, 47)", "[batch, length, 48]"),
    vectors_without_a_batch=(torch.zeros(3, 48), "inputs_embeds is (3, 48)", "[batch, length, 48]"),
    vectors_of_whole_numbers=(
        torch.zeros(2, 3, 48, dtype=torch.long), "torch.int64", "a floating dtype", "input_ids",
    ),
    vectors_on_another_device=(
        torch.zeros(2, 3, 48, device="meta"), "inputs_embeds is on meta", ".to('cpu')",
    ),
)  # fmt: skip
def test_vectors_instead_of_ids(case, model):
    vectors, *parts = case
    refusal(ValueError, lambda: model(inputs_embeds=vectors), *parts)


@table(
    a_negative_learned_position=(torch.arange(-1, 2)[None], "position -1 was asked for", "count from 0"),
    a_learned_position_beyond_the_table=(
        torch.arange(62, 65)[None], "position 64", "64 positions, 0 to 63", "Shorten",
    ),
)  # fmt: skip
def test_learned_positions(case):
    positions, *parts = case
    refusal(ValueError, lambda: make_model("gpt_bigcode")(IDS, position_ids=positions), *parts)


def test_a_label_for_every_token_of_a_classifier():
    """Fewer would have been compared with the wrong tokens, or refused by torch in words of its own."""
    classifier = make_model(task=minilm.TokenClassifier)
    refusal(ValueError, lambda: classifier(IDS, labels=torch.tensor([0, 1])), "labels is (2,)", "(2, 3)")


def test_a_row_of_padding_alone_harms_nobody(model):
    """A batch may hold an empty row; the others get what they get without it."""
    mask = torch.tensor([[0, 0, 0], [1, 1, 1]])
    with torch.no_grad():
        assert torch.equal(model(IDS, attention_mask=mask).logits[1], model(IDS).logits[1])
    refusal(
        ValueError, lambda: minilm.generate(model, IDS, mask), "row 0 of attention_mask holds no real token"
    )


# ------------------------------------------------------------------------------------------------------------
# Caches


def filled(
    family: str = "llama", dtype: torch.dtype = torch.float32, rows: int = 2, **changes
) -> minilm.DynamicCache:
    """A cache that a model of this structure has filled with three tokens."""
    other = make_model(family, **changes).to(dtype)
    cache = minilm.DynamicCache(other.config)
    with torch.no_grad():
        other(IDS[:rows], cache=cache)
    return cache


def static(rows: int = 2, length: int = 9, **settings) -> minilm.StaticCache:
    return minilm.StaticCache(make_model().config, rows, length, **settings)


ANOTHER = "use one cache per batch and model, or reset it"
OF_THE_MODEL = "make the cache with the model's dtype and device"


@table(
    a_cache_of_other_key_heads=(
        lambda: filled(num_key_value_heads=3), "3 heads of 8", "have 2, 2 and 8", ANOTHER,
    ),
    a_cache_of_wider_heads=(lambda: filled(head_dim=16), "2 heads of 16", "have 2, 2 and 8", ANOTHER),
    a_cache_of_fewer_layers=(
        lambda: filled(num_hidden_layers=2), "2 layers and the model 3", "DynamicCache(",
    ),
    a_cache_of_fewer_rows=(lambda: filled(rows=1), "holds 1 rows", "have 2, 2 and 8", ANOTHER),
    a_cache_of_another_dtype=(lambda: filled(dtype=torch.bfloat16), "torch.bfloat16 on cpu", OF_THE_MODEL),
    a_cache_that_forgets_what_is_needed=(
        lambda: minilm.DynamicCache(make_model("mistral").config), "keeps 6 tokens", "sees all",
        "DynamicCache(",
    ),
    a_static_cache_of_other_rows=(lambda: static(rows=3), "holds 3 rows", ANOTHER),
    a_static_cache_of_another_dtype=(
        lambda: static(dtype=torch.bfloat16), "torch.bfloat16 on cpu", OF_THE_MODEL,
    ),
    a_static_cache_on_another_device=(
        lambda: static(device="meta"), "on meta, the new keys are", OF_THE_MODEL,
    ),
    a_static_cache_too_short_for_the_text=(
        lambda: static(length=2), "holds 2 tokens", "take 3 more", "max_length",
    ),
)  # fmt: skip
def test_a_cache_of_something_else(case, model):
    """Refused before a key is written, so the cache is what it was."""
    make, *parts = case
    cache = make()
    seen = [layer.length for layer in cache.layers]
    with torch.no_grad():
        refusal(ValueError, lambda: model(IDS, cache=cache), *parts)
    assert [layer.length for layer in cache.layers] == seen


@table(
    a_static_cache_of_no_length=((2, 0), {}, "max_length is 0", "at least 1"),
    a_static_cache_of_negative_rows=((-1, 5), {}, "batch_size is -1", "at least 1"),
    a_static_cache_of_a_row_and_a_half=((1.5, 5), {}, "batch_size is 1.5", "an integer is needed"),
    a_static_cache_of_words=((1, 5), {"dtype": "fp32"}, "dtype is 'fp32'", "torch.float32"),
    a_static_cache_of_whole_numbers=((1, 5), {"dtype": torch.int8}, "dtype is torch.int8", "torch.float32"),
    a_static_cache_on_no_device=(
        (1, 5), {"device": "toaster"}, "device 'toaster' cannot be used", "cpu always can",
    ),
)  # fmt: skip
def test_a_static_cache_that_cannot_be(case, model):
    sizes, settings, *parts = case
    refusal(ValueError, lambda: minilm.StaticCache(model.config, *sizes, **settings), *parts)


# ------------------------------------------------------------------------------------------------------------
# Settings of generate

SMALLER = "give a draft with the same tokenizer"
END = ("it must be an id from 0 to 198", "[] to never stop", "None for the checkpoint's own")


@table(
    top_p_in_words=({"top_p": "0.9"}, "top_p is '0.9'", "a number is needed", "(0, 1]"),
    top_p_that_is_true=({"top_p": True}, "top_p is True", "a number is needed"),
    min_p_below_zero=({"min_p": -0.1}, "min_p is -0.1", "[0, 1]", "None to keep all"),
    min_p_in_words=({"min_p": "x"}, "min_p is 'x'", "a number is needed"),
    temperature_of_nothing=({"temperature": None}, "temperature is None", "a number is needed", "positive"),
    temperature_in_words=({"temperature": "1"}, "temperature is '1'", "a number is needed"),
    top_k_of_half_tokens=({"top_k": 2.5}, "top_k is 2.5", "an integer is needed", "at least 1"),
    top_k_in_words=({"top_k": "3"}, "top_k is '3'", "an integer is needed"),
    a_penalty_below_zero=(
        {"repetition_penalty": -1.0}, "repetition_penalty is -1.0", "positive (1 changes nothing)",
    ),
    a_penalty_of_nothing=({"repetition_penalty": None}, "repetition_penalty is None", "a number is needed"),
    yes_to_drawing=({"do_sample": "yes"}, "do_sample is 'yes'", "True or False"),
    yes_to_compiling=({"compile": "yes"}, "compile is 'yes'", "True or False"),
    beams_below_zero=({"num_beams": -1}, "num_beams is -1", "at least 1"),
    two_and_a_half_beams=({"num_beams": 2.5}, "num_beams is 2.5", "an integer is needed"),
    a_length_penalty_that_is_NaN=({"num_beams": 2, "length_penalty": NAN}, "length_penalty is nan", "finite"),
    a_length_penalty_of_nothing=(
        {"num_beams": 2, "length_penalty": None}, "length_penalty is None", "finite",
    ),
    never_stopping_early=(
        {"num_beams": 2, "early_stopping": "never"}, "early_stopping is 'never'", "True or False",
    ),
    half_a_new_token=({"max_new_tokens": 2.5}, "max_new_tokens is 2.5", "an integer is needed", "0 or more"),
    no_number_of_new_tokens=({"max_new_tokens": None}, "max_new_tokens is None", "an integer is needed"),
    an_end_in_words=({"eos_token_id": "</s>"}, "eos_token_id is '</s>'", *END),
    an_end_of_fractions=({"eos_token_id": [1.5]}, "eos_token_id is [1.5]", *END),
    an_end_below_zero=({"eos_token_id": -1}, "eos_token_id is -1", *END),
    an_end_beyond_the_vocabulary=({"eos_token_id": [1, 199]}, "eos_token_id is [1, 199]", *END),
    an_end_that_is_true=({"eos_token_id": True}, "eos_token_id is True", *END),
    an_end_in_a_dictionary=({"eos_token_id": {}}, "eos_token_id is {}", *END),
    padding_below_zero=(
        {"pad_token_id": -1}, "pad_token_id is -1", "an id from 0 to 198", "None for the model's own",
    ),
    padding_in_words=({"pad_token_id": "<pad>"}, "pad_token_id is '<pad>'", "an id from 0 to 198"),
    no_cache=({"cache": None}, "cache is None", "'dynamic', 'static', or a cache object"),
    a_seed_instead_of_a_generator=(
        {"generator": 3, "do_sample": True}, "generator is 3", "give a Generator, or None",
    ),
    a_function_instead_of_a_streamer=({"streamer": len}, "streamer is <built-in", "give a Streamer, or None"),
    guessing_for_two_rows=({"draft": "lookup"}, "one row", "2 were given", "draft=None"),
    a_draft_of_another_task=(
        {"draft": make_model(task=minilm.SequenceClassifier)}, "draft is a SequenceClassifier",
        "task='causal-lm'",
    ),
    a_draft_that_knows_other_tokens=(
        {"draft": make_model(vocab_size=100)}, "the draft knows 100 tokens and the model 199", SMALLER,
    ),
    a_draft_with_too_few_positions=(
        {"draft": make_model("gpt_bigcode", vocab_size=199, n_positions=5)}, "may reach 23 tokens",
        "5 positions",
    ),
    a_static_cache_too_short_for_the_answer=(
        {"cache": static(length=10)}, "room for 10 tokens", "needs 22", "larger",
    ),
    masks_of_fractions=({"attention_mask": ONES.float()}, "(2, 3) torch.float32", "integers or booleans"),
    masks_in_a_list=({"attention_mask": [[1]]}, "attention_mask is [[1]]", "the shape of input_ids, (2, 3)"),
    masks_of_a_pass=(
        {"attention_mask": FULL}, "attention_mask is (2, 1, 3, 3)", "the shape of input_ids, (2, 3)",
    ),
    masks_of_twos=({"attention_mask": 2 * ONES}, "attention_mask holds 2", "1 at real tokens"),
    masks_on_another_device=(
        {"attention_mask": ONES.to("meta")}, "on meta and the model on cpu", ".to('cpu')",
    ),
)  # fmt: skip
def test_settings_of_generate(case, model):
    """Refused before a token is chosen; the cache that was given is as it was."""
    settings, *parts = case
    refusal(ValueError, lambda: minilm.generate(model, IDS, **settings), *parts)
    if isinstance(settings.get("cache"), minilm.DynamicCache):
        assert settings["cache"].length == 0


def test_settings_that_do_not_exist(model):
    """Python's own word for it: nothing swallows them."""
    refusal(
        TypeError, lambda: minilm.generate(model, IDS, stop_strings=["."]), "unexpected", "'stop_strings'"
    )


def test_a_name_is_no_model():
    refusal(
        ValueError, lambda: minilm.generate("tiny-qwen2", IDS), "model is 'tiny-qwen2'", "minilm.load(name)"
    )


def test_a_checkpoint_whose_padding_is_no_token(model):
    """Some files say -1 where they mean none; rows that end early are then filled with what ended them."""
    own = make_model(pad_token_id=-1)
    own.load_state_dict(model.state_dict())
    ends = minilm.generate(model, IDS, max_new_tokens=2, eos_token_id=[])[0, 3].item()
    out = minilm.generate(own, IDS, max_new_tokens=4, eos_token_id=ends)
    assert out[0, 3:].tolist() == [ends] * (out.shape[1] - 3)


def test_every_token_may_end_a_text(model):
    """More ends than there are other tokens leave beam search fewer candidates, not none."""
    out = minilm.generate(model, IDS, num_beams=2, eos_token_id=range(199))
    assert out.shape == (2, 4)


# ------------------------------------------------------------------------------------------------------------
# GGUF files


@pytest.fixture(scope="module")
def gguf_source(tmp_path_factory) -> Path:
    return make_reference("llama", tmp_path_factory.mktemp("gguf"), **GGUF_SIZES)[0]


@pytest.fixture(scope="module")
def gguf_bytes(gguf_source, tmp_path_factory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("whole") / "m.gguf", gguf_source, "llama").read_bytes()


UNREADABLE = ("m.gguf cannot be read as GGUF", "Download or convert it again")


@table(
    the_magic_of_an_older_format=(lambda content: b"GGML" + content[4:], (*UNREADABLE, "magic invalid")),
    a_version_from_the_future=(
        lambda content: content[:4] + struct.pack("<I", 99) + content[8:], (*UNREADABLE, "99"),
    ),
    more_tensors_than_atoms=(
        lambda content: content[:8] + struct.pack("<Q", 2**60) + content[16:], UNREADABLE,
    ),
    more_metadata_than_atoms=(
        lambda content: content[:16] + struct.pack("<Q", 2**60) + content[24:], UNREADABLE,
    ),
    a_name_longer_than_the_file=(
        lambda content: content[:24] + struct.pack("<Q", 2**50) + content[32:], UNREADABLE,
    ),
    a_file_that_ends_in_its_header=(lambda content: content[:100], UNREADABLE),
    a_file_that_ends_in_its_weights=(lambda content: content[: len(content) // 2], UNREADABLE),
    a_kind_of_number_that_does_not_exist=(
        lambda content: re.sub(
            rb"(token_embd\.weight\x02\0\0\0.{16})\0\0\0\0",
            lambda found: found[1] + struct.pack("<I", 999),
            content,
            count=1, flags=re.DOTALL,
        ),
        (*UNREADABLE, "999"),
    ),
    no_tensors_at_all=(
        lambda content: content[:8] + struct.pack("<Q", 0) + content[16:],
        ("m.gguf has no token_embd.weight",),
    ),
)  # fmt: skip
def test_a_damaged_gguf_file(case, gguf_bytes, tmp_path):
    change, parts = case
    changed = change(gguf_bytes)
    assert changed != gguf_bytes
    (tmp_path / "m.gguf").write_bytes(changed)
    refusal(ConfigError, lambda: minilm.load(tmp_path / "m.gguf"), *parts)


def set_metadata(name: str, value: object, kind: Type, sub: object = None) -> Callable:
    return lambda writer, tensors: writer.kv_data[0].__setitem__(name, gguf.GGUFValue(value, kind, sub))


def drop_metadata(name: str) -> Callable:
    return lambda writer, tensors: writer.kv_data[0].pop(name)


@table(
    no_architecture=(
        drop_metadata("general.architecture"), "holds a None model", "minilm reads gemma, llama",
    ),
    no_number_of_blocks=(
        drop_metadata("llama.block_count"), "no metadata llama.block_count", "convert the model",
    ),
    no_epsilon=(
        drop_metadata("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon",
        "convert the model again",
    ),
    blocks_in_words=(
        set_metadata("llama.block_count", "three", Type.STRING), "num_layers is 'three'",
        "an integer",
    ),
    heads_for_each_block=(
        set_metadata("llama.attention.head_count", [4, 4], Type.ARRAY, Type.INT32),
        "num_heads is [4, 4]", "an integer",
    ),
    a_rope_base_of_zero=(
        set_metadata("llama.rope.freq_base", 0.0, Type.FLOAT32), "theta is 0.0", "positive",
    ),
)  # fmt: skip
def test_gguf_metadata(case, gguf_source, tmp_path):
    change, *parts = case
    path = write_gguf(tmp_path / "m.gguf", gguf_source, "llama", change=change)
    refusal(ConfigError, lambda: minilm.load(path), *parts)


def test_a_gguf_file_of_NaN(gguf_source, tmp_path):
    path = write_gguf(
        tmp_path / "m.gguf",
        gguf_source,
        "llama",
        change=lambda writer, tensors: tensors["output_norm.weight"].fill(np.nan),
    )
    model = minilm.load(path)
    refusal(
        ValueError, lambda: minilm.generate(model, IDS), "decoder.final_norm.weight holds NaN", "get it again"
    )


# ------------------------------------------------------------------------------------------------------------
# Tokenizers


@pytest.fixture(scope="module")
def text_model(tmp_path_factory) -> Path:
    return tiny_tokenizer.save_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def tokenizer(text_model) -> minilm.Tokenizer:
    return minilm.load_tokenizer(text_model)


def written(name: str, text: str | bytes) -> Callable[[Path], object]:
    content = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(content)


REMOTE_CODE = {"AutoTokenizer": ["x.X", None]}
COPY = ("cannot be read (", "copy it again from the original model")


@table(
    a_tokenizer_of_HTML=(written("tokenizer.json", "<html>404</html>"), COPY),
    a_tokenizer_of_bytes=(written("tokenizer.json", b"\xff\xfe\0"), COPY),
    a_tokenizer_without_a_vocabulary=(written("tokenizer.json", '{"model": {"type": "BPE"}}'), COPY),
    settings_that_are_a_list=(written("tokenizer_config.json", "[]"), COPY),
    settings_that_end_too_soon=(written("tokenizer_config.json", "{"), COPY),
    settings_that_want_to_run_code=(
        written("tokenizer_config.json", json.dumps({"tokenizer_class": "X", "auto_map": REMOTE_CODE})),
        (*COPY, "custom code"),
    ),
    a_folder_in_the_place_of_the_tokenizer=(
        in_its_place("tokenizer.json", "folder"), ("has no tokenizer (tokenizer.json", "copy one there"),
    ),
    garbage_for_a_sentencepiece_model=(
        lambda folder: (folder / "tokenizer.json").rename(folder / "tokenizer.model"), COPY,
    ),
)  # fmt: skip
def test_a_damaged_tokenizer(case, text_model, tmp_path):
    """None of them asks a question or runs code."""
    damage, parts = case
    for path in text_model.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    damage(tmp_path)
    refusal(CheckpointError, lambda: minilm.load_tokenizer(tmp_path), str(tmp_path), *parts)


ROW = "give one row of integers, each 0 or more"
MESSAGE = 'dictionaries with "role"'


@table(
    no_text=(lambda tokenizer: tokenizer.encode(None), "text is None", "give one string"),
    several_texts=(lambda tokenizer: tokenizer.encode(["a", "b"]), "text is ['a', 'b']", "give one string"),
    the_ignored_label=(lambda tokenizer: tokenizer.decode([5, -100]), "ids are [5, -100]", ROW),
    several_rows=(lambda tokenizer: tokenizer.decode(IDS), "ids are [[1, 2, 3], [4, 5, 6]]", ROW),
    pieces_of_text=(lambda tokenizer: tokenizer.pieces("abc"), "ids are 'abc'", ROW),
    fractions_of_ids=(lambda tokenizer: tokenizer.decode(torch.tensor([1.5])), "ids are [1.5]", ROW),
    one_id=(lambda tokenizer: tokenizer.decode(5), "ids are 5", ROW),
    an_empty_conversation=(lambda tokenizer: tokenizer.apply_chat_template([]), "a message is []", MESSAGE),
    a_conversation_of_one_string=(
        lambda tokenizer: tokenizer.apply_chat_template("hi"), "a message is 'hi'", MESSAGE,
    ),
    a_message_without_content=(
        lambda tokenizer: tokenizer.apply_chat_template([{"role": "user"}]), "a message is {'role': 'user'}",
        MESSAGE,
    ),
    a_message_without_text=(
        lambda tokenizer: tokenizer.apply_chat_template([{"role": "user", "content": None}]), "None",
        "both strings",
    ),
)  # fmt: skip
def test_what_a_tokenizer_is_given(case, tokenizer):
    call, *parts = case
    refusal(ValueError, lambda: call(tokenizer), *parts)


@table(
    a_template_that_cannot_be_read=("{% for %}", "Expected an expression", "mend chat_template.jinja"),
    a_template_that_refuses=("{{ raise_exception('only two may talk') }}", "only two may talk", "the order"),
)  # fmt: skip
def test_a_chat_template(case, text_model, tmp_path):
    template, *parts = case
    shutil.copytree(text_model, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    conversation = [{"role": "user", "content": "fox?"}]
    broken = minilm.load_tokenizer(tmp_path / "model")
    refusal(
        ValueError,
        lambda: broken.apply_chat_template(conversation),
        "does not take this conversation",
        *parts,
    )


def test_a_tokenizer_is_not_saved_onto_a_file(tokenizer, tmp_path):
    (tmp_path / "file").write_text("mine")
    refusal(FileExistsError, lambda: tokenizer.save(tmp_path / "file"), str(tmp_path / "file"))
    assert contents(tmp_path) == {"file": b"mine"}


# ------------------------------------------------------------------------------------------------------------
# Writing: whole or not at all


def in_a_child(call: Callable[[], object], prepare: Callable[[], object]) -> str:
    """What an OSError of a call says in a forked process, which is prepared first; "" if there is none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            prepare()
            call()
            said = ""
        except OSError as error:
            said = str(error)
        except BaseException as error:
            said = f"not an OSError: {error!r}"
        os.write(writing, said.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return said


def allow_files_of(size: int) -> Callable[[], None]:
    """Let every write beyond a size fail, as it does on a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def become_nobody() -> None:
    """Root may write everywhere; whoever runs the tests as root goes on as a user who may not."""
    if os.geteuid() == 0:
        os.seteuid(65534)


def a_run(folder: Path, **changes: object) -> train.Run:
    """A training run of three steps on a few rows."""
    rows = data.pack([list(range(1, 60)), list(range(5, 90))], 16)
    recipe = train.Recipe(steps=3, rows=2, micro_rows=2, length=16, warmup=1)
    run = train.Run(make_model(), dataclasses.replace(recipe, **changes), rows, rows[:2], folder)
    run.resume()
    return run


def a_finished_lab() -> lab.Lab:
    done = lab.Lab("19", {"copy": ("How fast?", "GB/s")})
    done.predict("copy", 1)
    done.measure("copy", lambda: 2)
    return done


# What is written where, and a file that stood in its place before.
WRITERS = dict(
    a_model=(lambda folder: minilm.save(make_model(), folder), "model.safetensors"),
    the_shards_of_a_model=(lambda folder: minilm.save(make_model(), folder, 50_000), INDEX),
    the_state_of_a_run=(lambda folder: list(a_run(folder).steps(1, 1)), "nothing"),
    a_learners_progress=(lambda folder: progress.write(folder, progress.Record("5.1" * 50)), ".progress"),
    a_hand_in=(lambda folder: a_finished_lab().hand_in("Because. " * 200, folder), "lab_19.json"),
    the_curves_of_a_machine=(
        lambda folder: curves.keep("19", {"x": [(i, 1.0) for i in range(99)]}, folder), "a",
    ),
    an_answer_begun_anew=(lambda folder: sources.reset(sources.repository(), folder, sources.find(
        sources.repository(), "1.1")), "ex01_tensors_and_einops.py"),
)  # fmt: skip


@pytest.fixture(scope="module")
def units() -> list:
    """The units of the course, read once: that takes seconds."""
    return sources.units(sources.repository())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        (Path(name) / "place").mkdir()
        yield Path(name) / "place"


@table(**{f"no_space_for_{name}": writer for name, writer in WRITERS.items()})
def test_a_full_disk(case, units, open_folder, monkeypatch):
    """What was there is as it was, nothing lies beside it, and the error names the place and what to do."""
    write, name = case
    monkeypatch.setattr(sources, "units", lambda root: units)
    if name.endswith(".json"):
        (open_folder / name).write_text("{}")
    if name == ".progress":
        (open_folder / name).mkdir()
    before = contents(open_folder)
    said = in_a_child(lambda: write(open_folder), allow_files_of(100))
    assert str(open_folder) in said and ("too large" in said or "full" in said), said
    assert "is as it was" in said and ("give another" in said or "Make room" in said), said
    after = contents(open_folder)
    after = {path: content for path, content in after.items() if not path.startswith(".backup")}
    assert after == before


@table(**{f"a_read_only_folder_for_{name}": writer for name, writer in WRITERS.items()})
def test_a_read_only_folder(case, units, open_folder, monkeypatch):
    write, _ = case
    monkeypatch.setattr(sources, "units", lambda root: units)
    os.chmod(open_folder, 0o555)
    said = in_a_child(lambda: write(open_folder), become_nobody)
    assert str(open_folder) in said and "ermission denied" in said, said
    assert contents(open_folder) == {}


def test_no_space_in_a_new_folder(tmp_path):
    """The folder goes again as well."""
    said = in_a_child(lambda: minilm.save(make_model(), tmp_path / "new"), allow_files_of(100))
    assert f"the model cannot be saved in {tmp_path / 'new'} (" in said
    assert contents(tmp_path) == {}


def test_no_space_for_the_settings_of_a_model(saved, tmp_path, monkeypatch):
    """The last and smallest of its files: the weights of before still belong to the config of before."""
    shutil.copytree(saved / "one", tmp_path / "model")
    before = contents(tmp_path)

    def fail(path: Path, values: dict) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_json", fail)
    refusal(
        OSError,
        lambda: minilm.save(make_model(hidden_size=96), tmp_path / "model"),
        f"cannot be saved in {tmp_path / 'model'} (No space left on device)", "as it was",
        "another directory",
    )  # fmt: skip
    assert contents(tmp_path) == before


@table(
    a_folder_called_model_safetensors=("model.safetensors",),
    a_folder_called_config_json=("config.json",),
    a_folder_called_generation_config_json=("generation_config.json",),
    a_folder_called_as_an_index=(INDEX,),
    a_folder_called_as_a_shard=("model-00001-of-00002.safetensors",),
)
def test_a_folder_where_a_model_puts_a_file(case, tmp_path):
    """Found out before a file is moved: else there would be new weights beside an old config."""
    (name,) = case
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    before = contents(tmp_path)
    refusal(
        OSError, lambda: minilm.save(make_model(), tmp_path), str(tmp_path), f"{name} is a directory there"
    )
    assert contents(tmp_path) == before


@table(
    a_model_saved_onto_a_file=(
        lambda folder: minilm.save(make_model(), folder / "file"), "file", "another directory",
    ),
    a_model_saved_below_a_file=(
        lambda folder: minilm.save(make_model(), folder / "file" / "x"), "Not a directory",
    ),
    a_name_too_long_to_save=(
        lambda folder: minilm.save(make_model(), folder / ("x" * 300)), "File name too long",
    ),
    progress_where_there_is_a_file=(
        lambda folder: progress.write(folder / "file", progress.Record("5.1")), "file",
    ),
    a_record_where_there_is_a_folder=(
        lambda folder: sources.write_whole(folder / "folder", "{}"),
        "folder cannot be written (Is a directory)",
    ),
    a_text_in_a_folder_that_is_not_there=(
        lambda folder: sources.write_whole(folder / "no" / "x.txt", "x"), "cannot be written (No such file",
    ),
    a_state_in_a_folder_that_is_not_there=(
        lambda folder: training_state.write({}, folder / "no" / "x.pt"), "cannot be written (No such file",
    ),
)  # fmt: skip
def test_a_place_that_cannot_be_written(case, tmp_path):
    write, *parts = case
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        write(tmp_path)
    assert all(part in str(caught.value) for part in (str(tmp_path), *parts)), caught.value
    assert contents(tmp_path) == {"file": b"mine", "folder": None}


@table(
    a_name_to_save=(lambda: "tiny-qwen2", {}, "got 'tiny-qwen2'", "a model of minilm"),
    a_layer_to_save=(lambda: torch.nn.Linear(2, 2), {}, "Linear", "a model of minilm"),
    a_model_without_weights=(lambda: make_model().to("meta"), {}, "on the device meta", "load it on cpu"),
    shards_of_no_size=(make_model, {"max_shard_bytes": 0}, "max_shard_bytes is 0", "at least 1"),
    shards_measured_in_words=(
        make_model,
        {"max_shard_bytes": "5GB"},
        "max_shard_bytes is '5GB'",
        "an integer",
    ),
)
def test_what_cannot_be_saved(case, tmp_path):
    make, settings, *parts = case
    refusal(ValueError, lambda: minilm.save(make(), tmp_path / "new", **settings), *parts)
    assert contents(tmp_path) == {}


def test_generating_settings_that_are_no_json(tmp_path):
    model = make_model()
    model.generation_config = {"eos_token_id": torch.tensor(2)}
    refusal(
        ValueError,
        lambda: minilm.save(model, tmp_path / "new"),
        "generation_config cannot be written as JSON",
    )
    assert contents(tmp_path) == {}


# ------------------------------------------------------------------------------------------------------------
# The Hub


@pytest.fixture(scope="module")
def hub() -> Iterator[http.server.ThreadingHTTPServer]:
    """A server in the Hub's place; its `answer` decides how it fails."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_) -> None:
            """Nothing on stderr."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def status(code: int, content: bytes = b"{}", kind: str = "application/json") -> Callable:
    """Answer with a status and this content."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(content)

    return answer


def hang_up(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True
    handler.connection.close()


def stop_half_way(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Tell of a repository of two files, and send a tenth of each."""
    names = ["config.json", "model.safetensors"]
    if "/tree/" in handler.path:
        files = [{"type": "file", "path": name, "size": 1000, "oid": "0"} for name in names]
        return status(200, json.dumps(files).encode())(handler)
    if "/api/" in handler.path:
        known = {"id": "owner/model", "sha": "a" * 40, "siblings": [{"rfilename": name} for name in names]}
        return status(200, json.dumps(known).encode())(handler)
    handler.send_response(200)
    for name, value in (
        ("ETag", f'"{len(handler.path)}"'),
        ("X-Repo-Commit", "a" * 40),
        ("Content-Length", "1000"),
    ):
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(b"{" * 100)
    handler.close_connection = True
    return None


@table(
    a_Hub_that_answers_HTML=(
        status(200, b"<!DOCTYPE html><html>Log in</html>", "text/html"), "its answer is no JSON",
    ),
    a_Hub_that_wants_a_password=(status(401), "401"),
    a_Hub_that_forbids=(status(403), "403 Forbidden"),
    a_Hub_that_does_not_know_the_model=(status(404), "404 Not Found"),
    a_Hub_that_is_asked_too_often=(status(429), "429 Too Many Requests"),
    a_Hub_that_is_broken=(status(500), "500 Internal Server Error"),
    a_Hub_that_is_being_mended=(status(503), "503 Service Unavailable"),
    a_Hub_that_hangs_up=(hang_up, "disconnected"),
    a_Hub_that_stops_half_way=(stop_half_way, "received 100 bytes, expected 1000"),
    a_Hub_that_does_not_answer=(None, "refused"),
)  # fmt: skip
def test_a_hub_that_fails(case, hub, tmp_path, monkeypatch):
    """The reason in a line; a model that was half downloaded is not taken for a whole one, now or later."""
    answer, reason = case
    hub.answer = answer
    port = hub.server_port
    if answer is None:
        with socket.create_server(("127.0.0.1", 0)) as free:  # closed again, so nobody listens there
            port = free.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    download = partial(
        huggingface_hub.snapshot_download, endpoint=f"http://127.0.0.1:{port}", cache_dir=tmp_path
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    for _ in range(2):
        refusal(
            CheckpointError, lambda: minilm.load("owner/model"), "could not get 'owner/model' from the Hub (",
            reason, "check its path", "Offline, copy the repository's directory here",
        )  # fmt: skip
    assert not list(tmp_path.rglob("snapshots/*/*.safetensors"))


# ------------------------------------------------------------------------------------------------------------
# Training


@table(
    a_rate_below_zero=({"lr": -1e-3}, "lr is -0.001", "positive and finite"),
    a_rate_that_is_NaN=({"lr": NAN}, "lr is nan", "positive and finite"),
    a_rate_without_end=({"lr": INF}, "lr is inf", "positive and finite"),
    a_rate_in_words=({"lr": "3e-3"}, "lr is '3e-3'", "a number is needed"),
    half_a_step=({"steps": 2.5}, "steps is 2.5", "an integer is needed"),
    no_rows=({"rows": 0}, "rows is 0", "positive"),
    rows_of_no_tokens=({"length": 0}, "length is 0", "positive"),
    a_warm_up_longer_than_the_run=({"steps": 5, "warmup": 9}, "warmup is 9", "0 to 4"),
    a_rate_that_ends_higher=({"final_lr": 2.0}, "final_lr is 2.0", "[0, 1]"),
    weights_that_grow=({"weight_decay": -1.0}, "weight_decay is -1.0", "0 or more"),
    an_average_that_never_changes=({"betas": (1.0, 0.9)}, "betas is 1.0", "[0, 1)"),
    one_average_of_two=({"betas": (0.9,)}, "betas is (0.9,)", "two numbers"),
    gradients_that_are_not_followed=({"clip": NAN}, "clip is nan", "positive and finite"),
    a_seed_below_zero=({"seed": -1}, "seed is -1", "0 or more"),
    yes_to_bf16=({"bf16": "yes"}, "bf16 is 'yes'", "True or False"),
)  # fmt: skip
def test_a_recipe_that_cannot_be(case):
    changes, *parts = case
    refusal(ValueError, lambda: train.Recipe(**changes), *parts)


@table(
    rows_longer_than_the_text=(
        lambda folder: a_run(folder, length=500), "500 tokens", "144 in all", "--length 144",
    ),
    a_state_never_saved=(
        lambda folder: list(a_run(folder).steps(0, 1)), "save_every is 0", "at least 1 step",
    ),
    a_loss_never_looked_at=(
        lambda folder: list(a_run(folder).steps(1, -1)), "evaluate_every is -1", "at least 1",
    ),
)  # fmt: skip
def test_a_run_that_cannot_be(case, tmp_path):
    call, *parts = case
    refusal(ValueError, lambda: call(tmp_path), *parts)
    assert contents(tmp_path) == {}


class RunsCode:
    """A pickle of it would make a file when it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def without(name: str) -> Callable[[Path], None]:
    """A sound state less one of its parts."""

    def change(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        state.pop(name, None) if name != "weight" else state["model"].popitem()
        torch.save(state, path)

    return change


NO_STATE = ("training.pt is no state of a run (", "--fresh")


@table(
    a_state_that_was_cut_off=(lambda path: path.write_bytes(path.read_bytes()[:-100]), NO_STATE),
    a_state_of_no_bytes=(lambda path: path.write_bytes(b""), NO_STATE),
    a_state_of_garbage=(lambda path: path.write_bytes(b"garbage" * 99), NO_STATE),
    a_state_that_is_a_folder=(lambda path: (path.unlink(), path.mkdir()), (*NO_STATE, "Is a directory")),
    a_state_that_is_a_list=(lambda path: torch.save([1], path), (*NO_STATE, "something else is in it")),
    a_state_that_would_run_code=(
        lambda path: torch.save({"model": RunsCode(path.parent / "ran")}, path), NO_STATE,
    ),
    a_state_without_its_optimizer=(without("optimizer"), NO_STATE),
    a_state_without_its_identity=(without("identity"), NO_STATE),
    a_state_without_one_weight=(
        without("weight"), ("training.pt does not hold this model's weights", "--fresh"),
    ),
)  # fmt: skip
def test_a_damaged_state_of_a_run(case, tmp_path):
    damage, parts = case
    list(a_run(tmp_path).steps(3, 3))
    damage(tmp_path / train.STATE)
    before = contents(tmp_path)
    refusal(ValueError, lambda: a_run(tmp_path), str(tmp_path), *parts)
    assert contents(tmp_path) == before and "ran" not in before


def test_the_state_of_another_model(tmp_path):
    """Its losses would go on from weights that mean something else."""
    list(a_run(tmp_path).steps(3, 3))
    before = contents(tmp_path)
    rows = data.pack([list(range(1, 60)), list(range(5, 90))], 16)
    recipe = train.Recipe(steps=3, rows=2, micro_rows=2, length=16, warmup=1)
    run = train.Run(make_model(num_hidden_layers=2), recipe, rows, rows[:2], tmp_path)
    refusal(ValueError, run.resume, "belongs to a run with another structure", "--fresh")
    assert contents(tmp_path) == before


# ------------------------------------------------------------------------------------------------------------
# The command line


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(4):
        (folder / f"{index}.txt").write_text(
            f"The quick brown fox number {index} jumps over {index} dogs.\n" * 9
        )
    return folder


TRAIN = (
    "--family llama --steps 2 --warmup 1 --rows 2 --length 16 --vocab-size 270 --hidden-size 16 --heads 2 "
    "--layers 1 --intermediate-size 16"
).split()


@table(
    training_of_an_unknown_family=("--family bert", "model_type is 'bert'", "minilm knows gemma"),
    training_at_a_rate_that_is_NaN=("--lr nan", "lr is nan", "positive and finite"),
    training_with_no_rows_at_once=("--micro-rows 0", "micro_rows is 0", "positive"),
    training_on_rows_longer_than_the_text=("--length 100000", "100000 tokens", "in all; train with --length"),
    training_on_rows_of_one_token=("--length 1", "length is 1", "at least 2"),
    training_with_more_than_all_gaps=("--fim 1.5", "fim is 1.5", "[0, 1]"),
    training_with_gaps_in_short_rows=("--fim 0.5", "rows of 16 tokens", "32 or more"),
    training_a_tokenizer_of_ten=("--vocab-size 10", "a vocabulary of 10", "260"),
    training_without_heads=("--heads 0", "num_heads is 0", "positive integer"),
    training_heads_of_no_width=("--head-dim 0", "head_dim is 0", "positive integer"),
    training_that_never_saves=("--save-every 0", "save_every is 0", "at least 1"),
    training_that_never_evaluates=("--evaluate-every -1", "evaluate_every is -1", "at least 1"),
    training_on_no_device=("--device toaster", "device 'toaster' cannot be used", "cpu always can"),
    training_on_text_that_is_not_there=(
        "--data /nowhere/at-all", "there is no /nowhere/at-all", "topics, stdlib",
    ),
)  # fmt: skip
def test_training_from_the_command_line(case, minilm_command, corpus, tmp_path):  # noqa: F811
    """One line, code 1, and no folder is made."""
    options, *parts = case
    text = [] if "--data" in options else ["--data", corpus]
    ended = minilm_command("train", tmp_path / "new", *TRAIN, *text, *options.split())
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended
    assert not [part for part in parts if part not in ended.err], ended.err
    assert contents(tmp_path) == {"empty": None} or contents(tmp_path) == {}


@table(
    an_empty_corpus=(lambda folder: None, "holds 0 documents", "at least two"),
    a_corpus_of_empty_files=(written("a.txt", ""), "holds 0 documents", "at least two"),
    a_corpus_of_one_document=(written("a.txt", "a short text"), "holds 1 documents", "one is held out"),
    a_corpus_of_bytes=(written("a.txt", b"\xff\xfe\0"), "holds 0 documents", "at least two"),
)  # fmt: skip
def test_a_corpus(case, tmp_path):
    make, *parts = case
    make(tmp_path)
    refusal(ValueError, lambda: data.read_corpus([str(tmp_path)]), str(tmp_path), *parts)


LINE = 'each line must be {"text": "…", "label": "…"}'


@table(
    examples_that_are_a_number=('{"text": 5, "label": 1}', "line 1", LINE),
    examples_without_text=('{"text": " ", "label": 1}', "line 1", LINE),
    examples_without_a_label=('{"text": "fox"}', "line 1", LINE),
    examples_of_bytes=(b"\xff\xfe\0", "is not UTF-8 text", "save it as such"),
    no_examples=("", "has 0 labels", "two or more"),
)  # fmt: skip
def test_examples_to_learn_from(case, minilm_command, tmp_path):  # noqa: F811
    content, *parts = case
    written("examples.jsonl", content)(tmp_path)
    refused(minilm_command("finetune", tmp_path / "new", "--data", tmp_path / "examples.jsonl"), *parts)
    assert not (tmp_path / "new").exists()


@table(
    a_tolerance_below_zero=("parity {model} --trace --tolerance -1", "tolerance is -1.0", "0 or more"),
    a_tolerance_that_is_NaN=("parity {model} --trace --tolerance nan", "tolerance is nan", "finite"),
    a_tolerance_for_nothing=(
        "parity {model} --tolerance 0.1", "--tolerance 0.1 is for --trace", "leave it out",
    ),
    a_seed_for_nothing=("parity {model} --seed 3", "--seed 3 is for --fuzz", "leave it out"),
    a_backend_that_is_not_traced=(
        "parity {model} --trace --backend sdpa", "--trace compares", "leave out --backend",
    ),
    random_models_of_an_unknown_family=("parity bert --fuzz 1", "model_type is 'bert'", "minilm knows gemma"),
    random_models_of_a_directory=("parity {model} --fuzz 1", "model_type is '{model}'", "minilm knows gemma"),
    speed_in_an_unknown_dtype=("bench {model} --dtype fp64", "dtype 'fp64' cannot be compared", "fp32, bf16"),
    speed_of_no_model=("bench {folder}", "has no config.json", "give the one that has it"),
    text_from_an_empty_name=("generate '' fox", "there is no checkpoint ''", "give a directory"),
    text_from_a_file_of_the_model=(
        "generate {model}/config.json fox", "a kind that is not read", "its directory",
    ),
    a_chat_that_gets_colder_than_ice=(
        "chat {model} --sample --temperature -1", "temperature is -1.0", "positive",
    ),
    a_model_trained_onto_a_file=(
        "train {file} --family llama --data topics", "is a file", "give a directory",
    ),
    a_classifier_trained_onto_a_file=("finetune {file}", "is a file", "give a directory"),
    a_classifier_from_no_model=(
        "finetune {folder}/x --start nothing --data {examples}", "no checkpoint 'nothing'",
    ),
)  # fmt: skip
def test_commands(case, minilm_command, text_model, tmp_path):  # noqa: F811
    """One line that names the value and the way out, and nothing new in the folder."""
    command, *parts = case
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    examples = "\n".join(json.dumps({"text": f"fox {index}", "label": index % 2}) for index in range(9))
    (tmp_path / "examples.jsonl").write_text(examples)
    places = {"model": text_model, "folder": tmp_path / "folder", "file": tmp_path / "file"}
    places |= {"examples": tmp_path / "examples.jsonl"}
    words = [word.format(**places).replace("''", "") for word in command.split()]
    before = contents(tmp_path)
    ended = minilm_command(*words, stdin="the fox?\n")
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended
    assert not [part for part in parts if part.format(**places) not in ended.err], ended.err
    assert contents(tmp_path) == before


@table(
    a_seed_larger_than_numbers_are=("generate x y --sample --seed 99999999999999999999", "--seed"),
    a_seed_less_than_nothing=("generate x y --sample --seed -1", "--seed"),
    half_a_token=("generate x y --top-k 1.5", "--top-k"),
    fewer_than_no_random_models=("parity --fuzz -1", "--fuzz"),
    no_rounds=("bench --rounds 0", "--rounds"),
    no_threads=("bench --threads 0", "--threads"),
    a_seed_below_zero_for_training=("train x --family llama --data topics --seed -1", "--seed"),
)
def test_options_out_of_range(case, minilm_command):  # noqa: F811
    """The option and its range, and code 2, as for everything that a command line cannot understand."""
    command, option = case
    ended = minilm_command(*command.split())
    assert ended.code == 2 and ended.out == "" and "Traceback" not in ended.err
    words = " ".join(ended.err.replace("│", " ").split())
    assert f"Invalid value for '{option}'" in words and re.search(
        r"range|(greater|less) than|integer", words
    ), words


# ------------------------------------------------------------------------------------------------------------
# The course

NO_FOLDER = ("is not a folder", "give the one that holds the answers, such as exercises")
A_UNIT = "from minilm.course.spec import Unit\n"
BACK = "bring it back with git checkout"


@table(
    an_exercise_that_does_not_exist=(lambda folder: api.check("5.99"), "no exercise '5.99'", "such as 5.4"),
    a_unit_that_does_not_exist=(
        lambda folder: api.reset("99", folder), "no exercise '99'", "give a unit (1, 2",
    ),
    the_name_of_a_file=(lambda folder: api.hint("ex05"), "no exercise 'ex05'", "such as 5.4"),
    no_exercise=(lambda folder: api.solution(""), "no exercise ''", "such as 5.4"),
    a_hint_before_the_first=(lambda folder: api.hint("5.1", 0, folder), "no hint 0", "give 1"),
    a_hint_in_words=(lambda folder: api.hint("5.1", "all", folder), "no hint all", "give 1"),
    answers_checked_nowhere=(lambda folder: api.check("1.1", folder / "no"), *NO_FOLDER),
    a_hint_for_nobody=(lambda folder: api.hint("1.1", 1, folder / "no"), *NO_FOLDER),
    a_solution_for_nobody=(lambda folder: api.solution("1.1", True, folder / "no"), *NO_FOLDER),
    answers_begun_anew_nowhere=(lambda folder: api.reset("1.1", folder / "no"), *NO_FOLDER),
    the_status_of_nobody=(lambda folder: api.status(folder / "no"), *NO_FOLDER),
    a_lab_handed_in_nowhere=(lambda folder: a_finished_lab().hand_in("So.", folder / "no"), *NO_FOLDER),
    a_check_with_a_seed_in_words=(
        lambda folder: api.check("1.1", folder, seed="x"), "seed is 'x'", "0 or more",
    ),
    a_check_with_a_seed_below_zero=(
        lambda folder: api.check("1.1", folder, seed=-1), "seed is -1", "0 or more",
    ),
    grades_of_an_unknown_exercise=(
        lambda folder: grade.chosen(sources.repository(), "8, zz"), "no exercise 'zz'",
    ),
)  # fmt: skip
def test_course_commands(case, units, tmp_path, monkeypatch):
    call, *parts = case
    monkeypatch.setattr(sources, "units", lambda root: units)
    refusal(ValueError, lambda: call(tmp_path), *parts)
    assert contents(tmp_path) == {}


@table(
    a_unit_that_is_no_Python=("def x(:", "SyntaxError", "line 1", BACK),
    a_unit_that_fails=("UNIT = 1 / 0", "ZeroDivisionError", BACK),
    a_unit_that_needs_what_is_not_there=("import nothing_of_this_name", "No module named", BACK),
    a_unit_without_its_UNIT=(A_UNIT, "its UNIT is None", BACK),
    a_unit_that_is_a_number=("UNIT = 5", "its UNIT is 5", BACK),
)
def test_a_broken_description_of_a_unit(case, tmp_path):
    text, *parts = case
    file = tmp_path / "tests" / "exercises" / "test_ex01_broken.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    refusal(ValueError, lambda: sources.find(tmp_path, "1"), f"{file} does not describe a unit", *parts)


def test_a_broken_notebook(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01.ipynb").write_text("{")
    before = contents(tmp_path)
    for call in (
        lambda: notebooks.sync(tmp_path),
        lambda: list(notebooks.execute(tmp_path / "notebooks" / "01.ipynb")),
    ):
        refusal(ValueError, call, "01.ipynb is no notebook", BACK)
    assert contents(tmp_path) == before


def test_a_seed_of_grades_that_is_none(tmp_path):
    (tmp_path / "seed.txt").write_text("later")
    refusal(
        ValueError, lambda: grade.choose_seed(None, tmp_path), "seed.txt holds 'later' and no seed", "--seed"
    )
    assert contents(tmp_path) == {"seed.txt": b"later"}


# ------------------------------------------------------------------------------------------------------------
# How many kinds there are

# Kinds that another file tests, and where; that a function is renamed or checks no error any more is noticed.
ELSEWHERE = {
    "a file of weights that was cut off": "test_checkpoint.py::test_a_file_that_was_cut_off",
    "tensors that are missing, unexpected, misshapen":
        "test_checkpoint.py::test_tensors_that_do_not_fit_are_named",
    "each tensor of each family missing in turn": "test_checkpoint.py::test_no_tensor_may_be_missing",
    "a tensor in two shards": "test_checkpoint.py::test_a_tensor_in_two_shards",
    "an index that leads outside": "test_checkpoint.py::test_an_index_that_cannot_be_followed",
    "a config.json that is no JSON": "test_checkpoint.py::test_json_that_is_none",
    "a checkpoint of pickles": "test_checkpoint.py::test_a_checkpoint_of_pickles_is_refused",
    "a directory without weights or config": "test_checkpoint.py::test_a_directory_without_weights_or_config",
    "two different tied tables": "test_checkpoint.py::test_a_tied_model_with_two_different_tables_is_refused",
    "a source that does not exist": "test_checkpoint.py::test_sources_that_do_not_exist",
    "no network": "test_checkpoint.py::test_a_hub_name_without_the_hub",
    "an unknown task or backend": "test_checkpoint.py::test_wrong_arguments_are_answered_with_the_right_ones",
    "an interrupted save": "test_checkpoint.py::test_an_interrupted_save_changes_nothing",
    "GGUF of another architecture": "test_checkpoint.py::test_gguf_of_another_architecture_is_refused",
    "GGUF that is cut off": "test_checkpoint.py::test_a_broken_gguf_file_is_refused",
    "GGUF with unknown tensors, metadata or quantisation":
        "test_checkpoint.py::test_gguf_models_that_are_not_understood_are_refused",
    "sizes that are not positive": "test_config.py::test_sizes_must_be_positive",
    "sizes that are no integers": "test_config.py::test_sizes_must_be_integers",
    "unknown words in a structure": "test_config.py::test_a_wrong_word_is_answered_with_the_right_ones",
    "an impossible structure": "test_config.py::test_an_impossible_structure_is_refused",
    "an impossible rotation": "test_config.py::test_an_impossible_rotation_is_refused",
    "an unknown family": "test_families.py::test_an_unknown_family_is_answered_with_the_known_ones",
    "an unknown key": "test_families.py::test_an_unknown_key_is_refused_by_name",
    "a quantised or encoder-decoder model": "test_families.py::test_other_kinds_of_models_are_refused",
    "rope settings that cannot be followed": "test_families.py::test_rope_settings_that_cannot_be_followed",
    "a structure that is not there": "test_families.py::test_a_structure_that_is_not_there_is_refused",
    "settings of generate out of range": "test_generate.py::test_bad_settings_are_named",
    "padding behind a prompt": "test_generate.py::test_padding_on_the_right_is_refused",
    "a text longer than learned positions": "test_generate.py::test_learned_positions_end",
    "settings of generate that exclude each other": "test_decoding.py::test_settings_that_exclude_each_other",
    "a layer of a cache that is full, or of another batch": "test_cache.py::test_clear_refusals",
    "going back behind a window": "test_cache.py::test_going_back_too_far_in_a_sliding_layer_is_refused",
    "masks and ids together": "test_components.py::test_the_model_names_what_is_wrong",
    "a memory that does not fit": "test_cross_attention.py::test_a_memory_that_does_not_fit_is_refused",
    "labels that do not fit": "test_heads.py::test_labels_that_do_not_fit_are_refused",
    "a head of another size": "test_heads.py::test_a_head_of_another_size_is_refused",
    "a directory without a tokenizer": "test_tokenizer.py::test_a_directory_without_a_tokenizer",
    "an unknown rule of a GGUF tokenizer": "test_tokenizer.py::test_an_unknown_rule_is_refused",
    "a GGUF tokenizer with parts missing": "test_tokenizer.py::test_a_gguf_tokenizer_with_parts_missing",
    "a download with a wrong hash": "test_fetch.py::test_a_wrong_hash_is_refused",
    "a pip that fails": "test_fetch.py::test_when_pip_fails_its_last_word_is_the_reason",
    "too little space for a download":
        "test_fetch.py::test_too_little_space_is_said_before_anything_is_downloaded",
    "the state of a run with another recipe": "test_train.py::test_another_run_is_not_gone_on_with",
    "values on the command line": "test_cli.py::test_generate_refuses_bad_values",
    "what the command line cannot understand": "test_cli.py::test_wrong_usage_ends_with_2",
    "hand-ins that cannot be graded": "exercises/test_grade.py::test_what_cannot_be_graded_is_told",
    "a lab that cannot be read": "exercises/test_lab.py::test_a_lab_that_cannot_be_read_is_told",
    "an answer that is no Python": "exercises/test_sandbox.py::test_a_file_that_cannot_be_used",
    "curves that are none": "test_curves.py::test_what_is_no_curve_is_refused",
}  # fmt: skip


def test_there_are_at_least_a_hundred_kinds():
    """Each has a name of its own, here or in another file, whose test is still there."""
    assert len(KINDS) == len(set(KINDS)), sorted(name for name in set(KINDS) if KINDS.count(name) > 1)
    assert not set(KINDS) & set(ELSEWHERE)
    for place in ELSEWHERE.values():
        file, function = place.split("::")
        source = (Path(__file__).parent / file).read_text(encoding="utf-8")
        body = re.search(rf"^def {function}\(.*?(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)
        assert body and re.search(r"raises|refus|problem|\berr\b|broken", body[0]), place
    assert len(KINDS) + len(ELSEWHERE) >= 300
