"""Several processes a run: joining them, sharding by FSDP2 (torch's `fully_shard`), and reductions over them.

`torchrun` or `accelerate launch` start the processes; one process needs neither. accelerate's PartialState joins them
(gloo on CPUs, NCCL on GPUs) and says which device is this one's. Its FSDP plugin is not used: on a CPU accelerate
ignores it without a word. Each process saves its part of a sharded state (training.sharded_checkpoint), which is laid
out anew when read, so a run goes on with another number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from model.errors import MissingExtra


def join_processes() -> torch.device:
    """Join the other processes, if there are any; returns this one's device.

    Raises:
        MissingExtra: there are others, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        from accelerate import PartialState
    except ImportError:
        raise MissingExtra("training in several processes", "train") from None
    device: torch.device = PartialState(cpu=not torch.cuda.is_available()).device
    return device


@contextmanager
def main_process_first() -> Iterator[None]:
    """The first process goes through the block before the others do: what it caches, they find."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        yield


def distributed() -> bool:
    """Whether this process has joined others (training.distributed)."""
    return dist.is_available() and dist.is_initialized()


def rank_and_size() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if distributed():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def barrier() -> None:
    """Wait for the other processes."""
    if distributed():
        dist.barrier()


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether any of them lies in parts on the processes."""
    return any(isinstance(p, DTensor) for p in parameters)


def shard(unet: UNetSpatioTemporalConditionModel) -> None:
    """Shard a denoiser in place, block by block; parameters become DTensors."""
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        fully_shard(block)
    fully_shard(cast(nn.Module, unet))


def average_plain_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average over the processes the gradients that sharding does not: those of parameters that every process has."""
    _, size = rank_and_size()
    for p in parameters:
        if size > 1 and p.grad is not None and not isinstance(p.grad, DTensor):
            dist.all_reduce(p.grad)
            p.grad /= size


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale all gradients so that their common norm is at most `largest`, whatever lies where."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], largest)
        return
    sharded = torch.stack([g.to_local().square().sum() for g in gradients if isinstance(g, DTensor)]).sum()
    dist.all_reduce(sharded)
    plain = sum(float(g.square().sum()) for g in gradients if not isinstance(g, DTensor))
    scale = largest / (float(sharded + plain) ** 0.5 + 1e-6)
    if scale < 1:
        for gradient in gradients:
            gradient.mul_(scale)


def gather_full(tree: Any) -> Any:
    """The same nest of dicts and lists with every DTensor whole; a collective call."""
    if isinstance(tree, DTensor):
        return tree.full_tensor()
    if isinstance(tree, dict):
        return {key: gather_full(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [gather_full(value) for value in tree]
    return tree


def distribute_like(whole: Tensor, placed: Tensor) -> Tensor:
    """A whole tensor laid out as `placed` is; one that lies in parts already stays as it is."""
    if isinstance(placed, DTensor) and not isinstance(whole, DTensor) and whole.shape == placed.shape:
        return distribute_tensor(whole.to(placed.device), placed.device_mesh, placed.placements)
    return whole


def local_shard(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process; all of a plain one."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def all_reduce_sum(value: float) -> float:
    """The sum of a number over the processes."""
    _, size = rank_and_size()
    if size == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    number = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(number)
    return float(number)
