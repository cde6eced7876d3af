"""Engine settings: the one source of options, parameters and manifest entries."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from serving.engine.settings import EngineSettings, engine_options

EVERYTHING = EngineSettings(
    deterministic=True,
    backend="onnxruntime",
    device="cuda:1",
    dtype="bfloat16",
    threads=3,
    attention="flash",
    decode_chunk_plan="diffusers",
    guidance_interval=(0.3, 5.0),
    vram_budget_gib=12.5,
)


def test_every_setting_has_an_option_with_a_name_of_its_own() -> None:
    options = dict(engine_options())
    assert options.keys() == {one.name for one in fields(EngineSettings)}
    assert len({option.name for option in options.values()}) == len(options)


def test_a_manifest_gives_back_what_the_pixels_depend_on() -> None:
    recorded = json.loads(json.dumps(EVERYTHING.as_manifest()))
    assert recorded.keys() == {
        *("backend", "device", "dtype", "threads", "deterministic"),
        *("attention", "kernels", "reuse_every", "decode_chunk_plan", "guidance_interval", "vram_budget_gib"),
        *("fp8", "cfg_parallel"),
    }
    assert EngineSettings.from_manifest(recorded) == EVERYTHING
    assert EngineSettings.from_manifest(recorded) == EngineSettings.from_manifest(
        replace(EVERYTHING, max_rows=3, mux_threads=2, warm_up=False).as_manifest()
    )


def test_a_manifest_of_an_earlier_version_had_the_defaults() -> None:
    first = {"backend": "torch", "device": "cpu", "dtype": "float32", "threads": 2, "deterministic": False}
    assert EngineSettings.from_manifest(first | {"task": "image-to-video"}) == EngineSettings(
        backend="torch", device="cpu", dtype="float32", threads=2
    )
    for name in first:
        with pytest.raises(KeyError, match=name):
            EngineSettings.from_manifest({key: value for key, value in first.items() if key != name})
