"""The processes of a run, as `torchrun` or `accelerate launch` start them; one process needs neither.

accelerate's PartialState joins them (gloo on CPUs, NCCL on GPUs) and says which device is this one's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from model.errors import MissingExtra


def join() -> torch.device:
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
def first_alone() -> Iterator[None]:
    """The first process goes through the block before the others do: what it caches, they find."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        yield
