"""Frames become the result of a job: container, hashes, thumbnail and contact sheet. Imports no torch.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Executor, Future
from typing import Literal

from model.media.video import Frames, VideoEncoder, contact_sheet_png, encode_video, frames_sha256, thumbnail_jpeg
from model.params import OutputFormat
from serving.engine.protocol import Completed


class AheadEncoder:
    """Encodes a clip's first frames while later ones are decoded: on a pool's threads, in order, one at a time.

    Args:
        pool: starts work in the order it was submitted.
        num_frames: of the whole clip.
    """

    def __init__(self, pool: Executor, fps: int, output_format: Literal["mp4", "webm"], num_frames: int) -> None:
        self._pool = pool
        self._encoder = VideoEncoder(fps, output_format, num_frames)
        self._last: Future[None] | None = None

    def add(self, frames: Frames) -> None:
        """Encode the next frames, on the pool."""
        self._last = self._pool.submit(self._encode, self._last, frames)

    def finish(self) -> bytes:
        """The complete file; blocks until the last frame is encoded, and raises what encoding raised."""
        if self._last is not None:
            self._last.result()
        return self._encoder.finish()

    def _encode(self, previous: Future[None] | None, frames: Frames) -> None:
        if previous is not None:
            previous.result()  # it was submitted before, so it runs or is done
        self._encoder.add(frames)


def encode_ahead(
    pool: Executor, fps: int, output_format: OutputFormat | None, num_frames: int, *, final: bool
) -> AheadEncoder | None:
    """An encoder for frames as they are decoded; None where they must all be there first.

    Args:
        output_format: a gif has one palette for the whole clip; raw frames (None) are not encoded.
        final: whether decoded frames are those of the video, and not changed once all are there.
    """
    if output_format is None or output_format == "gif" or not final:
        return None
    return AheadEncoder(pool, fps, output_format, num_frames)


def build_result(
    frames: Frames,
    *,
    fps: int,
    output_format: OutputFormat | None,
    degraded: bool,
    manifest: dict[str, object],
    encoder: AheadEncoder | None = None,
) -> Completed:
    """The result of a job; the caller, who knows them, adds the timings.

    Args:
        frames: [T, H, W, 3].
        output_format: None for the frames as they are, for another stage: RGB bytes, and no pictures beside them.
        encoder: what these frames were already given to, in this format.
    """
    raw = output_format is None
    if output_format is None:
        video = frames.tobytes()
    else:
        video = encode_video(frames, fps, output_format) if encoder is None else encoder.finish()
    count, height, width, _ = frames.shape
    return Completed(
        video=video,
        video_sha256=hashlib.sha256(video).hexdigest(),
        frames_sha256=frames_sha256(frames),
        thumbnail=b"" if raw else thumbnail_jpeg(frames[0]),
        frames=b"" if raw else contact_sheet_png(frames),
        width=width,
        height=height,
        num_frames=count,
        fps=fps,
        degraded=degraded,
        manifest=manifest,
    )
