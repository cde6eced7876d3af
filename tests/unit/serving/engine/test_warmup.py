"""What measuring before readiness may take; past that a profile begins with estimates, and nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.presets import preset
from model.tasks import task
from model.testing import build_random
from serving.engine import warmup
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.profile import read_profile
from serving.engine.settings import EngineSettings


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    entry = build_random(tmp_path / "tiny", preset("tiny"), task("image-to-video"))
    return load_model(entry, EngineSettings(device="cpu", threads=1))


def test_a_model_that_is_slow_here_is_served_with_estimates_and_nothing_runs(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "LONGEST_S", 0.0)
    monkeypatch.setattr(warmup, "prepare_row", lambda *_: pytest.fail("it ran"))
    warmup.warm_up(model)
    params = model.entry.resolve({}, seed=0)
    estimate = model.estimate(params)
    assert estimate is not None and estimate > 0
    assert model.profile.worth(model.key(params).latent.numel, 8) == 1  # no gain from batches is promised
    assert read_profile(model.entry.path, model.machine) is None  # estimates are not kept as measurements


@pytest.mark.slow
def test_a_model_that_is_quick_here_is_measured_once(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    warmup.warm_up(model)
    stored = read_profile(model.entry.path, model.machine)
    assert stored is not None
    estimates = warmup.estimated_profile(model, model.entry.resolve({}, seed=0))
    assert estimates is not None
    monkeypatch.setattr(warmup, "calibrate", lambda *_: pytest.fail("measured again"))
    again = LoadedModel(model.checkpoint, model.denoiser, model.settings)
    warmup.warm_up(again)
    assert again.profile.as_dict() == stored.as_dict() or again.profile.as_dict()["calls"] == stored.as_dict()["calls"]


@pytest.mark.slow
def test_measuring_stays_within_its_memory_and_gives_it_back(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call seems to take another 400 MiB: two slots are measured, and four would be beyond the budget."""
    held, trimmed = iter(range(0, 100 * 400 * 2**20, 400 * 2**20)), []
    monkeypatch.setattr(warmup, "resident_bytes", lambda: next(held))
    monkeypatch.setattr(warmup, "trim_freed_memory", lambda: trimmed.append(True))
    warmup.warm_up(model)
    (sizes,) = model.profile.as_dict()["calls"].values()  # type: ignore[attr-defined]
    assert set(sizes) == {"1", "2"}
    assert trimmed
