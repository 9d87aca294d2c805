"""What each process runs in test_parallel.py: two updates of a sharded model, then its logits."""

import sys

import torch
import torch.distributed as dist
from test_train import make_documents, make_model

from minilm import data, parallel, train


def main(kind: str, family: str, path: str) -> None:
    torch.set_num_threads(1)
    rows = data.pack(make_documents(), 24)[:8]
    recipe = train.Recipe(steps=2, rows=8, micro_rows=2, length=24, warmup=0)
    with parallel.processes() as mesh:
        model = make_model(family)
        if kind == "parameters":
            parallel.shard_parameters(model, mesh)
            rank, world = mesh.get_rank(), mesh.size()
        else:
            parallel.shard_matrices(model, mesh)
            rank, world = 0, 1  # all processes compute the same rows
        optimizer = train.make_optimizer(model, recipe)
        train.accumulate(model, rows, recipe, rank, world)
        gradients = {name: parallel.whole(p.grad).clone() for name, p in model.named_parameters()}
        losses = [train.update(model, optimizer, rows, step, recipe, rank, world) for step in range(2)]
        with torch.no_grad():
            logits = model(rows.input_ids).logits
        if dist.get_rank() == 0:
            torch.save({"losses": losses, "logits": logits, "gradients": gradients}, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
