"""Frames become the result of a job: container, hashes, thumbnail and contact sheet. Imports no torch.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import hashlib

from model.media.video import Frames, contact_sheet_png, encode_video, frames_sha256, thumbnail_jpeg
from model.params import OutputFormat
from serving.engine.protocol import Completed


def build_result(
    frames: Frames, *, fps: int, output_format: OutputFormat | None, degraded: bool, manifest: dict[str, object]
) -> Completed:
    """The result of a job; the caller, who knows them, adds the timings.

    Args:
        frames: [T, H, W, 3].
        output_format: None for the frames as they are, for another stage: RGB bytes, and no pictures beside them.
    """
    raw = output_format is None
    video = frames.tobytes() if output_format is None else encode_video(frames, fps, output_format)
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
