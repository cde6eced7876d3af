"""Rendered orbits: the plan, the folder that goes on where it stopped, and what a changed file does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from model.errors import DataError
from training.data.orbits import VIEWS, load_orbits, plan_orbits, prepare


def test_the_plan_holds_out_every_eighth_object_at_fixed_elevations() -> None:
    plan = plan_orbits(17, seed=0)
    assert {item.object for item in plan if item.split == "heldout"} == {7, 15}
    assert {item.elevation for item in plan if item.split == "heldout"} == {5.0, 25.0}
    assert plan == plan_orbits(17, seed=0) != plan_orbits(17, seed=1)
    assert plan_orbits(9, 0) == plan[:18]


def test_an_orbit_closes_and_shows_other_sides_and_a_folder_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("pybullet")
    first = prepare(tmp_path, 1)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "orbits").iterdir()}
    (tmp_path / first[0].file).unlink()
    again = prepare(tmp_path, 1)
    assert again == first  # the same bytes
    assert (tmp_path / first[1].file).stat().st_mtime_ns == kept[tmp_path / first[1].file]
    orbit = load_orbits(tmp_path, "train")[0]
    views = orbit.views.astype(float)
    assert views.shape == (VIEWS, 128, 128, 3)
    turned = [np.abs(views[k] - views[0]).mean() for k in range(VIEWS)]
    assert min(turned[5:17]) > max(turned[1], turned[-1]) > 0  # neighbours on both sides are nearer than the back
    half = load_orbits(tmp_path, "train", side=64)[0].views.astype(float)
    assert np.abs(half - views.reshape(VIEWS, 64, 2, 64, 2, 3).mean((2, 4))).max() <= 1
    with pytest.raises(DataError, match="cannot be averaged down to 48"):
        load_orbits(tmp_path, "train", side=48)
    with pytest.raises(DataError, match="another seed"):
        prepare(tmp_path, 1, seed=3)
    (tmp_path / first[0].file).write_bytes(b"cut short")
    with pytest.raises(DataError, match="prepare it again"):
        load_orbits(tmp_path, "train")


def test_a_changed_list_and_another_dataset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stillmotion data multi-view"):
        load_orbits(tmp_path, "train")
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "stillmotion-orbits", "items_sha256": "0"}))
    lines = [json.dumps(dataclasses.asdict(item)) for item in plan_orbits(1, 0)]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="was changed"):
        load_orbits(tmp_path, "train")
