"""The halves of a denoiser call on two devices: the numbers of one, with two copies on a CPU as the devices."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.backends.wrappers import CfgParallelDenoiser
from model.denoiser import DenoiserInputs
from model.errors import InvalidRequest
from model.lora.catalog import LoraUse
from model.presets import preset
from model.tasks import task
from model.testing import build_random
from serving.engine.loaded_model import LoadedModel, load_model, second_copy
from serving.engine.settings import EngineSettings
from tests.support.cuda import fake_cuda

CPU = torch.device("cpu")


def inputs(slots: int, side: int = 8) -> DenoiserInputs:
    g = torch.Generator().manual_seed(slots)
    clip = torch.randn(slots, 6, 4, side, side, generator=g)
    numbers = (torch.linspace(-1, 1, slots), torch.randn(slots, 1, 32, generator=g), clip.flip(0))
    return DenoiserInputs(clip, *numbers, torch.rand(slots, 3, generator=g))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    """On one device, and on two."""
    entry = build_random(tmp_path_factory.mktemp("models") / "tiny", preset("tiny"), task("image-to-video"), seed=5)
    one = EngineSettings(device="cpu", threads=1, backend="torch")
    two = EngineSettings(device="cpu", threads=1, backend="torch", cfg_parallel="cpu")
    return load_model(entry, one), load_model(entry, two)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_two_devices_give_what_one_gives(models: tuple[LoadedModel, LoadedModel], slots: int) -> None:
    one, two = models
    assert isinstance(two.denoiser, CfgParallelDenoiser)
    assert torch.equal(two.denoiser(inputs(slots)), one.denoiser(inputs(slots)))
    assert one.machine.key != two.machine.key  # measured apart


class Device:
    """A denoiser that notes its slots and its thread, and waits for the other device's call."""

    def __init__(self, both: threading.Barrier) -> None:
        self.both = both
        self.calls: list[int] = []
        self.threads: list[str] = []
        self.lora: LoraUse | None = None

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        self.calls.append(inputs.batch_size)
        self.threads.append(threading.current_thread().name)
        if self.both.parties == 2:
            self.both.wait(timeout=20)
        return inputs.latents * 2

    def set_lora(self, lora: LoraUse | None) -> None:
        self.lora = lora


def test_both_work_at_once_on_half_of_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)
    first, second = Device(both), Device(both)
    denoiser = CfgParallelDenoiser(first, second, CPU)
    for slots in (2, 5):
        assert torch.equal(denoiser(inputs(slots)), inputs(slots).latents * 2)
    assert (first.calls, second.calls) == ([1, 3], [1, 2])
    assert set(second.threads).isdisjoint(first.threads)
    use = LoraUse("pan", "v1", 1.0)
    denoiser.set_lora(use)
    assert first.lora == second.lora == use


def test_the_second_works_with_its_own_device_current(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_cuda(monkeypatch)
    current: list[str] = []

    def second(inputs: DenoiserInputs) -> Tensor:
        current.append(cuda.current)
        return inputs.latents

    monkeypatch.setattr(DenoiserInputs, "to", lambda inputs, _: inputs)
    CfgParallelDenoiser(Device(threading.Barrier(1)), second, torch.device("cuda:1"))(inputs(2))
    assert current == ["cuda:1"]
    assert cuda.current == "cuda:0"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"cfg_parallel": "gpu"}, "not 'gpu'"),
        ({"cfg_parallel": "cuda"}, "not 'cuda'"),
        ({"cfg_parallel": "cuda:1", "reuse_every": 2}, "stay on one device"),
        ({"cfg_parallel": "cuda:1", "vram_budget_gib": 8.0}, "for one device"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        EngineSettings(**settings)


def test_a_second_device_that_is_not_here_or_does_not_fit_is_refused(
    models: tuple[LoadedModel, LoadedModel], tmp_path: Path
) -> None:
    checkpoint = models[0].checkpoint
    with pytest.raises(InvalidRequest, match="device cuda:7: torch"):
        second_copy(checkpoint, EngineSettings(cfg_parallel="cuda:7"))
    with pytest.raises(InvalidRequest, match="openvino runs on one device"):
        second_copy(checkpoint, EngineSettings(cfg_parallel="cpu", backend="openvino"))
