"""Every request this SDK makes, as a value: built here, sent elsewhere."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from stillmotion._image import ImageSource, LocalImage, PicturePart, read_image
from stillmotion._settings import form_fields, json_fields
from stillmotion.types import Batch, Job, JobStatus, Upload, Variant


@dataclass(frozen=True, slots=True)
class Call:
    """One request; sent again as it is on a retry, its idempotency key included.

    Args:
        patience_s: seconds that the answer may take at least, where the client's timeout is shorter.
    """

    method: str
    path: str
    params: dict[str, str] = field(default_factory=dict[str, str])
    headers: dict[str, str] = field(default_factory=dict[str, str])
    form: dict[str, str] | None = None
    pictures: dict[str, PicturePart] = field(default_factory=dict[str, PicturePart])
    json: dict[str, Any] | None = None
    content: bytes | None = None
    patience_s: float | None = None

    @property
    def files(self) -> dict[str, tuple[str, bytes, str]] | None:
        """The multipart parts, as httpx2 takes them."""
        return {name: (it.name, it.data, it.content_type) for name, it in self.pictures.items()} or None


def image_to_video(image: ImageSource, settings: Mapping[str, Any], idempotency_key: str | None) -> Call:
    """Submit a still."""
    return _with_pictures("image-to-video", {"image": image}, settings, idempotency_key)


def text_to_video(prompt: str, settings: Mapping[str, Any], idempotency_key: str | None) -> Call:
    """Submit a prompt: as JSON, since there is no file."""
    body = {"prompt": prompt, **json_fields(settings)}
    return Call("POST", "generate/text-to-video", headers=idempotent(idempotency_key), json=body)


def frame_interpolation(
    image: ImageSource, last_image: ImageSource, settings: Mapping[str, Any], idempotency_key: str | None
) -> Call:
    """Submit the two ends of a clip."""
    pictures = {"image": image, "last_image": last_image}
    return _with_pictures("frame-interpolation", pictures, settings, idempotency_key)


def multi_view(image: ImageSource, settings: Mapping[str, Any], idempotency_key: str | None) -> Call:
    """Submit a still of an object."""
    return _with_pictures("multi-view", {"image": image}, settings, idempotency_key)


def _with_pictures(
    task: str, pictures: Mapping[str, ImageSource], settings: Mapping[str, Any], idempotency_key: str | None
) -> Call:
    uploads = {name: picture.id for name, picture in pictures.items() if isinstance(picture, Upload)}
    parts = {name: read_image(picture) for name, picture in pictures.items() if not isinstance(picture, Upload)}
    headers = idempotent(idempotency_key)
    if not parts:  # httpx2 sends a form without files URL-encoded, which the service does not read here
        body = {name: {"upload": upload} for name, upload in uploads.items()} | json_fields(settings)
        return Call("POST", f"generate/{task}", headers=headers, json=body)
    return Call("POST", f"generate/{task}", headers=headers, form=form_fields(settings) | uploads, pictures=parts)


def upload(image: LocalImage) -> Call:
    """Send a picture to be named later."""
    part = read_image(image)
    return Call("POST", "uploads", headers={"Content-Type": part.content_type}, content=part.data)


def extend(job_id: str, settings: Mapping[str, Any], idempotency_key: str | None) -> Call:
    """Submit a job's clip to be made longer."""
    path = f"{_job(job_id)}/extend"
    return Call("POST", path, headers=idempotent(idempotency_key), json=json_fields(settings))


def get_job(job_id: str) -> Call:
    """A job's state."""
    return Call("GET", _job(job_id))


def list_jobs(status: JobStatus | None, order: str, limit: int, after: str | None) -> Call:
    """A page of jobs."""
    query = {"status": status, "order": order, "limit": str(limit), "after": after}
    return Call("GET", "jobs", params={name: value for name, value in query.items() if value is not None})


def cancel_job(job_id: str) -> Call:
    """Ask a job to stop."""
    return Call("POST", f"{_job(job_id)}/cancel", headers=idempotent(None))


def delete_job(job_id: str) -> Call:
    """Remove a job and its files."""
    return Call("DELETE", _job(job_id))


def job_events(job_id: str, last_id: int) -> Call:
    """A job's events, from the one after `last_id`."""
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if last_id:
        headers["Last-Event-ID"] = str(last_id)
    return Call("GET", f"{_job(job_id)}/events", headers=headers)


def job_content(job_id: str, variant: Variant, start: int = 0) -> Call:
    """A job's result, from byte `start`. Unpacked on no way: ranges and checksums are of the file's own bytes."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    return Call("GET", f"{_job(job_id)}/content", params={"variant": variant}, headers=headers)


def list_models() -> Call:
    """What can be served."""
    return Call("GET", "models")


def id_of(it: Job | Batch | str) -> str:
    """The id of what may be given by its id alone."""
    return it if isinstance(it, str) else it.id


def segment(identity: str, kind: str) -> str:
    """An id as a part of a path. Raises ValueError for what cannot be one."""
    if not identity or identity in (".", ".."):
        raise ValueError(f"{identity!r} is no {kind} id")
    return quote(identity, safe="")


def _job(job_id: str) -> str:
    return f"jobs/{segment(job_id, 'job')}"


def idempotent(key: str | None) -> dict[str, str]:
    """The header that makes a repeat harmless; a fresh key if there is none."""
    return {"Idempotency-Key": key or uuid.uuid4().hex}
