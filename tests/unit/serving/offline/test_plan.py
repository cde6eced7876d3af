"""One engine a GPU, or one a machine; asked for more, they share."""

from __future__ import annotations

import pytest

from model.errors import InvalidRequest
from serving.offline.rows import WorkerPlan, plan_workers

LAPTOP = [{"CPU": 2.0}]


def test_this_machine_has_one_engine_on_all_its_cores() -> None:
    assert plan_workers(LAPTOP, cores=2, device="auto", workers=None, threads=None) == WorkerPlan(1, 0.99, 0, 2)
    assert plan_workers(LAPTOP, cores=2, device="cpu", workers=2, threads=None) == WorkerPlan(2, 0.5, 0, 1)
    assert plan_workers(LAPTOP, cores=2, device="cpu", workers=2, threads=None, deterministic=True).threads == 2
    assert plan_workers([{"CPU": 1.0}], cores=1, device="cpu", workers=1, threads=None) == WorkerPlan(1, 0.01, 0, 1)
    assert plan_workers(LAPTOP, cores=2, device="cpu", workers=None, threads=5).threads == 5


def test_each_gpu_has_one_engine() -> None:
    nodes = [{"CPU": 16.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 4.0}]
    assert plan_workers(nodes, cores=4, device="auto", workers=None, threads=None) == WorkerPlan(12, 1, 1, None)
    assert plan_workers(nodes, cores=4, device="cuda", workers=3, threads=None) == WorkerPlan(3, 1, 1, None)
    assert plan_workers(nodes, cores=4, device="cpu", workers=None, threads=None) == WorkerPlan(3, 3, 0, 4)
    with pytest.raises(InvalidRequest):
        plan_workers(nodes, cores=4, device="auto", workers=13, threads=None)


@pytest.mark.parametrize(("nodes", "device"), [(LAPTOP, "cuda"), ([], "cpu"), ([{"GPU": 1.0}], "cpu")])
def test_what_cannot_be_placed_is_refused(nodes: list[dict[str, float]], device: str) -> None:
    with pytest.raises(InvalidRequest):
        plan_workers(nodes, cores=2, device=device, workers=None, threads=None)


@pytest.mark.parametrize("workers", range(1, 9))
def test_one_cpu_of_a_machine_is_left_for_reading(workers: int) -> None:
    laid_out = plan_workers([{"CPU": 4.0}], cores=4, device="cpu", workers=workers, threads=None)
    assert laid_out.cpus * laid_out.workers <= 3
    assert laid_out.cpus < 1 or laid_out.cpus == int(laid_out.cpus)  # what Ray takes
    assert laid_out.cpus not in (0, 1)  # what reading tasks ask for
