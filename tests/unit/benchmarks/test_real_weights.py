"""The program for published weights works end to end on a random folder in diffusers' format."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.real_weights import main
from model.presets import NoiseRange, preset
from model.tasks import TASKS
from model.testing import build_random


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # as for its users, to whom a deprecation in a library is no error
def test_parity_memory_speed_and_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0))
    entry = build_random(tmp_path / "weights", tiny, TASKS["image-to-video"], seed=3)
    options = ["--steps", "2", "--repeats", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["real_weights", str(entry.path), *options])
    main()
    found = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert found["parity"]["latents_apart"] < 1e-4 < found["parity"]["latents_largest"]
    assert found["video"]["frames_psnr_db"] > 60
    assert found["video"]["ours"]["seconds"] > 0 and found["video"]["diffusers"]["peak_gib"] > 0
    assert (tmp_path / "out" / "video.mp4").stat().st_size > 0
