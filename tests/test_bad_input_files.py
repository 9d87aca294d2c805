"""Bad input in files: weights, sources, GGUF, tokenizers, and a Hub that fails.

Tables as in test_bad_input.py.
"""

import http.server
import json
import os
import re
import shutil
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import tiny_tokenizer
import torch
from bad_input import IDS, INF, NAN, contents, in_its_place, make_model, refusal, table, written
from gguf import GGUFValueType as Type
from reference import make_reference
from test_checkpoint import GGUF_SIZES, INDEX, write_gguf
from test_cli import minilm_command, refused  # noqa: F401  the first is a fixture

import minilm
from minilm import CheckpointError, ConfigError

pytestmark = pytest.mark.usefixtures("without_shape_checks")

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
def test_a_damaged_tokenizer(case, text_model, tmp_path, monkeypatch):
    """None of them asks whether it may run code, so nobody can say yes."""
    damage, parts = case
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("a question was asked"))
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
