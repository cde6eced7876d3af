"""The task table: channels, vector and frames as the paper has them, free of torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InvalidRequest
from model.tasks import TASKS, task


@given(channels=st.integers(1, 64))
def test_image_to_video_doubles_the_latent_channels(channels: int) -> None:
    assert task("image-to-video").unet_in_channels(channels) == 2 * channels


def test_the_published_vector_is_three_times_256() -> None:
    assert task("image-to-video").vector_size == 768


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
