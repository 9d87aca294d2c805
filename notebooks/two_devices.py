"""One model on several devices: does it compute what one device computes, and what do they send each other?

    torchrun --nproc-per-node 2 notebooks/two_devices.py --parallel tensor fsdp --model tiny-qwen2

Every process loads the model and computes the loss of some rows of tokens, whole and alone. Then they share
it out with minilm.parallel and compute the same together. While they do, each collective operation is noted:
which one, in which module, how large. The first process prints what was found, and writes it as JSON (--out).

Where there is a graphics card for each process they compute there and talk over nccl; else on processors,
over gloo. For several machines nothing changes in this file, only torchrun's options: notebook 21 shows them.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

import minilm
from minilm import parallel
from minilm.course import curves
from minilm.table import Table

SHARE = {"tensor": parallel.shard_matrices, "fsdp": parallel.shard_parameters}
# How torch calls them inside, in many spellings, and what everyone calls them.
OPERATIONS = {"allreduce": "all-reduce", "allgather": "all-gather", "reducescatter": "reduce-scatter"}
# What may be lost by adding in another order, as a part of the largest number.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


class Listener(TorchDispatchMode):
    """Writes down every collective operation that runs inside its with block."""

    def __init__(self):
        super().__init__()
        self.heard: list[dict] = []
        self.modules = ModuleTracker()

    def __enter__(self):
        self.modules.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.modules.__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if any(hasattr(kind, "full_tensor") for kind in types):
            return NotImplemented  # a DTensor: it takes itself apart, and what it sends comes here again
        if operation.namespace in ("c10d", "_c10d_functional"):
            self.note(operation.__name__.replace("_", ""), args)
        return operation(*args, **kwargs or {})

    def note(self, name: str, args: tuple) -> None:
        """One operation, with the bytes of the whole tensor: what is gathered, or what is scattered."""
        for start, kind in OPERATIONS.items():
            if name.startswith(start):
                size = max(sum(each.nbytes for each in tensors(argument)) for argument in args[:2])
                # The innermost module has the longest name; on the way back hooks know it less surely.
                module = "" if self.modules.is_bw else max(self.modules.parents, key=len).partition(".")[2]
                phase = "backward" if self.modules.is_bw else "forward"
                self.heard.append({"operation": kind, "phase": phase, "module": module, "bytes": size})


def tensors(argument: object) -> list[Tensor]:
    """The tensors of an operation's argument, which come alone or in lists."""
    listed = argument if isinstance(argument, list) else [argument]
    return [each for each in listed if isinstance(each, Tensor)]


def share(name: str, how: str, mesh: DeviceMesh, options: argparse.Namespace) -> dict:
    """One model, alone and shared out in one way: what differs, what was sent, what each process stores."""
    device, rank, world = options.device, mesh.get_rank(), mesh.size()
    draw = torch.Generator().manual_seed(0)
    model = minilm.load(name, dtype=options.dtype, device=device)
    rows = torch.randint(model.config.vocab_size, (options.rows * world, options.length), generator=draw)
    rows = rows.to(device)

    alone = compute(model, rows)
    seconds_alone = seconds(lambda: forward(model, rows), device)
    whole = stored(model)
    try:
        SHARE[how](model, mesh)
    except ValueError as refusal:
        return {"model": name, "parallel": how, "refused": str(refusal)}
    if how == "fsdp":  # every process computes rows of its own; with tensor all of them compute all rows
        rows, alone["logits"] = rows[rank::world], alone["logits"][rank::world]
    model.zero_grad()
    with Listener() as listener:
        together = compute(model, rows)
    apart = {
        "logits": distance(together["logits"], alone["logits"]),
        "gradients": max(map(distance, together["gradients"], alone["gradients"])),
    }
    return {
        "model": name,
        "parallel": how,
        "tokens": rows.numel(),
        "hidden_size": model.config.hidden_size,
        "num_layers": model.config.num_layers,
        "bytes_per_number": options.dtype.itemsize,
        "apart": {what: largest(size, device) for what, size in apart.items()},
        "stored": {"alone": whole, "together": stored(model)},
        "seconds": {"alone": seconds_alone, "together": seconds(lambda: forward(model, rows), device)},
        "sent": listener.heard,
    }


def compute(model: minilm.CausalLM, rows: Tensor) -> dict:
    """Logits, and the gradients of the mean loss; whole ones in every process."""
    out = model(rows, labels=rows)
    out.loss.backward()
    return {"logits": out.logits.detach(), "gradients": [parameter.grad for parameter in model.parameters()]}


@torch.no_grad()
def forward(model: minilm.CausalLM, rows: Tensor) -> None:
    model(rows)


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest number that is expected."""
    found, expected = parallel.whole(found).float(), expected.float()
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def largest(value: float, device: torch.device) -> float:
    """The largest of all processes' values."""
    held = torch.tensor(value, device=device)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return held.item()


def stored(model: minilm.CausalLM) -> int:
    """Bytes of the weights that this process holds."""
    held = (p.to_local() if parallel.shared(p) else p for p in model.parameters())
    return sum(each.nbytes for each in held)


def seconds(run: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    """The median of some rounds that all processes begin together, after one that is not counted."""
    taken = []
    for _ in range(rounds + 1):
        dist.barrier()
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()  # else the clock is read before the work is done
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def all_reduce_times(device: torch.device) -> list[tuple[int, float]]:
    """How long the processes need to add up tensors of several sizes: bytes and seconds."""
    most = 2**24 if device.type == "cpu" else min(2**28, torch.cuda.mem_get_info()[0] // 8)
    sizes = [2**power for power in range(10, 29, 2) if 2**power <= most]
    tensors = (torch.zeros(size // 4, device=device) for size in sizes)
    return [(held.nbytes, seconds(lambda held=held: dist.all_reduce(held), device, 15)) for held in tensors]


def summary(report: dict) -> Table:
    """A line for each model and way of sharing."""
    rows = []
    for run in report["runs"]:
        if "refused" in run:
            rows.append([run["model"], run["parallel"], run["refused"], "", ""])
            continue
        kinds = Counter(each["operation"] for each in run["sent"])
        off = max(run["apart"].values())
        rows.append([
            run["model"],
            run["parallel"],
            f"the same to rounding: {off < TOLERANCE[report['dtype']]}",
            f"{run['stored']['together'] / run['stored']['alone']:.0%} of the weights",
            ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        ])  # fmt: skip
    return Table(["model", "parallel", "logits and gradients", "each stores", "sent"], rows)


def parse() -> argparse.Namespace:
    """The options of the command line; by default small enough for any machine."""
    parser = argparse.ArgumentParser(description="Compute with one model on several devices.")
    parser.add_argument("--parallel", nargs="+", choices=list(SHARE), default=["tensor"])
    parser.add_argument("--model", nargs="+", default=["tiny-qwen2"], help="names or folders of checkpoints")
    parser.add_argument("--rows", type=int, default=1, help="rows of tokens for each process")
    parser.add_argument("--length", type=int, default=32, help="tokens of a row")
    parser.add_argument("--dtype", choices=list(TOLERANCE), help="float32, or bfloat16 on graphics cards")
    parser.add_argument("--time", action="store_true", help="also time the sums of tensors of many sizes")
    parser.add_argument("--out", type=Path, help="where to write what was found, as JSON")
    parser.add_argument("--keep", type=Path, help="folder for these times: notebooks/measured")
    return parser.parse_args()


def main() -> None:
    """Join the other processes, do what was asked for, and let the first process tell."""
    options = parse()
    if "RANK" not in os.environ:
        sys.exit(f"start me with torchrun: torchrun --nproc-per-node 2 {' '.join(sys.argv)}")
    torch.set_num_threads(1)  # processes on one machine share its cores
    # nccl wants a card for each process; where cards are too few, all compute on processors.
    enough = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    options.device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if enough else torch.device("cpu")
    options.dtype = getattr(torch, options.dtype or ("bfloat16" if enough else "float32"))
    with parallel.processes(options.device.type) as mesh:
        runs = [share(name, how, mesh, options) for name in options.model for how in options.parallel]
        times = all_reduce_times(options.device) if options.time or options.keep else []
        if mesh.get_rank() == 0:
            backend = "nccl" if enough else "gloo"
            report = {
                "processes": mesh.size(),
                "backend": backend,
                "dtype": str(options.dtype).removeprefix("torch."),
                "runs": runs,
                "curves": {f"all-reduce over {backend}, {mesh.size()} processes": times},  # bytes and seconds
            }
            print(f"{report['processes']} processes over {report['backend']}, in {report['dtype']}")
            print(summary(report))
            if options.out:
                options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            if options.keep:
                curves.keep("21", report["curves"], options.keep)


if __name__ == "__main__":
    main()
