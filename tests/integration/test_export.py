"""The export's whole road on a small random checkpoint: graphs, gate, engines, repository; then served without weights.

A small preset stands for the mini checkpoint, whose export takes minutes on two cores; `make test-full` exports all
four tasks with the tiny preset.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from export.parity import ParityError, Tolerance, psnr
from export.pipeline import Backend, ExportOptions, export_model
from export.repository import installed
from model.backends.exported_networks import replace_decoder
from model.backends.onnx_export import cached_graphs, decoder_file
from model.backends.openvino import OpenVinoGraph
from model.backends.registry import backend_for
from model.catalog import ModelEntry
from model.checkpoint import load
from model.denoiser import CpuThreads
from model.errors import CheckpointError, InvalidRequest
from model.export_manifest import read_manifest
from model.optimized.rewrites import relative_difference
from model.presets import NoiseRange, Preset, UNetSize, VAESize, preset
from model.sources.source import find
from model.tasks import TASKS
from model.testing import build_random
from serving.engine.inprocess import InProcessEngine
from serving.engine.loaded_model import load_model
from serving.engine.local import generate
from serving.engine.protocol import Completed, EngineRequest
from serving.engine.settings import EngineSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
]  # seconds on a busy machine; a quiet one takes two minutes for the module

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
BACKEND: Backend = "tensorrt-rtx" if HAS_RTX else "onnx"
ON_CPU = EngineSettings(device="cpu", warm_up=False, checkpoint_every_s=None)
SPECK = dataclasses.replace(
    preset("tiny"),
    unet=UNetSize((32,), (2,), 1, 32),
    vae=VAESize((32, 32, 32, 32), 1, 4, 0.5, False),
    noise=NoiseRange(0.02, 20.0),
    num_frames=5,
    height=32,
    width=48,
)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A checkpoint, its videos by torch, and the repository it was exported to; the checkpoint itself is gone."""

    repository: Path
    checkpoint: ModelEntry
    frames: np.ndarray


def png(seed: int) -> bytes:
    out = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 32), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def frames_of(entry: ModelEntry) -> np.ndarray:
    """The video of one request, without a server."""
    asked = {"num_inference_steps": 3} | ({"prompt": "a red ball"} if "prompt" in entry.task.settings else {})
    pictures = tuple(png(seed) for seed in range(len(entry.task.pictures)))
    return generate(entry, entry.resolve(asked, seed=3), pictures, settings=ON_CPU).frames


def make(folder: Path, task: str, size: Preset, backend: Backend) -> Exported:
    entry = build_random(folder / "checkpoints" / task, size, TASKS[task])
    frames = frames_of(entry)
    export_model(entry, folder / "repository", ExportOptions(backend))
    shutil.rmtree(folder / "checkpoints")
    return Exported(folder / "repository", entry, frames)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make(tmp_path_factory.mktemp("export"), "image-to-video", SPECK, BACKEND)


def test_it_serves_without_the_checkpoint_what_torch_gave(exported: Exported) -> None:
    entry = find(str(exported.repository / "image-to-video"))
    assert entry.exported
    assert (entry.name, entry.num_frames, entry.height, entry.width) == ("image-to-video", (5,), 32, 48)
    assert entry.version != exported.checkpoint.version
    assert not list(entry.path.rglob("*.safetensors"))
    assert psnr(frames_of(entry), exported.frames) >= 50.0


def test_the_engine_serves_three_at_once_from_the_repository(exported: Exported) -> None:
    entry = find(str(exported.repository / "image-to-video"))

    async def serve() -> list[Completed]:
        engine = InProcessEngine([entry], ON_CPU)
        await engine.start()

        async def one(seed: int) -> Completed:
            params = entry.resolve({"num_inference_steps": 2}, seed=seed)
            request = EngineRequest(f"job-{seed}", entry.name, params, (png(0),), "mp4")
            return [event async for event in engine.submit(request)][-1]  # type: ignore[return-value]

        try:
            return list(await asyncio.gather(*map(one, range(3))))
        finally:
            await engine.stop()

    ended = asyncio.run(serve())
    assert all(isinstance(event, Completed) for event in ended)
    assert ended[0].manifest["backend"] == "onnxruntime"


def test_the_manifest_says_what_it_was_made_from_and_how_near_it_is(exported: Exported) -> None:
    folder = find(str(exported.repository / "image-to-video")).path
    manifest = read_manifest(folder)
    assert manifest.checkpoint_version == exported.checkpoint.version
    assert {one["what"] for one in manifest.parity} == {"unet", "vae_encoder", "vae_decoder", "image_encoder", "video"}
    assert all(one["difference"] >= 50 for one in manifest.parity if one["what"] == "video")
    assert sum(one["what"] == "video" for one in manifest.parity) == 4  # one alone and three together
    graphs = {name for name in manifest.files if name.endswith(".onnx")}
    assert graphs == {f"onnx/{name}.onnx" for name in ("unet", "vae_encoder", "vae_decoder", "image_encoder")}
    if HAS_RTX:
        assert manifest.built is not None
        assert manifest.built.builder == "tensorrt_rtx"
        engines = {name for name in manifest.files if name.endswith(".engine")}
        assert len(engines) == len(graphs)


def test_another_size_is_served_where_the_graphs_leave_it_free(exported: Exported) -> None:
    entry = find(str(exported.repository / "image-to-video"))
    params = entry.resolve({"num_inference_steps": 1, "height": 40, "width": 32}, seed=0)
    assert generate(entry, params, (png(0),), settings=ON_CPU).frames.shape == (5, 40, 32, 3)


def test_a_frame_count_the_export_does_not_have_is_refused(exported: Exported) -> None:
    entry = find(str(exported.repository / "image-to-video"))
    with pytest.raises(InvalidRequest, match="makes 5 frames, not 6"):
        entry.resolve({"num_frames": 6}, seed=0)


def test_weights_are_not_asked_of_an_export(exported: Exported) -> None:
    entry = find(str(exported.repository / "image-to-video"))
    with pytest.raises(InvalidRequest, match="no weights for torch"):
        backend_for(entry, "torch")
    with pytest.raises(CheckpointError, match="is an export itself"):
        export_model(entry, exported.repository, ExportOptions("onnx"))


def test_a_graph_that_was_changed_is_not_loaded(exported: Exported, tmp_path: Path) -> None:
    copy = shutil.copytree(exported.repository / "image-to-video", tmp_path / "copy")
    (file,) = copy.glob("*/onnx/vae_encoder.onnx")
    model = onnx.load(file)
    model.doc_string = "changed"
    onnx.save(model, file)
    with pytest.raises(CheckpointError, match="not the file that was exported"):
        load(find(str(copy)))


@pytest.mark.slow
def test_a_checkpoint_samples_and_decodes_in_openvino_as_in_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))
    entry = build_random(tmp_path / "checkpoint", SPECK, TASKS["image-to-video"])
    frames = frames_of(entry)
    model = load_model(entry, dataclasses.replace(ON_CPU, backend="openvino", threads=2))
    assert sum(weight.numel() for weight in model.checkpoint.unet.parameters()) == 0  # the graph holds them
    params = entry.resolve({"num_inference_steps": 3}, seed=3)
    assert psnr(generate(model, params, (png(0),)).frames, frames) >= 50.0
    assert cached_graphs(entry, torch.float32) == ("unet",)  # torch decodes on a CPU

    vae = load(entry).vae
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = vae.decode(latents, num_frames=2).sample
        replace_decoder(vae, OpenVinoGraph(decoder_file(load(entry)), "CPU", CpuThreads(2)))
        decoded = vae.decode(latents, num_frames=2).sample
    assert sum(weight.numel() for weight in vae.decoder.parameters()) == 0
    assert relative_difference(decoded, expected) < 1e-4
    assert cached_graphs(entry, torch.float32) == ("unet", "vae_decoder")


@pytest.mark.full
def test_an_export_for_openvino_is_served_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))
    made = make(tmp_path, "image-to-video", SPECK, "openvino")
    entry = find(str(made.repository / "image-to-video"))
    assert backend_for(entry, "auto") == "openvino"
    assert psnr(frames_of(entry), made.frames) >= 50.0


@pytest.mark.full
def test_a_gate_that_fails_installs_nothing(tmp_path: Path) -> None:
    entry = build_random(tmp_path / "checkpoint", SPECK, TASKS["image-to-video"])
    options = ExportOptions("onnx", tolerance=Tolerance(0.0, 999.0))
    with pytest.raises(ParityError, match="Nothing was installed"):
        export_model(entry, tmp_path / "repository", options)
    assert list((tmp_path / "repository").rglob("*")) == []


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_is_exported_and_served(name: str, tmp_path: Path) -> None:
    size = dataclasses.replace(preset("tiny"), noise=NoiseRange(0.02, 20.0), height=32, width=48)
    made = make(tmp_path, name, size, BACKEND)
    entry = find(str(made.repository / name))
    assert psnr(frames_of(entry), made.frames) >= 50.0
    assert installed(made.repository / name).versions == (1,)
