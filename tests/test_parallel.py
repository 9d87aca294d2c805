"""Two processes on the CPU give what one gives: gradients, losses, and logits after two updates."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import assert_same_gradients, make_model, make_run
from two_processes import two_updates

from minilm import parallel

ROOT = Path(__file__).parents[1]
CASES = ("parameters qwen2", "matrices qwen2", "matrices gpt_neox", "matrices gpt_bigcode")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> dict:
    """What two processes found, for all cases; starting them is what takes time."""
    directory = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*command, str(ROOT / "tests/two_processes.py"), str(directory), *CASES],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return torch.load(directory / "found.pt", weights_only=True) | {"directory": directory}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_what_one_gives(case, two_processes):
    """Gradients, losses and logits within the rounding of fp32 sums in another order.

    Weights are not compared: a bias that the softmax cancels has a gradient of rounding errors alone, and
    Adam makes whole steps of them.
    """
    expected, found = two_updates(*case.split()), two_processes[case]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=0, atol=2e-4)
    assert_same_gradients(found["gradients"], expected["gradients"])


@pytest.mark.slow
def test_a_run_of_two_processes_is_resumed(two_processes, tmp_path):
    """Interrupted once, it has the losses of one process; and one process can go on where two stopped."""
    whole = make_run(tmp_path, dropout=0.0)
    list(whole.steps(3, 3))
    assert two_processes["run"]["losses"] == pytest.approx(whole.progress.losses, rel=1e-4)
    alone = make_run(two_processes["directory"], dropout=0.0)
    assert alone.progress.losses == two_processes["run"]["losses"]
    gap = max(
        (a - b).abs().max() for a, b in zip(alone.model.parameters(), whole.model.parameters(), strict=True)
    )
    assert gap < 0.02  # a few of Adam's steps, where gradients are rounding errors


def test_what_cannot_be_shared_is_refused():
    """Heads and units are not cut in two."""
    with pytest.raises(ValueError, match="2 key heads cannot be shared by 5"):
        parallel.tensor_parallel_plan(make_model("qwen2"), 5)
    with pytest.raises(ValueError, match="80 units"):
        parallel.tensor_parallel_plan(make_model("qwen2"), 3)
