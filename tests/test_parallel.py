"""Two processes on the CPU give what one gives: gradients, losses, and logits after two updates."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import assert_same_gradients, make_documents, make_model

from minilm import data, parallel, train

ROOT = Path(__file__).parents[1]


def two_processes(kind: str, family: str, path: Path) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*command, str(ROOT / "tests/two_processes.py"), kind, family, str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return torch.load(path, weights_only=True)


def one_process(family: str) -> dict:
    rows = data.pack(make_documents(), 24)[:8]
    recipe = train.Recipe(steps=2, rows=8, micro_rows=2, length=24, warmup=0)
    model = make_model(family)
    optimizer = train.make_optimizer(model, recipe)
    train.accumulate(model, rows, recipe)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    losses = [train.update(model, optimizer, rows, step, recipe) for step in range(2)]
    with torch.no_grad():
        logits = model(rows.input_ids).logits
    return {"losses": losses, "logits": logits, "gradients": gradients}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "family"),
    [("parameters", "qwen2"), ("matrices", "qwen2"), ("matrices", "gpt_neox"), ("matrices", "gpt_bigcode")],
)
def test_two_processes_give_what_one_gives(kind, family, tmp_path):
    """Gradients, losses and logits within the rounding of fp32 sums in another order.

    Weights are not compared: a bias that the softmax cancels has a gradient of rounding errors alone, and
    Adam makes whole steps of them.
    """
    expected, found = one_process(family), two_processes(kind, family, tmp_path / "found.pt")
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=0, atol=2e-4)
    assert_same_gradients(found["gradients"], expected["gradients"])


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="2 key heads cannot be shared by 5"):
        parallel.tensor_parallel_plan(make_model("qwen2"), 5)
    with pytest.raises(ValueError, match="80 units"):
        parallel.tensor_parallel_plan(make_model("qwen2"), 3)
