"""The commands in a model card: every dataset that its runs read, before the runs, in their order."""

from __future__ import annotations

import dataclasses
from typing import Any

from training.data.shards import CURATED
from training.model_card import commands
from training.overrides import with_overrides
from training.recipes import RECIPES


def ran(task: str | None = None, data: str | None = None) -> dict[str, Any]:
    """What a checkpoint records of a run; autoencoders have no task, and old runs no dataset."""
    config = {} if task is None else {"task": task}
    return {"config": config} | ({} if data is None else {"data": {"name": data, "sha256": "00"}})


def test_a_run_on_curated_film_is_told_with_how_it_was_curated() -> None:
    runs = {
        "mini-vae": ran(),
        "mini-frame-interpolation": ran("frame-interpolation", "stillmotion-starter"),
        "mini-frame-interpolation-long": ran("frame-interpolation", CURATED),
    }
    assert commands(runs).splitlines() == [
        "stillmotion data starter --out data/starter",
        "stillmotion data film --out data/bbb.mp4",
        "stillmotion curate run data/bbb.mp4 --out data/film --min-length 0.5 --max-lost 0.1",
        "stillmotion train mini-vae --data data/starter --out runs",
        "stillmotion train mini-frame-interpolation --data data/starter --out runs",
        "stillmotion train mini-frame-interpolation-long --data data/film --out runs",
    ]


def test_orbits_are_rendered_and_nothing_else_is_fetched_for_them() -> None:
    told = commands({"mini-vae": ran(), "mini-multi-view": ran("multi-view", "stillmotion-orbits")}).splitlines()
    assert told[:2] == [
        "stillmotion data starter --out data/starter",
        "stillmotion data multi-view --out data/multi-view",
    ]
    assert told[-1] == "stillmotion train mini-multi-view --data data/multi-view --out runs"


def test_a_decoder_fitted_to_orbits_is_told_with_the_orbits_it_read() -> None:
    told = commands({"mini-vae": ran(), "mini-decoder-orbits": ran(data="stillmotion-orbits")}).splitlines()
    assert told[-1] == "stillmotion train mini-decoder-orbits --data data/multi-view --out runs"


def test_what_a_run_had_otherwise_than_its_recipe_is_in_its_command() -> None:
    recipe = with_overrides(RECIPES["mini-multi-view"](), ["init=elsewhere", "optim.lr=0.5", "most_unreadable=0.2"])
    runs = {"mini-multi-view": {"config": dataclasses.asdict(recipe)}}
    assert commands(runs).splitlines()[-1] == (
        "stillmotion train mini-multi-view --data data/multi-view --out runs "
        "--set optim.lr=0.5 --set init=elsewhere --set most_unreadable=0.2"
    )
