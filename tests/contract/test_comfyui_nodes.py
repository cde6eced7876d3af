"""The ComfyUI nodes: loaded as ComfyUI loads a folder, held to its node protocol, and run against a service.

ComfyUI is no package that can be installed beside: its progress bar and its interrupt are stood in for by the two
modules that the nodes import.
"""

from __future__ import annotations

import importlib.util
import inspect
import io
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.media.video import encode_video
from serving.engine.protocol import Completed, EngineRequest
from tests.conftest import ROOT
from tests.contract.support import entry, listening_in_a_thread
from tests.support.fakes import ScriptedEngine, model_entry

LEVELS = (40, 90, 140, 190, 240)
KINDS = {"STRING", "INT", "FLOAT", "BOOLEAN", "IMAGE", "STILLMOTION_JOB"}


class InterruptProcessingException(Exception):
    """ComfyUI's, by its name."""


@dataclass
class Comfy:
    """What the nodes did to ComfyUI's progress bar; `interrupted`: somebody pressed its button."""

    updates: list[tuple[int, int, Any]] = field(default_factory=list)
    interrupted: bool = False


class FilmEngine(ScriptedEngine):
    """The scripted engine, whose video and previews can be decoded: five frames of one level each."""

    @staticmethod
    def preview(step: int) -> bytes:
        sink = io.BytesIO()
        Image.new("RGB", (16, 8), (10 * step, 0, 0)).save(sink, "JPEG")
        return sink.getvalue()

    @staticmethod
    def result(request: EngineRequest) -> Completed:
        frames = np.stack([np.full((32, 48, 3), level, np.uint8) for level in LEVELS])
        return replace(ScriptedEngine.result(request), video=encode_video(frames, 8, "mp4"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = [replace(entry(), previews=True), model_entry("text-to-video"), model_entry("frame-interpolation")]
    with listening_in_a_thread(tmp_path_factory.mktemp("comfyui"), FilmEngine(), models) as address:
        yield address


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> Comfy:
    """ComfyUI's two modules."""
    state = Comfy()

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
            state.updates.append((value, total or self.total, preview))

    def check() -> None:
        if state.interrupted:
            raise InterruptProcessingException

    package, utils, management = (types.ModuleType(f"comfy{end}") for end in ("", ".utils", ".model_management"))
    utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    management.InterruptProcessingException = InterruptProcessingException  # type: ignore[attr-defined]
    management.throw_exception_if_processing_interrupted = check  # type: ignore[attr-defined]
    for module in (package, utils, management):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return state


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, Any]]:
    """The mappings of the folder, imported under a name of its own as ComfyUI does."""
    folder = ROOT / "extras" / "comfyui"
    name = "custom_nodes_stillmotion"
    start, inside = folder / "__init__.py", [str(folder)]
    spec = importlib.util.spec_from_file_location(name, start, submodule_search_locations=inside)
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    assert set(package.NODE_DISPLAY_NAME_MAPPINGS) == set(package.NODE_CLASS_MAPPINGS)
    yield package.NODE_CLASS_MAPPINGS
    for module in [one for one in sys.modules if one.startswith(name)]:
        del sys.modules[module]


def run(nodes: dict[str, Any], name: str, **inputs: Any) -> tuple[Any, ...]:
    """As ComfyUI's executor: an instance, its FUNCTION called with the inputs by name."""
    kind = nodes[name]
    outputs: tuple[Any, ...] = getattr(kind(), kind.FUNCTION)(**inputs)
    assert isinstance(outputs, tuple) and len(outputs) == len(kind.RETURN_TYPES)
    return outputs


def settings(address: str, **changes: Any) -> dict[str, Any]:
    return {"server": address, "seed": 3, "motion_bucket_id": 100, "steps": 2, "fps": 0, **changes}


def test_the_protocol(nodes: dict[str, Any]) -> None:
    for name, kind in nodes.items():
        described = kind.INPUT_TYPES()
        assert "required" in described and set(described) <= {"required", "optional", "hidden"}, name
        inputs = {**described["required"], **described.get("optional", {})}
        for value in inputs.values():
            assert isinstance(value, tuple) and value[0] in KINDS, name
            assert len(value) == 1 or isinstance(value[1], dict), name
        assert set(kind.RETURN_TYPES) <= KINDS and len(kind.RETURN_NAMES) == len(kind.RETURN_TYPES)
        assert isinstance(kind.CATEGORY, str)
        accepted = inspect.signature(getattr(kind, kind.FUNCTION)).parameters
        assert set(accepted) == {"self", *inputs}, name
        optional = {parameter for parameter in accepted if accepted[parameter].default is not inspect.Parameter.empty}
        assert optional == set(described.get("optional", {})), "what may be left unconnected has a default"


def test_a_picture_becomes_frames_with_progress_and_previews(nodes: dict[str, Any], address: str, comfy: Comfy) -> None:
    image = torch.rand(1, 64, 96, 3)
    job, job_id = run(nodes, "StillmotionSubmit", **settings(address, image=image))
    job, status = run(nodes, "StillmotionFollow", job=job)
    assert (status, job.job_id) == ("completed", job_id)
    values = [value for value, _, _ in comfy.updates]
    assert values == sorted(values) and values[-1] == 100
    previews = [preview for _, _, preview in comfy.updates if preview]
    assert previews and all(kind == "JPEG" and picture.size == (16, 8) for kind, picture, _ in previews)
    frames, fps, manifest = run(nodes, "StillmotionLoadVideo", job=job)
    assert frames.shape == (5, 32, 48, 3) and frames.dtype == torch.float32 and fps == 8
    assert torch.allclose(frames.mean(dim=(1, 2, 3)) * 255, torch.tensor(LEVELS, dtype=torch.float32), atol=4)
    assert '"seed": 3' in manifest and "pictures" not in manifest


def test_a_prompt_and_two_pictures_choose_the_task(nodes: dict[str, Any], address: str, comfy: Comfy) -> None:
    from stillmotion import Client

    image = torch.rand(1, 64, 96, 3)
    prompt = run(nodes, "StillmotionSubmit", **settings(address, prompt="a hill", previews=False))[1]
    between = run(nodes, "StillmotionSubmit", **settings(address, image=image, last_image=image, previews=False))[1]
    with Client(address) as client:
        assert [client.get(one).task for one in (prompt, between)] == ["text-to-video", "frame-interpolation"]
    with pytest.raises(ValueError, match="image"):
        run(nodes, "StillmotionSubmit", **settings(address))


def test_an_interrupted_run_cancels_the_job(nodes: dict[str, Any], address: str, comfy: Comfy) -> None:
    from stillmotion import Client

    comfy.interrupted = True
    job, job_id = run(nodes, "StillmotionSubmit", **settings(address, image=torch.rand(1, 64, 96, 3), steps=200))
    with pytest.raises(InterruptProcessingException):
        run(nodes, "StillmotionFollow", job=job)
    with Client(address) as client:
        assert client.get(job_id).status in {"cancelled", "in_progress", "completed"}


def test_the_installed_sdk_is_the_one_wanted() -> None:
    from stillmotion import __version__

    assert (ROOT / "extras" / "comfyui" / "requirements.txt").read_text().strip() == f"stillmotion=={__version__}"


def test_no_key_goes_into_a_workflow(nodes: dict[str, Any]) -> None:
    for kind in nodes.values():
        described = kind.INPUT_TYPES()
        assert not [name for part in described.values() for name in part if "key" in name]


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in Path(ROOT / "extras").rglob("*") if path.is_file()) < 100_000
