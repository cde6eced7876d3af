"""A video's manifest: completed, put into the mp4 in a box of its own, and read from there; signed where asked for.

An mp4 is a row of boxes (ISO/IEC 14496-12, 4.2): a size, a name, a body. Players pass over a `uuid` box that they do
not know (11.1), so the manifest is there without touching a byte of what plays, and equal inputs still give equal
files: nothing in it tells the time. Imports no torch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol
from uuid import UUID

from model.errors import InvalidRequest
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
        "pictures": [encode_picture(to_png(picture)) for picture in pictures],
    }
    video = result.video
    if output_format == "mp4":
        video = attach_manifest(video, manifest)
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


BOX: Final = UUID("5f3a0c58-6a0b-4d0e-9a55-2b6a7b1d3c01").bytes
"""The type of our box, drawn once at random."""
_WHOLE_HEAD: Final = 8 + 16


def attach_manifest(video: bytes, manifest: Mapping[str, Any]) -> bytes:
    """An mp4 with the manifest in it; one that was in it before is replaced.

    Raises:
        InvalidRequest: not an mp4, or cut short.
    """
    others = b"".join(video[start:stop] for name, start, stop in _boxes(video) if not _is_ours(video, name, start))
    body = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    size = _WHOLE_HEAD + len(body)
    return others + size.to_bytes(4, "big") + b"uuid" + BOX + body


def read_manifest(video: bytes) -> dict[str, Any] | None:
    """The manifest in an mp4, or None if it has none.

    Raises:
        InvalidRequest: not an mp4, or cut short, or what is in our box is no manifest.
    """
    for name, start, stop in _boxes(video):
        if _is_ours(video, name, start):
            return parse_manifest(video[start + _WHOLE_HEAD : stop])
    return None


def parse_manifest(text: bytes) -> dict[str, Any]:
    """A manifest from its JSON. Raises InvalidRequest."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"the manifest is no JSON: {error}", code="bad_manifest") from error
    if not isinstance(found, dict):
        raise InvalidRequest("the manifest is no JSON object", code="bad_manifest")
    return found


def manifest_pictures(manifest: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The pictures a video was made from, as PNG, in the order of its task's spec.

    Raises:
        InvalidRequest: the manifest holds none, or they cannot be read.
    """
    held = manifest.get("pictures")
    if not isinstance(held, list) or not all(isinstance(item, str) for item in held):
        raise InvalidRequest("the manifest does not hold the pictures that it was made from", code="bad_manifest")
    try:
        return tuple(base64.b64decode(item, validate=True) for item in held)
    except binascii.Error as error:
        raise InvalidRequest(f"a picture in the manifest is no base64: {error}", code="bad_manifest") from error


def encode_picture(picture: bytes) -> str:
    """A PNG as the manifest holds it."""
    return base64.b64encode(picture).decode("ascii")


def _boxes(video: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each outermost box."""
    if video[4:8] != b"ftyp":
        raise InvalidRequest("not an mp4: only those carry a manifest", code="unreadable_video")
    at = 0
    while at < len(video):
        size, name = int.from_bytes(video[at : at + 4], "big"), video[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(video[at + 8 : at + 16], "big")
        elif size == 0:  # to the end of the file
            size = len(video) - at
        if size < 8 or at + size > len(video):
            raise InvalidRequest("the mp4 is cut short", code="unreadable_video")
        yield name, at, at + size
        at += size


def _is_ours(video: bytes, name: bytes, start: int) -> bool:
    return name == b"uuid" and video[start + 8 : start + _WHOLE_HEAD] == BOX
