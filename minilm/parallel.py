"""Several processes, one model: share out what is stored (FSDP2), or the matrix products themselves.

Started by `torchrun --nproc-per-node 2 …`. Both give the loss and the logits of one process, to rounding.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from minilm.heads import CausalLM
from minilm.linear import Linear


@contextmanager
def processes(device_type: str = "cpu") -> Iterator[DeviceMesh | None]:
    """Join the processes that torchrun started: a mesh with one axis over all of them; None for one process.

    gloo connects processors, nccl graphics cards; each process takes the card of its local rank.
    """
    if "RANK" not in os.environ:
        yield None
        return
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    mesh = init_device_mesh(device_type, (int(os.environ["WORLD_SIZE"]),))
    try:
        yield mesh
    finally:
        dist.destroy_process_group()


def shard_parameters(model: CausalLM, mesh: DeviceMesh) -> CausalLM:
    """FSDP2: each process stores a part of every parameter, of its gradient and of the optimizer's state.

    A block's parameters are gathered when the block runs and dropped after it; its gradients are averaged
    over the processes, each of which computes on rows of its own.
    Source: ZeRO, Rajbhandari et al. 2019, stage 3.
    """
    from torch.distributed.fsdp import fully_shard

    for block in model.decoder.layers:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)  # what stands around the blocks: embeddings, final norm, head


def tensor_parallel_plan(model: CausalLM, size: int) -> dict[str, str]:
    """How the matrices of a block are cut over `size` processes, by the names of their modules.

    What reads the residual stream is cut by its outputs, so that a process has whole heads, or some of the
    MLP's units; what writes to it is cut by its inputs, and the parts are added: one sum for each branch.
    Source: Megatron-LM, Shoeybi et al. 2019, §3.
    """
    config = model.config
    if config.intermediate_size % size:
        raise ValueError(f"{config.intermediate_size} units of the MLP cannot be shared by {size} processes")
    reads, writes = ["mlp.up_proj"], ["mlp.down_proj"]
    if config.mlp == "gated":
        reads.append("mlp.gate_proj")
    # In fused rows of three blocks, a cut by outputs would part queries from keys: they stay whole.
    if config.qkv_layout != "blocks":
        if config.num_kv_heads % size:
            raise ValueError(f"{config.num_kv_heads} key heads cannot be shared by {size} processes")
        names = "qkv_proj" if config.qkv_layout == "per_head" else "q_proj k_proj v_proj"
        reads += [f"attention.{name}" for name in names.split()]
        writes.append("attention.o_proj")
    return dict.fromkeys(reads, "outputs") | dict.fromkeys(writes, "inputs")


def shard_matrices(model: CausalLM, mesh: DeviceMesh) -> CausalLM:
    """Tensor parallelism: each process computes with its own heads and its own units of the MLP.

    All processes get the same rows and return the same logits.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    size = mesh.size()
    plan = tensor_parallel_plan(model, size)
    local = model.config.replace(
        num_heads=model.config.num_heads // size, num_kv_heads=model.config.num_kv_heads // size or 1
    )
    for block in model.decoder.layers:
        cut = {"outputs": ColwiseParallel, "inputs": RowwiseParallel}
        parallelize_module(block, mesh, {name: cut[side]() for name, side in plan.items()})
        if "attention.o_proj" in plan:
            block.attention.config = local
        for module in block.modules():
            if isinstance(module, Linear):
                module.exact = True  # the faster kernel takes plain tensors only
    return model


def whole_state(model: CausalLM, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    """The states of both as one process would hold them; complete in the first process, empty in others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_state_dict(model, optimizer, options=options)


def load_whole_state(model: CausalLM, optimizer: torch.optim.Optimizer, states: tuple[dict, dict]) -> None:
    """Undo whole_state in any number of processes: each takes its parts."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_state_dict(model, optimizer, model_state_dict=states[0], optim_state_dict=states[1], options=options)


def shared(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor only, or one of several copies: a DTensor."""
    return hasattr(tensor, "full_tensor")  # importing the class takes a second, also where it is not used


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together again in every process; all of them must ask for it."""
    return tensor.full_tensor() if shared(tensor) else tensor
