"""Assembly of a chained job: what a stage's requests made becomes the next clip, the last clip the video. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.interpolation import FACTOR, Frames, InterpolationStage, interleave, pair_seed
from model.params import OutputFormat
from model.stages import ExtendStage, UpscaleStage
from serving.engine.protocol import Completed
from serving.interpolation.pair_store import OF_ONE_VIDEO, Rendered


def interpolated(clip: Rendered, between: Sequence[Rendered], stage: InterpolationStage) -> Rendered:
    """The clip with the frames between; its manifest says how under `interpolate`.

    Args:
        between: what was made between each two frames of `clip`, in order.
    """
    degraded = clip.degraded or any(pair.degraded for pair in between)
    manifest = _manifest(clip.manifest, stage, [pair.manifest for pair in between])
    frames = interleave(clip.frames, [pair.frames for pair in between])
    return Rendered(frames, degraded, manifest, clip.timings)


def extended(clip: Rendered, windows: Sequence[Rendered], stage: ExtendStage) -> Rendered:
    """The clip with the windows behind it; its manifest says how under `extend`.

    Args:
        windows: what each adds, in order; the manifests name the drift.
    """
    manifests = [window.manifest for window in windows]
    how = {name: value for name, value in manifests[0].items() if name not in OF_ONE_VIDEO}
    names = ("model_version", "decode_chunks", "degraded", "drift")
    made = [{name: manifest[name] for name in names} for manifest in manifests]
    stage_fields = {**how, **stage.as_dict(), "model_version": made[0]["model_version"], "windows": made}
    degraded = clip.degraded or any(window.degraded for window in windows)
    manifest = {**clip.manifest, "degraded": degraded, "extend": stage_fields}
    return Rendered(np.concatenate([clip.frames, *(one.frames for one in windows)]), degraded, manifest, clip.timings)


def upscaled(clip: Rendered, frames: Frames, stage: UpscaleStage) -> Rendered:
    """The clip with larger frames; its manifest says by what under `upscale`."""
    return Rendered(frames, clip.degraded, {**clip.manifest, "upscale": stage.as_dict()}, clip.timings)


def video_of(clip: Rendered, fps: int, output_format: OutputFormat) -> Completed:
    """The result of a chained job; the caller, who knows them, adds the timings.

    Args:
        fps: at which the clip plays (a gif at 50 at most: model.media.video).
    """
    from serving.engine.mux import build_result  # codecs, for which a gateway has no use but here

    return build_result(
        clip.frames, fps=fps, output_format=output_format, degraded=clip.degraded, manifest=dict(clip.manifest)
    )


def assemble_result(
    first: Rendered, between: Sequence[Rendered], chain: InterpolationStage, fps: int, output_format: OutputFormat
) -> Completed:
    """The video of a clip that is interpolated and nothing else; `fps` is of `first`."""
    return video_of(interpolated(first, between, chain), FACTOR * fps, output_format)


def _manifest(first: dict[str, Any], chain: InterpolationStage, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """The clip's manifest with, under `interpolate`, all that this stage's pixels depend on.

    Args:
        first: the clip's manifest.
        pairs: each pair's, in order.
    """
    pair_fields = [
        {
            "seed": pair_seed(chain.params.seed, index),
            "model_version": manifest["model_version"],
            "decode_chunks": manifest["decode_chunks"],
        }
        for index, manifest in enumerate(pairs)
    ]
    how = {name: value for name, value in pairs[0].items() if name not in OF_ONE_VIDEO}
    second = {**how, **chain.as_dict(), "model_version": pair_fields[0]["model_version"], "pairs": pair_fields}
    degraded = any(manifest["degraded"] for manifest in (first, *pairs))
    return {**first, "degraded": degraded, "interpolate": second}
