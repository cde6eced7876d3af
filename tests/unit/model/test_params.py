"""Settings: complete, in range, and refused by name."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.catalog import ModelEntry
from model.errors import InvalidRequest
from model.params import MAX_PROMPT, ImageToVideoParams
from model.tasks import TASKS, task

GOOD: dict[str, Any] = {
    "num_frames": 14,
    "height": 128,
    "width": 224,
    "seed": 7,
    "fps": 8,
    "motion_bucket_id": 127,
    "noise_aug_strength": 0.02,
    "min_guidance_scale": 3.0,
    "max_guidance_scale": 1.0,
    "num_inference_steps": 20,
    "solver": "euler",
    "schedule": "karras",
    "decode_chunk_size": 7,
    "resize_mode": "crop",
}
DEFAULTS = {key: value for key, value in GOOD.items() if key not in {"num_frames", "height", "width", "seed"}}
ENTRY = ModelEntry("m", Path("m"), task("image-to-video"), "0" * 12, (14,), 128, 224, 32, DEFAULTS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fps", 0),
        ("fps", 61),
        ("motion_bucket_id", 0),
        ("motion_bucket_id", 256),
        ("noise_aug_strength", -0.1),
        ("noise_aug_strength", math.nan),
        ("min_guidance_scale", math.inf),
        ("num_inference_steps", 0),
        ("num_inference_steps", 201),
        ("seed", -1),
        ("decode_chunk_size", 129),
        ("height", 129),
    ],
)
def test_a_value_out_of_range_names_its_field(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ImageToVideoParams(**{**GOOD, field: value})
    assert caught.value.param == field


def test_schedule_lcm_has_as_many_steps_as_levels() -> None:
    lcm = {**GOOD, "solver": "lcm", "schedule": "lcm"}
    assert ImageToVideoParams(**{**lcm, "num_inference_steps": 40}).num_inference_steps == 40
    with pytest.raises(InvalidRequest, match="40 levels") as caught:
        ImageToVideoParams(**{**lcm, "num_inference_steps": 41})
    assert caught.value.param == "num_inference_steps"


def test_every_setting_is_required_but_a_lora_s() -> None:
    """Those may be missing, as in jobs and manifests of versions that had none."""
    optional = {field.name for field in dataclasses.fields(ImageToVideoParams) if field.name.startswith("lora")}
    assert optional == {"lora", "lora_scale"}
    for field in dataclasses.fields(ImageToVideoParams):
        if field.name in optional:
            continue
        with pytest.raises(TypeError, match=field.name):
            ImageToVideoParams(**{key: value for key, value in GOOD.items() if key != field.name})


def test_what_is_left_out_is_the_checkpoint_s_default() -> None:
    assert ENTRY.resolve({"fps": None}, seed=7) == ImageToVideoParams(**GOOD)
    assert ENTRY.resolve({"fps": 12, "width": 160}, seed=1).fps == 12


@pytest.mark.parametrize(("asked", "field"), [({"num_frames": 25}, "num_frames"), ({"width": 230}, "width")])
def test_what_the_checkpoint_cannot_make_names_the_field(asked: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ENTRY.resolve(asked, seed=0)
    assert caught.value.param == field


@given(width=st.integers(1, 2000))
def test_only_sizes_the_network_can_halve_pass(width: int) -> None:
    fits = width % 32 == 0 and width <= 4 * 224
    try:
        resolved = ENTRY.resolve({"width": width}, seed=0)
    except InvalidRequest:
        assert not fits
    else:
        assert fits and resolved.width == width


EVERYTHING = {**DEFAULTS, "elevation": 10.0, "prompt": "a red ball"}
ENTRIES = {
    name: ModelEntry("m", Path("m"), spec, "0" * 12, (14,), 128, 224, 32, EVERYTHING) for name, spec in TASKS.items()
}
VALUES: dict[str, st.SearchStrategy[object]] = {
    "num_frames": st.integers(0, 30),
    "height": st.integers(0, 300),
    "width": st.integers(0, 300),
    "fps": st.integers(-1, 70),
    "motion_bucket_id": st.integers(-1, 300),
    "noise_aug_strength": st.floats(-1, 20),
    "min_guidance_scale": st.floats(-1, 40),
    "max_guidance_scale": st.floats(-1, 40),
    "num_inference_steps": st.integers(-1, 300),
    "solver": st.sampled_from(["euler", "heun"]),
    "decode_chunk_size": st.integers(0, 20),
    "resize_mode": st.sampled_from(["crop", "fit"]),
    "elevation": st.floats(-200, 200) | st.just(math.nan),
    "prompt": st.text(max_size=20) | st.just("x" * (MAX_PROMPT + 1)),
}


@pytest.mark.slow
@given(name=st.sampled_from(sorted(TASKS)), asked=st.fixed_dictionaries({}, optional=VALUES))
def test_settings_of_any_task_are_complete_and_within_limits_or_refused_by_name(
    name: str, asked: dict[str, object]
) -> None:
    refused: str | None = ""
    try:
        params = ENTRIES[name].resolve(asked, seed=3)
    except InvalidRequest as error:
        refused = error.param
    if refused != "":
        assert refused in asked
        return
    assert type(params) is TASKS[name].params
    assert set(asked) <= TASKS[name].settings
    assert all(getattr(params, field) == value for field, value in asked.items())
    assert params.guidance_range[1] == params.max_guidance_scale


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_field_the_task_does_not_have_is_named(name: str) -> None:
    foreign = {"prompt": "a ball", "elevation": 1.0, "min_guidance_scale": 1.0, "resize_mode": "fit", "image": "x"}
    for field in foreign.keys() - TASKS[name].settings:
        with pytest.raises(InvalidRequest, match=f"{name} has no field '{field}'") as caught:
            ENTRIES[name].resolve({field: foreign[field]}, seed=0)
        assert (caught.value.param, caught.value.code) == (field, "unknown_field")


def test_a_prompt_that_nobody_gave_is_missing() -> None:
    entry = ModelEntry("m", Path("m"), task("text-to-video"), "0" * 12, (14,), 128, 224, 32, DEFAULTS)
    with pytest.raises(InvalidRequest) as caught:
        entry.resolve({}, seed=0)
    assert (caught.value.param, caught.value.code) == ("prompt", "missing_field")


def test_constant_guidance_has_one_scale() -> None:
    params = ENTRIES["frame-interpolation"].resolve({"max_guidance_scale": 2.5}, seed=0)
    assert params.guidance_range == (2.5, 2.5)
