"""What each process runs in test_parallel.py: two updates of sharded models, then their logits."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_train import make_documents, make_model, make_run

from minilm import data, parallel, train


def two_updates(kind: str, family: str, mesh: parallel.DeviceMesh | None = None) -> dict:
    """Gradients, losses and the logits after two updates; in one process without a mesh."""
    rows = data.pack(make_documents(), 24)[:8]
    recipe = train.Recipe(steps=2, rows=8, micro_rows=2, length=24, warmup=0)
    model, rank, world = make_model(family), 0, 1
    if mesh is not None and kind == "parameters":
        parallel.shard_parameters(model, mesh)
        rank, world = mesh.get_rank(), mesh.size()
    elif mesh is not None:  # all processes compute the same rows
        parallel.shard_matrices(model, mesh)
    optimizer = train.make_optimizer(model, recipe)
    train.accumulate(model, rows, recipe, rank, world)
    gradients = {name: parallel.whole(p.grad).clone() for name, p in model.named_parameters()}
    losses = [train.update(model, optimizer, rows, step, recipe, rank, world) for step in range(2)]
    with torch.no_grad():
        logits = model(rows.input_ids).logits
    return {"gradients": gradients, "losses": losses, "logits": logits}


def main(directory: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    with parallel.processes() as mesh:
        found = {case: two_updates(*case.split(), mesh) for case in cases}
        # A run that stops after half of its steps, and goes on from what it saved.
        for steps in (3, 6):
            run = make_run(directory, mesh, dropout=0.0)
            for _ in zip(range(steps - run.step), run.steps(3, 3), strict=False):
                pass
        found["run"] = {"losses": run.progress.losses, "held_out": run.progress.held_out}
        if dist.get_rank() == 0:
            torch.save(found, directory / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
