"""The soak's judgement of what grows, and a short run of it all."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak import grown, plot, soak, table, write_samples
from benchmarks.soak_server import Sample
from model.presets import NoiseRange, preset
from model.tasks import task
from model.testing import build_random

HOUR = 3600.0
FLAT = Sample(0.0, 0, 1000.0, 40, 20, 10.0, 50.0, 100)


def samples(**rates_per_hour: float) -> list[Sample]:
    """An hour of samples, of two lives; what is named grows at so much an hour."""
    found = []
    for number in range(720):
        t = number * 5.0
        changes = {name: getattr(FLAT, name) + rate * t / HOUR for name, rate in rates_per_hour.items()}
        found.append(replace(FLAT, t=t, life=int(t > HOUR * 0.6), **changes))
    return found


def test_what_stays_has_not_grown() -> None:
    assert grown(samples(), HOUR) == []
    noisy = [
        replace(one, rss=one.rss + 30 * (number % 3), files=40 + number % 20) for number, one in enumerate(samples())
    ]
    assert grown(noisy, HOUR) == []


@pytest.mark.parametrize(
    ("name", "rate"), [("rss", 600.0), ("files", 300.0), ("threads", 60.0), ("database", 20.0), ("artifacts", 200.0)]
)
def test_a_leak_is_named(name: str, rate: float) -> None:
    found = grown(samples(**{name: rate}), HOUR)
    assert len(found) == 1 and found[0].startswith(f"{name.replace('artifacts', 'artifacts_per_job')} grew from ")


def test_more_jobs_at_once_are_no_leak() -> None:
    """Twice the jobs in the last third: their artifacts, and memory while they run, which falls again in between."""
    busy = [
        replace(one, rss=1000.0 + 500 * (number % 4 > 0), artifacts=100.0, stored=200) if one.t > HOUR / 2 else one
        for number, one in enumerate(samples())
    ]
    assert grown(busy, HOUR) == []
    left_behind = [replace(one, stored=100) if one.t > HOUR / 2 else one for one in busy]
    assert [text.partition(" ")[0] for text in grown(left_behind, HOUR)] == ["artifacts_per_job"]


def test_memory_of_an_earlier_life_does_not_count() -> None:
    two_lives = [replace(one, rss=3000.0) if one.life == 0 else one for one in samples()]
    assert grown(two_lives, HOUR) == []


def test_samples_table_and_plot_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    few = samples()[::40]
    write_samples(few, tmp_path / "samples.csv")
    assert len((tmp_path / "samples.csv").read_text().splitlines()) == len(few) + 1
    plot(few, [600.0], tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
    assert "| rss (MiB) | 1000.0 | 1000.0 | 1000.0 |" in table(few, HOUR)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_two_minutes_of_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sized = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0))
    models = []
    for name in ("image-to-video", "text-to-video", "frame-interpolation"):
        frames = 5 if name == "frame-interpolation" else None
        models.append(str(build_random(tmp_path / name, sized, task(name), num_frames=frames).path))
    passed = asyncio.run(soak(2.0, tmp_path / "soak", models, together=4))
    assert passed, capsys.readouterr().out
