"""What `auto` takes on a CPU: the fastest backend at hand that is equal to torch, measured once and stored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.catalog import PROFILE, ModelEntry
from model.checkpoint import Checkpoint
from model.denoiser import CpuThreads, Denoiser, DenoiserInputs
from model.presets import preset
from model.tasks import task
from model.testing import build_random
from serving.engine import backend_choice
from serving.engine.backend_choice import BackendChoice, chosen_backend, compare, may_choose, read_choice
from serving.engine.loaded_model import load_model
from serving.engine.settings import EngineSettings
from serving.engine.warmup import load_fastest

AUTO = EngineSettings(device="cpu", threads=1)


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelEntry:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))
    return build_random(tmp_path / "tiny", preset("tiny"), task("image-to-video"))


class Clock:
    """Stands for the module time; a call of a Stub takes its seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.processor = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.processor


@dataclasses.dataclass
class Stub:
    """A denoiser with an error and a duration of its own."""

    clock: Clock
    seconds: list[float]
    error: float = 0.0
    processor: float = 1.0

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        self.clock.now += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        self.clock.processor += self.processor
        return torch.ones_like(inputs.latents) + self.error


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(backend_choice, "time", clock)
    return clock


def call(denoiser: Denoiser) -> Tensor:
    latents = torch.zeros(1, 1, 1, 1, 1)
    return denoiser(DenoiserInputs(latents, torch.zeros(1), torch.zeros(1, 1, 1), latents, torch.zeros(1, 1)))


def test_the_fastest_that_is_equal_is_taken(clock: Clock) -> None:
    choice = compare({"torch": Stub(clock, [1.0]), "a": Stub(clock, [0.7]), "b": Stub(clock, [0.1], error=1e-3)}, call)
    assert choice.backend == "a"
    assert choice.seconds["b"] == pytest.approx(0.1)
    assert choice.difference["torch"] == choice.difference["a"] == 0.0
    assert choice.difference["b"] == pytest.approx(1e-3, rel=0.01)


def test_nan_is_not_equal_and_a_gain_within_noise_is_none(clock: Clock) -> None:
    assert compare({"torch": Stub(clock, [1.0]), "a": Stub(clock, [0.5], error=float("nan"))}, call).backend == "torch"
    assert compare({"torch": Stub(clock, [1.0]), "a": Stub(clock, [0.97])}, call).backend == "torch"


def test_one_that_takes_more_of_the_processors_is_not_faster_only_luckier(clock: Clock) -> None:
    """On a crowded machine the clock says little: the same call took 0.8 and 5.7 s there, and 1.4 of a processor."""
    crowded = {"torch": Stub(clock, [5.7]), "a": Stub(clock, [3.1], processor=1.8)}
    assert compare(crowded, call).backend == "torch"
    assert compare({"torch": Stub(clock, [5.7]), "a": Stub(clock, [3.1], processor=1.05)}, call).backend == "a"


def test_a_first_call_that_compiles_does_not_count(clock: Clock) -> None:
    assert compare({"torch": Stub(clock, [1.0]), "a": Stub(clock, [9.0, 0.5, 0.6])}, call).backend == "a"


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "torch"},
        {"deterministic": True},
        {"dtype": "float16"},
        {"reuse_every": 2},
        {"attention": "sdpa"},
        {"device": "xpu"},
        {"vram_budget_gib": 4.0},
    ],
)
def test_what_pins_torch(entry: ModelEntry, change: dict[str, object]) -> None:
    assert may_choose(entry, AUTO)
    assert not may_choose(entry, dataclasses.replace(AUTO, **change))  # type: ignore[arg-type]
    assert not may_choose(dataclasses.replace(entry, exported=True), AUTO)


def test_without_a_graph_at_hand_auto_is_torch_and_nothing_is_measured(
    entry: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_choice, "compare", lambda *_: pytest.fail("it measured"))
    assert load_fastest(entry, AUTO).settings.backend == "torch"
    assert not (entry.path / PROFILE).exists()


def test_the_choice_is_measured_once_and_followed(
    entry: ModelEntry, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    made: list[str] = []

    def make(name: str, checkpoint: Checkpoint, cores: CpuThreads, *_: object) -> Denoiser:
        made.append(name)
        return Stub(clock, [0.1 if name == "onnxruntime" else 0.2])

    torch_denoiser = Stub(clock, [1.0])
    maker: Callable[..., Denoiser] = lambda name, *rest: torch_denoiser if name == "torch" else make(name, *rest)  # noqa: E731
    monkeypatch.setattr("serving.engine.loaded_model.make_denoiser", maker)
    monkeypatch.setattr(backend_choice, "make_denoiser", maker)
    monkeypatch.setattr(backend_choice, "at_hand", lambda _: ["openvino", "onnxruntime"])
    monkeypatch.setattr("serving.engine.warmup.at_hand", lambda _: ["openvino", "onnxruntime"])
    assert load_fastest(entry, AUTO).settings.backend == "onnxruntime"
    assert made == ["openvino", "onnxruntime", "onnxruntime"]  # two to be measured, and the one to be served
    stored = read_choice(entry.path, AUTO)
    assert stored is not None and stored.backend == "onnxruntime"
    assert stored.seconds == pytest.approx({"torch": 1.0, "openvino": 0.2, "onnxruntime": 0.1})
    assert load_fastest(entry, AUTO).settings.as_manifest()["backend"] == "onnxruntime"
    assert made[3:] == ["onnxruntime"]
    assert load_model(entry, dataclasses.replace(AUTO, deterministic=True)).settings.backend == "torch"
    monkeypatch.setattr(backend_choice, "at_hand", lambda _: [])
    assert chosen_backend(entry, AUTO) == "auto"  # it is not at hand any more


def test_a_choice_of_other_threads_or_a_broken_file_is_none(entry: ModelEntry) -> None:
    choice = BackendChoice("openvino", {"torch": 1.0}, {"torch": 1.8}, {"torch": 0.0})
    assert backend_choice.write_entry(entry.path, backend_choice._key(AUTO), dataclasses.asdict(choice))
    assert read_choice(entry.path, AUTO) == choice
    assert read_choice(entry.path, dataclasses.replace(AUTO, threads=2)) is None
    (entry.path / PROFILE).write_text(json.dumps({backend_choice._key(AUTO): ["openvino"]}))
    assert read_choice(entry.path, AUTO) is None
