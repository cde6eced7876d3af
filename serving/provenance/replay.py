"""Replay: a video made again from its manifest, and whether the frames are identical."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from model.backends.registry import backend_for, check_lora
from model.catalog import ModelEntry
from model.errors import InvalidRequest
from model.media.upscale import Upscalers
from model.media.video import Frames, decode_video
from model.params import OutputFormat, Params
from model.stages import NO_STAGES, Stages
from model.tasks import TASKS
from serving.engine.local import Generated, generate
from serving.engine.protocol import EngineEvent
from serving.engine.settings import EngineSettings
from serving.interpolation.local import generate_stages
from serving.provenance import video_manifest


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a manifest asks to be made.

    Args:
        settings: of the engine, as far as the pixels depend on them.
        stages, stage_settings: what follows the clip, and the settings of the engine in each stage, by its name.
    """

    task: str
    model: str
    model_version: str
    params: Params
    pictures: tuple[bytes, ...]
    output_format: OutputFormat
    frames_sha256: str
    settings: EngineSettings
    stages: Stages = NO_STAGES
    stage_settings: Mapping[str, EngineSettings] = field(default_factory=dict[str, EngineSettings])

    @property
    def stage_models(self) -> dict[str, tuple[str, str]]:
        """Name and version of each later stage's checkpoint, by the stage's name."""
        stages = {"extend": self.stages.extend, "interpolate": self.stages.interpolate}
        return {name: (stage.model, stage.version) for name, stage in stages.items() if stage is not None}


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of it.

    Args:
        identical: the decoded RGB frames before encoding have the hash that the manifest names.
        psnr_db: of the new mp4's frames against the old one's, where that was at hand; None: equal, or not at hand.
        differences: what is not as the manifest says (software, device), as `name: then -> now`.
    """

    generated: Generated
    identical: bool
    psnr_db: float | None
    differences: tuple[str, ...]


def read_recipe(manifest: Mapping[str, Any]) -> Recipe:
    """What a manifest asks for.

    Raises:
        InvalidRequest: something is missing in it, or out of range.
    """
    try:
        task = str(manifest["task"])
        later = {name: manifest[name] for name in _REQUESTS if name in manifest}
        for name, stage in later.items():
            if len({request["model_version"] for request in stage[_REQUESTS[name]]}) > 1:
                raise InvalidRequest(
                    f"the stage {name} was made by several versions of one checkpoint, while it was replaced; "
                    "such a video cannot be made again",
                    code="other_version",
                )
        return Recipe(
            task=task,
            model=str(manifest["model"]),
            model_version=str(manifest["model_version"]),
            params=TASKS[task].params(**manifest["params"]),
            pictures=video_manifest.manifest_pictures(manifest),
            output_format=manifest["output_format"],
            frames_sha256=str(manifest["output"]["frames_sha256"]),
            settings=EngineSettings.from_manifest(manifest),
            stages=Stages.from_dict(manifest, int(manifest["params"]["seed"])),
            stage_settings={name: EngineSettings.from_manifest(stage) for name, stage in later.items()},
        )
    except (KeyError, TypeError) as error:
        raise InvalidRequest(
            f"the manifest is not whole ({type(error).__name__}: {error}); take the one of a finished job",
            code="bad_manifest",
        ) from error


def replay(
    recipe: Recipe,
    entry: ModelEntry,
    manifest: Mapping[str, Any],
    *,
    models: Mapping[str, ModelEntry] | None = None,
    upscalers: Upscalers | None = None,
    video: bytes | None = None,
    progress: Callable[[EngineEvent], None] | None = None,
) -> Replay:
    """Make the video again.

    Args:
        entry: the checkpoint; its version must be the manifest's.
        models: the checkpoints of later stages, by the stage's name, likewise.
        upscalers: what can make frames larger.
        video: the old mp4, to say how near the new one is where they are not identical.

    Raises:
        InvalidRequest: another version of the checkpoint or of the LoRA, which makes another video.
    """
    _check_version(entry, recipe.model_version, "--model")
    settings = recipe.settings
    check_lora(entry, backend_for(entry, settings.backend), recipe.params.adapter, settings.fp8)
    if not recipe.stages:
        generated = generate(
            entry,
            recipe.params,
            recipe.pictures,
            output_format=recipe.output_format,
            progress=progress,
            settings=settings,
        )
    else:
        entries = dict(models or {})
        for stage, (name, version) in recipe.stage_models.items():
            if stage not in entries:
                raise InvalidRequest(f"the stage {stage} needs {name}", param="model")
            _check_version(entries[stage], version, _OPTIONS[stage])
        _check_upscaler(recipe, upscalers or Upscalers())
        generated = generate_stages(
            entry,
            recipe.params,
            recipe.pictures,
            recipe.stages,
            entries,
            output_format=recipe.output_format,
            progress=progress,
            settings={"generate": settings, **recipe.stage_settings},
            upscalers=upscalers,
        )
    identical = generated.completed.frames_sha256 == recipe.frames_sha256
    psnr = (
        None
        if identical or video is None
        else psnr_db(decode_video(generated.completed.video)[0], decode_video(video)[0])
    )
    return Replay(generated, identical, psnr, _differences(manifest, generated.completed.manifest))


_REQUESTS: Final = {"extend": "windows", "interpolate": "pairs"}
"""Stages that are many requests of an engine, and under which name their manifest lists them."""
_OPTIONS: Final = {"extend": "--extension-model", "interpolate": "--interpolation-model"}
"""Which option of `stillmotion replay` names a stage's checkpoint."""


def _check_upscaler(recipe: Recipe, upscalers: Upscalers) -> None:
    stage = recipe.stages.upscale
    if stage is not None and (found := upscalers.find(stage.network)).version != stage.version:
        raise InvalidRequest(
            f"the upscaler {stage.network} has version {found.version} here, and the video was made by {stage.version}",
            code="other_version",
            param="upscaler",
        )


def _check_version(entry: ModelEntry, version: str, option: str) -> None:
    if entry.version != version:
        raise InvalidRequest(
            f"{entry.name} has version {entry.version} here, and the video was made by {version}: "
            f"name the folder of that one with {option}",
            code="other_version",
            param=option.removeprefix("--").replace("-", "_"),
        )


def psnr_db(ours: Frames, theirs: Frames) -> float | None:
    """Peak signal to noise ratio over all frames; None if they are equal.

    Raises:
        InvalidRequest: they have different sizes.
    """
    if ours.shape != theirs.shape:
        raise InvalidRequest(f"the videos have different sizes: {list(ours.shape)} and {list(theirs.shape)}")
    error = float(np.mean((ours.astype(np.float64) - theirs.astype(np.float64)) ** 2))
    return None if error == 0 else 10 * float(np.log10(255.0**2 / error))


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Software, device and the like: what may explain that two runs are not the same."""

    def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, item in value.items():
            values |= flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
        return values

    before, after = flat(then), flat(now)
    names = [name for name in sorted(before.keys() & after.keys()) if before[name] != after[name]]
    return tuple(f"{name}: {before[name]} -> {after[name]}" for name in names)
