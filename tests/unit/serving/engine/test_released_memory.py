"""Out of memory: the tensors of a call that failed are gone before anything is freed for the retry."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model.sampling.row import BatchKey
from model.shapes import LatentShape
from serving.engine import job as jobs
from serving.engine import lanes, warmup
from serving.engine.lanes import StepLane
from serving.engine.oom import BatchSizeBackoff
from serving.engine.profile import Profile, SmoothedRate
from serving.engine.settings import EngineSettings
from serving.engine.stats import Recorder

ERRORS = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory"), MemoryError()]


class Memory:
    """Activations of calls that fail, watched by weak references."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.freed_with: list[int] = []
        self._activations: list[weakref.ref[torch.Tensor]] = []

    def refuse(self) -> None:
        """What a call does that runs out of memory half way: its frame holds tensors when it raises."""
        activation = torch.ones(16)
        self._activations.append(weakref.ref(activation))
        self._deeper(activation * 2)

    def _deeper(self, more: torch.Tensor) -> None:
        self._activations.append(weakref.ref(more))
        raise type(self.error)(*self.error.args)

    def free(self) -> None:
        """In place of free_cached_memory: how many activations are alive, without a garbage collection's help."""
        self.freed_with.append(sum(one() is not None for one in self._activations))


@pytest.fixture(params=ERRORS, ids=lambda error: type(error).__name__)
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory(request.param)
    for module in (lanes, jobs, warmup):
        monkeypatch.setattr(module, "free_cached_memory", memory.free)
    return memory


def row() -> Any:
    return SimpleNamespace(latents=torch.zeros(1), active_conditions=(0, 1), step=0, done=False)


def job(profile: Profile) -> Any:
    model = SimpleNamespace(
        denoiser=None, profile=profile, colours=None, checkpoint=SimpleNamespace(unet=SimpleNamespace(device=CPU))
    )
    key = BatchKey("mini@0", LatentShape(1, 4, 1, 2), "float32", None)
    return SimpleNamespace(
        row=row(), model=model, key=key, compute_s=0.0, retried=False, pace=SmoothedRate(), lap=lambda: 1.0, id="a"
    )


CPU = torch.device("cpu")


def lane(failures: list[Exception]) -> StepLane:
    @contextmanager
    def contained(_: Any) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - as the loop's
            failures.append(error)

    return StepLane(EngineSettings(), BatchSizeBackoff(), Recorder(), contained, lambda *_: None)


def test_a_batch_is_halved_on_memory_that_is_free(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def advance(_: Any, rows: list[Any]) -> list[Any]:
        sizes.append(len(rows))
        if len(rows) > 1:
            memory.refuse()
        return rows

    monkeypatch.setattr(lanes, "advance", advance)
    failures: list[Exception] = []
    profile = Profile()
    lane(failures).advance([job(profile) for _ in range(3)])
    assert (sizes, failures) == ([3, 1, 2, 1, 1], [])
    assert memory.freed_with == [0, 0]


def test_a_row_alone_is_tried_once_more_on_memory_that_is_free(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "advance", lambda *_: memory.refuse())
    failures: list[Exception] = []
    lane(failures).advance([job(Profile())])
    assert memory.freed_with == [0, 0]
    assert [type(error) for error in failures] == [type(memory.error)]


def test_an_encoding_is_tried_again_on_memory_that_is_free(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    def encode(*_: Any) -> Any:
        attempts.append(0)
        if len(attempts) == 1:
            memory.refuse()
        return row()

    monkeypatch.setattr(lanes, "encode_request", encode)
    one = job(Profile())
    one.request = SimpleNamespace(previews=False, resume_from=None, images=())
    one.enter = lambda _: None
    lane([]).encode(one)
    assert (len(attempts), memory.freed_with) == (2, [0])


def test_a_chunk_is_halved_on_memory_that_is_free(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(_: Any, latents: torch.Tensor) -> np.ndarray:
        if len(latents) > 2:
            memory.refuse()
        return np.zeros((len(latents), 8, 8, 3), np.uint8)

    monkeypatch.setattr(jobs, "decode_chunk", decode)
    progress = jobs.DecodeProgress.begin(7, 7)
    vae: Any = None
    while not progress.complete:
        progress.next(vae, torch.zeros(7, 1))
    assert progress.degraded and max(progress.sizes) == 2
    assert memory.freed_with == [0] * len(memory.freed_with) != []


def test_the_calibration_stops_at_what_fits_and_frees_it(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(_: Any, work: Callable[[], object]) -> float:
        work()
        return 0.01

    def evaluate(_: Any, rows: list[Any]) -> None:
        if len(rows) > 2:
            memory.refuse()

    monkeypatch.setattr(warmup, "_timed", timed)
    monkeypatch.setattr(warmup, "evaluate", evaluate)
    monkeypatch.setattr(warmup, "max_batch_size", lambda *_, **__: 8)
    monkeypatch.setattr(warmup, "_chunk", lambda *_: 1)
    monkeypatch.setattr(warmup, "decode_chunk", lambda *_: None)
    profile = Profile()
    model: Any = SimpleNamespace(
        profile=profile,
        settings=EngineSettings(),
        checkpoint=SimpleNamespace(unet=SimpleNamespace(device=torch.device("cpu")), vae=None),
        entry=SimpleNamespace(exported=False),
        denoiser=None,
        decoding=nullcontext,
    )
    plain = SimpleNamespace(
        key=SimpleNamespace(latent=SimpleNamespace(numel=8)),
        conditions=(0,),
        latents=torch.zeros(1),
        unguided=lambda: None,
    )
    params: Any = SimpleNamespace(height=8, width=8)
    warmup.calibrate(model, params, plain)  # type: ignore[arg-type]
    assert profile.call_s(8, 2) == 0.01
    assert memory.freed_with == [0]
