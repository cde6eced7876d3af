"""Finished results: the manifest is completed and put into the mp4, which is signed where a key is given."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from model.media import mp4_manifest
from model.media.image import converted_from, fit_picture, open_picture, to_png
from model.params import OutputFormat, Params
from serving.background import run_in_thread
from serving.engine.protocol import Completed, Engine, EngineEvent, EngineRequest
from serving.engine.wrapper import EngineWrapper

FORMAT: Final = "stillmotion-manifest/1"
"""What `format` says in a manifest."""


def public(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest without the name of the machine: it goes to whoever gets the video."""
    engine = manifest.get("engine")
    if not isinstance(engine, dict):
        return dict(manifest)
    return {**manifest, "engine": {name: value for name, value in engine.items() if name != "host"}}


class Signer(Protocol):
    """Signs finished videos."""

    def sign(self, video: bytes, manifest: Mapping[str, Any]) -> bytes:
        """The video with a signature in it."""
        ...


@dataclass(frozen=True, slots=True)
class Finished:
    """A result as it is stored and handed out.

    Args:
        video_sha256: of `video`, whose bytes differ from the engine's by the manifest and the signature.
    """

    video: bytes
    video_sha256: str
    manifest: dict[str, Any]


def finish(
    result: Completed,
    params: Params,
    images: tuple[bytes, ...],
    output_format: OutputFormat,
    *,
    notes: Mapping[str, Any] | None = None,
    signer: Signer | None = None,
) -> Finished:
    """Complete a result's manifest, and put it into the video where the container has room for it (mp4).

    Args:
        images: what the video was made from; the manifest holds each as it was fitted to the clip, so that the video
            can be made again from the manifest alone, and names the colour spaces that were converted to sRGB.
        notes: what else the manifest shall say, such as a safety filter's verdict.
        signer: signs the mp4; other containers are not signed.

    Raises:
        GenerationFailed: signing failed.
    """
    pictures = [fit_picture(open_picture(image), *params.picture_fit) for image in images]
    spaces = [converted_from(picture) for picture in pictures]
    manifest: dict[str, Any] = {
        **public(result.manifest),
        **(notes or {}),
        **({"pictures_converted_from": spaces} if any(spaces) else {}),
        "format": FORMAT,
        "output": {
            "frames_sha256": result.frames_sha256,
            "num_frames": result.num_frames,
            "width": result.width,
            "height": result.height,
            "fps": result.fps,
        },
        "degraded": result.degraded,
        "pictures": [mp4_manifest.encode_picture(to_png(picture)) for picture in pictures],
    }
    video = result.video
    if output_format == "mp4":
        video = mp4_manifest.attach(video, manifest)
        if signer is not None:
            video = signer.sign(video, manifest)
    return Finished(video, hashlib.sha256(video).hexdigest(), manifest)


class FinishingEngine(EngineWrapper):
    """An engine, its results finished.

    Args:
        engine: what makes the videos.
        notes: what else a job's manifest shall say, by the job's id; blocks.
        signer: signs mp4s; None for none.
    """

    def __init__(self, engine: Engine, notes: Callable[[str], Mapping[str, Any]], signer: Signer | None = None) -> None:
        super().__init__(engine)
        self._notes = notes
        self._signer = signer

    async def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """The engine's events, the result among them finished."""
        async with self._events(request) as events:
            async for event in events:
                yield await run_in_thread(self._finished, request, event) if isinstance(event, Completed) else event

    def _finished(self, request: EngineRequest, result: Completed) -> Completed:
        done = finish(
            result,
            request.params,
            request.images,
            request.output_format,
            notes=self._notes(request.job_id),
            signer=self._signer,
        )
        # The engine's own words go on beside, for the job's row; who stores the manifest leaves the machine's name out.
        manifest = done.manifest | {name: result.manifest[name] for name in ("engine",) if name in result.manifest}
        return replace(result, video=done.video, video_sha256=done.video_sha256, manifest=manifest)
