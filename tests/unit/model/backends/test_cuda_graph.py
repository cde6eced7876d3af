"""Recorded calls: one a shape, replayed on new numbers, the oldest let go. On a stand-in recorder, without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.backends.cuda_graph import CudaGraphDenoiser, CudaRecorder, Recording
from model.denoiser import DenoiserInputs
from model.errors import InvalidRequest
from tests.support.cuda import fake_cuda


class Replayed:
    """Runs the call again into the same tensor, as a CUDA graph does."""

    def __init__(self, call: Callable[[], Tensor], output: Tensor) -> None:
        self._call, self._output = call, output
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self._output.copy_(self._call())


class Recorder:
    """Records by keeping the call."""

    def __init__(self) -> None:
        self.made: list[Replayed] = []

    def record(self, call: Callable[[], Tensor]) -> tuple[Recording, Tensor]:
        output = call()
        self.made.append(Replayed(call, output))
        return self.made[-1], output


def network(inputs: DenoiserInputs) -> Tensor:
    """Something that reads all of its inputs."""
    factor = inputs.timestep + inputs.context.mean((1, 2)) + inputs.concat.flatten(1).mean(1) + inputs.vector.sum(1)
    return inputs.latents * factor[:, None, None, None, None]


def inputs(places: int, side: int = 4, seed: int = 0) -> DenoiserInputs:
    g = torch.Generator().manual_seed(seed)
    sizes = ((places, 3, 4, side, side), (places,), (places, 1, 8), (places, 3, 4, side, side), (places, 3))
    return DenoiserInputs(*(torch.randn(size, generator=g) for size in sizes))


def test_every_call_gives_what_the_network_gives() -> None:
    recorder = Recorder()
    denoiser = CudaGraphDenoiser(network, recorder)
    answers = []
    for seed in range(3):
        for places in (1, 2):
            answers.append((denoiser(inputs(places, seed=seed)), network(inputs(places, seed=seed))))
    assert all(torch.equal(given, expected) for given, expected in answers)
    assert [one.replays for one in recorder.made] == [3, 3]


def test_the_oldest_recording_is_let_go() -> None:
    recorder = Recorder()
    denoiser = CudaGraphDenoiser(network, recorder, max_graphs=2)
    for places in (1, 2, 1, 3):
        denoiser(inputs(places))
    assert [shapes[0][0] for shapes in denoiser.recorded] == [1, 3]
    denoiser(inputs(2))
    assert len(recorder.made) == 4


def test_another_size_is_another_recording() -> None:
    recorder = Recorder()
    denoiser = CudaGraphDenoiser(network, recorder)
    denoiser(inputs(2, side=4))
    denoiser(inputs(2, side=6))
    assert len(recorder.made) == 2


def test_a_cpu_is_told() -> None:
    with pytest.raises(InvalidRequest, match="--denoiser torch-compiled"):
        CudaRecorder(torch.device("cpu"))


def test_captures_and_replays_on_its_own_device_in_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current device is another one all the while, as where a server has several."""
    cuda = fake_cuda(monkeypatch)
    denoiser = CudaGraphDenoiser(network, CudaRecorder(torch.device("cuda:1")))
    for slots in (1, 2, 1, 3):
        denoiser(inputs(slots))
    captures = cuda.of("capture")
    assert [current for current, _ in captures] == ["cuda:1"] * 3
    assert {details["pool"] for _, details in captures} == {(0, 1)}
    assert {details["capture_error_mode"] for _, details in captures} == {"thread_local"}
    assert {details["stream"].device for _, details in captures} == {"cuda:1"}
    assert [current for current, _ in cuda.of("replay")] == ["cuda:1"] * 4
    assert cuda.current == "cuda:0"
