"""What each task's graphs take and give, as its TaskSpec says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from export.onnx import ExportSize, components, rewrite
from export.samples import BATCHES, make_samples, real_inputs
from model.backends.onnx_export import Graph, Port, denoiser_graph
from model.checkpoint import load
from model.errors import InvalidRequest
from model.optimized.rewrites import relative_difference
from model.presets import UNetSize, preset
from model.tasks import TASKS, task
from model.testing import build_random

SPECK = dataclasses.replace(preset("tiny"), unet=UNetSize((32,), (2,), 1, 32), num_frames=5, height=32, width=48)
CONCAT = {"image-to-video": 4, "text-to-video": 0, "frame-interpolation": 5, "multi-view": 4}
TOKENS = {"image-to-video": 1, "text-to-video": 77, "frame-interpolation": 2, "multi-view": 1}
SCALARS = {"image-to-video": 3, "text-to-video": 2, "frame-interpolation": 3, "multi-view": 4}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_denoiser_s_ports_follow_from_the_task(name: str) -> None:
    config = SPECK.unet.config(task(name), 4, 5)
    graph = denoiser_graph(task(name), config, height=4, width=6, dtype="float16")
    ports = {port.name: (port.dtype, port.shape) for port in graph.inputs}
    expected = {
        "latents": ("float16", ("batch", 5, 4, 4, 6)),
        "timestep": ("float32", ("batch",)),  # one a place: places of one call may be at different noise levels
        "context": ("float16", ("batch", TOKENS[name], 32)),
        "vector": ("float32", ("batch", SCALARS[name])),
    }
    if CONCAT[name]:
        expected["concat"] = ("float16", ("batch", 5, CONCAT[name], 4, 6))
    assert ports == expected
    assert graph.outputs == (Port("output", "float16", ("batch", 5, 4, 4, 6)),)
    free = denoiser_graph(task(name), config, height=4, width=6, dtype="float16", free_size=True)
    assert free.axes == ("batch", "height", "width")


def test_an_example_has_the_graph_s_sizes_and_dtypes() -> None:
    graph = Graph("text", (Port("tokens", "int64", ("batch", 7)), Port("x", "float16", ("batch", "height"))), ())
    made = graph.example({"batch": 3, "height": 2})
    assert {name: (value.dtype, tuple(value.shape)) for name, value in made.items()} == {
        "tokens": (torch.int64, (3, 7)),
        "x": (torch.float16, (3, 2)),
    }


@pytest.mark.parametrize(
    "name",
    ["image-to-video", *(pytest.param(name, marks=pytest.mark.slow) for name in TASKS if name != "image-to-video")],
)
def test_real_inputs_fit_every_component_and_rewrites_change_rounding_only(name: str, tmp_path: Path) -> None:
    checkpoint = load(build_random(tmp_path / name, SPECK, task(name)))
    parts = components(checkpoint, ExportSize(32, 48))
    conditioner = "text_encoder" if name == "text-to-video" else "image_encoder"
    assert [part.name for part in parts] == ["unet", "vae_encoder", "vae_decoder", conditioner]
    inputs = real_inputs(checkpoint, parts, make_samples(32, 48))
    assert [len(given["timestep"]) for given in inputs["unet"]] == list(BATCHES)
    assert len(inputs["unet"][1]["timestep"].unique()) == BATCHES[1]
    with torch.inference_mode():
        before = {part.name: part.module(**inputs[part.name][-1]) for part in parts}
        rewrite(checkpoint)
        for part in parts:
            given, (port,) = inputs[part.name][-1], part.graph.outputs
            after = part.module(**given)
            assert relative_difference(after, before[part.name]) < 1e-5
            assert after.ndim == len(port.shape)
            assert after.dtype == port.torch_dtype
            for wanted in part.graph.inputs:
                assert len(wanted.shape) == given[wanted.name].ndim
                assert given[wanted.name].dtype == wanted.torch_dtype


def test_a_size_the_networks_cannot_make_is_refused(tmp_path: Path) -> None:
    checkpoint = load(build_random(tmp_path / "speck", SPECK, task("image-to-video")))
    with pytest.raises(InvalidRequest, match="multiple of 8"):
        components(checkpoint, ExportSize(36, 48))
