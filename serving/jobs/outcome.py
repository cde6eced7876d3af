"""How a job can end, and how a result becomes files."""

from __future__ import annotations

import json
from typing import Final

from stillmotion.types import JobOutput, OutputFormat, Variant

from model.errors import StorageFull
from serving.engine.protocol import CancelledAt, Completed, EngineRequest, Failed
from serving.jobs.artifacts import Artifacts
from serving.jobs.records import StoredFile, Success, job_urls

Outcome = Success | Failed | CancelledAt

MEDIA_TYPES: Final[dict[OutputFormat, str]] = {"mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif"}


def store_result(artifacts: Artifacts, request: EngineRequest, result: Completed, attempt: int) -> Success:
    """Store a result's files. Either all are stored or none.

    Args:
        attempt: goes into the names from the second on, so that a server which lost the job in the meantime
            overwrites no file of the one that has it.

    Raises:
        StorageFull: no room.
    """
    media_type = MEDIA_TYPES[request.output_format]
    manifest = json.dumps(result.manifest, indent=2, sort_keys=True).encode()
    mark = "" if attempt == 1 else f".{attempt}"
    contents: dict[Variant, tuple[str, bytes, str]] = {
        "video": (f"video{mark}.{request.output_format}", result.video, media_type),
        "thumbnail": (f"thumbnail{mark}.jpg", result.thumbnail, "image/jpeg"),
        "frames": (f"frames{mark}.png", result.frames, "image/png"),
        "manifest": (f"manifest{mark}.json", manifest, "application/json"),
    }
    files: dict[Variant, StoredFile] = {}
    try:
        for variant, (name, data, kind) in contents.items():
            files[variant] = artifacts.write(request.job_id, name, data, kind)
    except (OSError, StorageFull):
        artifacts.discard(request.job_id, *(name for name, _, _ in contents.values()))
        raise
    output = JobOutput(
        url=job_urls(request.job_id).content,
        sha256=result.video_sha256,
        frames_sha256=result.frames_sha256,
        bytes=len(result.video),
        width=result.width,
        height=result.height,
        num_frames=result.num_frames,
        fps=result.fps,
        degraded=result.degraded,
    )
    return Success(output, files, result.timings)
