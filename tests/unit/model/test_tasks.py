"""The task table: channels, vector and frames as the paper has them, free of torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InvalidRequest
from model.params import Params
from model.tasks import TASKS, task


@given(channels=st.integers(1, 64))
def test_input_channels_are_c_2c_2c_and_2c_plus_1(channels: int) -> None:
    wanted = {
        "text-to-video": channels,
        "image-to-video": 2 * channels,
        "multi-view": 2 * channels,
        "frame-interpolation": 2 * channels + 1,
    }
    assert {name: spec.unet_in_channels(channels) for name, spec in TASKS.items()} == wanted
    assert all(spec.concat_channels(channels) == wanted[name] - channels for name, spec in TASKS.items())


def test_the_vectors_are_256_wide_a_scalar() -> None:
    sizes = {name: spec.vector_size // 256 for name, spec in TASKS.items()}
    assert sizes == {"text-to-video": 2, "image-to-video": 3, "frame-interpolation": 3, "multi-view": 4}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_s_settings_have_what_its_spec_reads(name: str) -> None:
    spec = TASKS[name]
    assert {field.name for field in dataclasses.fields(Params)} < spec.settings
    assert set(spec.vector) | spec.sample_request.keys() <= spec.settings
    assert ("resize_mode" in spec.settings) == bool(spec.pictures)
    assert ("min_guidance_scale" in spec.settings) == (spec.guidance != "constant")


def test_each_task_has_its_own_settings_type() -> None:
    assert len({spec.params for spec in TASKS.values()}) == len(TASKS)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_fits_itself(name: str) -> None:
    spec = TASKS[name]
    tokens = {"image": 1, "image-pair": 2}
    assert len(spec.pictures) == spec.concat_latents * tokens.get(spec.context, 0)
    assert spec.context_tokens == tokens.get(spec.context, 77)
    assert (spec.augmentation == "none") == (not spec.pictures) == ("noise_aug_strength" not in spec.vector)
    assert 0 < spec.condition_dropout < 1
    assert spec.guidance != "constant" or len(set(spec.guidance_range)) == 1


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_spec_is_listed_under_its_own_name(name: str) -> None:
    assert TASKS[name].name == name


def test_an_unknown_task_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(InvalidRequest, match="image-to-video"):
        task("image-to-smell")


def test_specs_and_shapes_import_no_torch() -> None:
    modules = "model, model.tasks, model.shapes, model.params, model.catalog, model.presets"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
