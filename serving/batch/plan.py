"""How many workers, and what each of them takes: one a GPU, or one for all CPUs of a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Plan:
    """The pool.

    Args:
        workers: how many.
        cpus, gpus: what Ray sets aside for each.
        threads: CPU threads of each engine; None: the engine's own choice.
    """

    workers: int
    cpus: float
    gpus: float
    threads: int | None


def plan(
    nodes: Sequence[Mapping[str, float]],
    *,
    cores: int,
    device: str,
    workers: int | None,
    threads: int | None,
    deterministic: bool = False,
) -> Plan:
    """Lay out the workers.

    One CPU of each machine is left out of account for reading; a worker's engine still uses its share of all cores.

    Args:
        nodes: what each machine has, as Ray tells: `CPU`, `GPU`.
        cores: usable cores of this machine; engines on CPUs share out the smaller of this and the machine's `CPU`.
        device: of the engines; `auto` takes GPUs where there are any.
        workers: asked for; None for one a GPU, or one a machine.
        threads: asked for, of each engine.
        deterministic: engines take the threads that one alone would, since their number changes the last bits.

    Raises:
        InvalidRequest: GPUs are asked for and there are none, or more workers than GPUs.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if device != "cpu" and (gpus or device != "auto"):
        if (workers or 1) > gpus:
            raise InvalidRequest(f"{workers or 1} workers need as many GPUs, and there are {gpus}", param="workers")
        return Plan(workers or gpus, 1, 1, threads)
    able = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not able:
        raise InvalidRequest("no machine of the cluster has a CPU to give", param="ray_address")
    count = workers or len(able)
    smallest = min(int(node["CPU"]) for node in able)
    each = -(-count // len(able))
    spare = (smallest - 1) / each
    # Neither 0 nor 1, which are what reading tasks ask for: Ray Data would make one task of reading and rendering.
    return Plan(
        count,
        int(spare) if spare >= 2 else min(max(spare, 0.01), 0.99),
        0,
        threads or max(1, min(cores, smallest) // (1 if deterministic else each)),
    )
