"""What is shipped: small enough to be cloned, with a card that tells its figures, its data and its commands."""

from __future__ import annotations

import hashlib
import json

import pytest

from model.catalog import ZOO, ModelEntry, zoo
from model.interpolation import PAIR_FRAMES

MB = 10**6


def test_the_zoo_is_at_most_64_mb_and_no_file_over_16() -> None:
    sizes: dict[str, int] = {}
    for path in ZOO.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert len(content) < 16 * MB, path
            sizes[hashlib.sha256(content).hexdigest()] = len(content)
    assert sum(sizes.values()) <= 64 * MB


@pytest.mark.parametrize("entry", zoo(), ids=lambda entry: entry.name)
def test_a_card_tells_figures_data_and_commands(entry: ModelEntry) -> None:
    card = (entry.path / "README.md").read_text()
    figures = json.loads((entry.path / "metrics.json").read_text())
    assert f"# {entry.name}\n" in card and figures["protocol_hash"] in card
    assert "Blender Foundation" in card and "CC-BY-3.0" in card
    runs = json.loads((entry.path / "stillmotion.json").read_text())["runs"]
    assert all(f"stillmotion train {run} --data" in card for run in runs)
    assert (entry.path / "training-curve.png").stat().st_size > 1000


def test_what_is_shipped_can_be_chained() -> None:
    tasks = {entry.task.name: entry for entry in zoo()}
    assert PAIR_FRAMES in tasks["frame-interpolation"].num_frames
