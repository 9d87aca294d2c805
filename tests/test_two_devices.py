"""The script of notebook 21 in two processes, what it hears them send, and the pictures made of it."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import minilm
from minilm import viz
from minilm.course import curves

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "notebooks/two_devices.py"
SETTINGS = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
ROWS, LENGTH = 2, 16  # of all processes together; tokens of a row


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """What two processes found; starting them is what takes time."""
    directory = tmp_path_factory.mktemp("devices")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(SCRIPT),
    ]
    options = ["--parallel", "tensor", "fsdp", "--model", "tiny-qwen2", "tiny-gemma", "--length", str(LENGTH)]
    options += ["--out", str(directory / "out.json"), "--keep", str(directory)]
    ended = subprocess.run([*command, *options], env=SETTINGS, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads((directory / "out.json").read_text(encoding="utf-8"))
    return found | {"printed": ended.stdout, "directory": directory}


def run(report: dict, model: str, how: str) -> dict:
    return next(each for each in report["runs"] if (each["model"], each["parallel"]) == (model, how))


def counts(run: dict) -> Counter:
    return Counter((each["phase"], each["operation"]) for each in run["sent"])


@pytest.mark.slow
def test_cut_matrices_send_the_stream(report):
    """One sum after each branch; five for each block on the way back, one for each matrix that reads."""
    found, config = run(report, "tiny-qwen2", "tensor"), minilm.load("tiny-qwen2").config
    assert max(found["apart"].values()) < 1e-4
    blocks = config.num_layers
    assert counts(found) == {("forward", "all-reduce"): 2 * blocks, ("backward", "all-reduce"): 5 * blocks}
    assert {each["bytes"] for each in found["sent"]} == {ROWS * LENGTH * config.hidden_size * 4}
    branches = [
        f"decoder.layers.{block}.{branch}" for block in range(blocks) for branch in ("attention", "mlp")
    ]
    assert [each["module"] for each in found["sent"] if each["phase"] == "forward"] == branches


@pytest.mark.slow
def test_fsdp_gathers_every_weight_once_and_the_blocks_again(report):
    """And scatters the gradients of what it gathered."""
    found, model = run(report, "tiny-qwen2", "fsdp"), minilm.load("tiny-qwen2")
    assert max(found["apart"].values()) < 1e-4
    blocks = model.config.num_layers
    assert counts(found) == {
        ("forward", "all-gather"): blocks + 1,
        ("backward", "all-gather"): blocks,
        ("backward", "reduce-scatter"): blocks + 1,
    }
    gathered = [each["bytes"] for each in found["sent"] if each["phase"] == "forward"]
    assert sum(gathered) == found["stored"]["alone"] == 4 * sum(p.numel() for p in model.parameters())
    assert found["stored"]["together"] == found["stored"]["alone"] / 2


@pytest.mark.slow
def test_a_model_that_cannot_be_cut_is_told(report):
    """In the report and in print, beside what was computed."""
    assert run(report, "tiny-gemma", "tensor")["refused"] == "1 key heads cannot be shared by 2 processes"
    assert report["printed"].count("the same to rounding: True") == 3


@pytest.mark.slow
def test_the_times_of_a_machine_are_kept(report):
    """In a file of its own, which the picture draws."""
    (path,) = report["directory"].glob("lab_21_*.json")
    assert path.parent == report["directory"]
    (kept,) = curves.kept("21", report["directory"])
    ((name, points),) = kept.curves.items()
    assert name == "all-reduce over gloo, 2 processes"
    assert [size for size, _ in points] == [size for size, _ in report["curves"][name]]


def test_it_says_how_to_start_it():
    """Without torchrun there are no others to talk to."""
    ended = subprocess.run(
        [sys.executable, str(SCRIPT)], env=SETTINGS, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "start me with torchrun: torchrun --nproc-per-node 2" in ended.stderr


def legend(picture: viz.Picture) -> str:
    return " ".join(text.get_text() for each in picture.figure.legends for text in each.get_texts())


def test_cuts_are_drawn_as_the_plan_says():
    """Matrices that read, one that writes and has a sum behind it, and one that is not cut."""
    block = {"attention": {"qkv": (6, 2, None)}, "mlp": {"up": (8, 2, "outputs"), "down": (2, 8, "inputs")}}
    picture = viz.cut_matrices(block, 2)
    assert picture.alt.endswith("and an all-reduce after down.")
    assert legend(picture) == "device 0 device 1 on every device"
    assert "none is cut" in viz.cut_matrices({"attention": block["attention"]}, 1).alt


def test_messages_are_counted():
    """On the way there and on the way back."""
    one = {"operation": "all-reduce", "phase": "forward", "module": "decoder.layers.0.mlp", "bytes": 1024}
    picture = viz.messages({"here": [one, one, one | {"phase": "backward"}]})
    assert "here: 2 on the way forward and 1 back, all-reduce" in picture.alt
    labels = [text.get_text() for text in picture.figure.axes[0].get_xticklabels()]
    assert labels == ["0 mlp", "0 mlp"]


def test_bytes_of_training_are_shared_out():
    """16 bytes a parameter: 16 GB for a billion, 4 on each of four devices."""
    assert "it is 16 GB" in viz.bytes_per_device(1e9, [1, 4]).alt
    assert "falls to 4 GB on each of 4" in viz.bytes_per_device(1e9, [1, 4]).alt
