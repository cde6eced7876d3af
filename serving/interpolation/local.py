"""A generation with later stages in this thread, without a server: what `stillmotion generate --seconds 8` runs.

The same stages, seeds and settings as behind a server; so the same request gives the same video.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace

import numpy as np
from PIL import Image

from model.catalog import ModelEntry
from model.interpolation import Frames, InterpolationStage
from model.media.image import to_png
from model.media.upscale import Upscalers
from model.params import OutputFormat, Params
from model.stages import ExtendStage, Stages, UpscaleStage, continue_clip
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.local import Generated, generate
from serving.engine.protocol import EngineEvent, PhaseStarted, Stepped
from serving.engine.settings import EngineSettings
from serving.interpolation.assemble import extended, interpolated, upscaled, video_of
from serving.interpolation.pair_store import Rendered

_Report = Callable[[EngineEvent], None]


def generate_stages(
    entry: ModelEntry,
    params: Params,
    images: tuple[bytes, ...],
    stages: Stages,
    models: Mapping[str, ModelEntry],
    *,
    output_format: OutputFormat = "mp4",
    progress: _Report | None = None,
    settings: Mapping[str, EngineSettings] | None = None,
    upscalers: Upscalers | None = None,
) -> Generated:
    """Make one video in several stages.

    Args:
        entry: the checkpoint of the clip.
        images: as `serving.engine.local.generate` takes them.
        stages: what follows the clip, resolved for `params`.
        models: the checkpoints of the stages `extend` and `interpolate`, by stage; each is loaded for its stage alone.
        progress: called with phases, steps and decoded frames; in a later stage's phase, with the steps of all of it.
        settings: of the engine, by stage (`generate` for the clip's); the default ones where absent.
        upscalers: what can make frames larger; Lanczos alone if left out.

    Returns:
        The whole video; its latents are the clip's.

    Raises:
        CheckpointError, UnreadableImage, ImageTooLarge, GenerationFailed: as `generate`.
        InvalidRequest: the upscaler that is named is not there.
    """
    report, chosen = progress or (lambda _: None), settings or {}
    first = generate(
        entry,
        params,
        images,
        output_format=output_format,
        raw=True,
        progress=report,
        settings=chosen.get("generate", EngineSettings()),
    )
    clip, timings = _rendered(first), dict(first.completed.timings)
    if stages.extend is not None:
        began = _begin(report, "extend")
        model = load_model(models["extend"], chosen.get("extend", EngineSettings()))
        clip = _extend(model, stages.extend, clip, output_format, report)
        timings["extend"] = time.monotonic() - began
    if stages.interpolate is not None:
        began = _begin(report, "interpolate")
        model = load_model(models["interpolate"], chosen.get("interpolate", EngineSettings()))
        clip = _interpolate(model, stages.interpolate, clip, output_format, report)
        timings["interpolate"] = time.monotonic() - began
    if stages.upscale is not None:
        began = _begin(report, "upscale")
        clip = _upscale(upscalers or Upscalers(), stages.upscale, clip, report)
        timings["upscale"] = time.monotonic() - began
    result = video_of(clip, stages.size(params).fps, output_format)
    return Generated(replace(result, timings=timings), clip.frames, first.latents)


def generate_chained(
    entries: tuple[ModelEntry, ModelEntry],
    params: Params,
    images: tuple[bytes, ...],
    chain: InterpolationStage,
    *,
    output_format: OutputFormat = "mp4",
    progress: _Report | None = None,
    settings: tuple[EngineSettings, EngineSettings] | None = None,
) -> Generated:
    """Make a clip and interpolate it; arguments as in `generate_stages`, those of both stages side by side."""
    each = {} if settings is None else {"generate": settings[0], "interpolate": settings[1]}
    return generate_stages(
        entries[0],
        params,
        images,
        Stages(interpolate=chain),
        {"interpolate": entries[1]},
        output_format=output_format,
        progress=progress,
        settings=each,
    )


def _begin(report: _Report, phase: str) -> float:
    report(PhaseStarted(phase))
    return time.monotonic()


def _extend(
    model: LoadedModel, stage: ExtendStage, clip: Rendered, output_format: OutputFormat, report: _Report
) -> Rendered:
    windows: list[Rendered] = []
    last = clip.frames[-1]
    stepped = _Steps(report, stage.params.num_inference_steps, stage.windows)
    for index in range(stage.windows):
        made = generate(
            model, stage.params, (_png(last),), output_format=output_format, raw=True, progress=stepped.of(index)
        )
        frames, drift = continue_clip(clip.frames[0], last, made.frames)
        window = _rendered(made)
        manifest = {**window.manifest, "drift": asdict(drift)}
        windows.append(replace(window, frames=frames[: stage.window_frames(index)], manifest=manifest))
        last = windows[-1].frames[-1]
    return extended(clip, windows, stage)


def _interpolate(
    model: LoadedModel, stage: InterpolationStage, clip: Rendered, output_format: OutputFormat, report: _Report
) -> Rendered:
    count = len(clip.frames) - 1
    stepped = _Steps(report, stage.params.num_inference_steps, count)
    between = []
    for index in range(count):
        ends = tuple(_png(frame) for frame in clip.frames[index : index + 2])
        made = generate(
            model, stage.pair(index), ends, output_format=output_format, raw=True, progress=stepped.of(index)
        )
        between.append(_rendered(made).inner())
    return interpolated(clip, between, stage)


def _upscale(upscalers: Upscalers, stage: UpscaleStage, clip: Rendered, report: _Report) -> Rendered:
    upscaler = upscalers.find(stage.network)
    larger = []
    for index, frame in enumerate(clip.frames):
        larger.append(upscaler.larger(frame, stage.factor))
        report(Stepped(index + 1, len(clip.frames), None))
    return upscaled(clip, np.stack(larger), replace(stage, version=upscaler.version))


class _Steps:
    """Steps of a stage's requests, reported as those of the whole stage."""

    def __init__(self, report: _Report, each: int, requests: int) -> None:
        self._report, self._each, self._total = report, each, each * requests

    def of(self, index: int) -> _Report:
        """What a request reports to; `index` requests came before it."""

        def stepped(event: EngineEvent) -> None:
            if isinstance(event, Stepped):
                self._report(replace(event, step=index * self._each + event.step, total=self._total))

        return stepped


def _rendered(generated: Generated) -> Rendered:
    done = generated.completed
    return Rendered(generated.frames, done.degraded, done.manifest, done.timings)


def _png(frame: Frames) -> bytes:
    return to_png(Image.fromarray(frame))
