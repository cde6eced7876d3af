"""The files of a completed job, whole or in part: byte ranges and validators of RFC 9110."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse
from stillmotion.types import Variant

from model.errors import StillmotionError
from serving.background import run_in_thread
from serving.gateway.auth import CallerDep
from serving.gateway.errors import Problem
from serving.gateway.middleware import is_head
from serving.gateway.openapi import error_responses
from serving.gateway.services import Services, ServicesDep
from serving.jobs.records import StoredFile
from serving.keys import Caller

_RANGE: Final = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` to `stop`, exclusive."""

    start: int
    stop: int

    def content_range(self, total: int) -> str:
        """As the Content-Range header says it."""
        return f"bytes {self.start}-{self.stop - 1}/{total}"


class Unsatisfiable(Exception):
    """The range lies wholly outside of the file."""


def parse_range(header: str | None, total: int) -> Span | None:
    """The requested range, or None for the whole file.

    No range, several, or one that is not understood: the whole file (RFC 9110 section 14.2 lets a server ignore it).

    Raises:
        Unsatisfiable: nothing of the range exists.
    """
    match = None if header is None else _RANGE.match(header)
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        if int(last) == 0 or total == 0:
            raise Unsatisfiable
        return Span(max(0, total - int(last)), total)
    start = int(first)
    stop = min(int(last) + 1, total) if last else total
    if last and int(last) < start:
        return None
    if start >= total:
        raise Unsatisfiable
    return Span(start, stop)


def matches(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names `etag`, by weak comparison (RFC 9110 section 13.1.2)."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags


router = APIRouter(prefix="/jobs", tags=["jobs"])
REDIRECT: Final = (
    "where the files lie on S3, answer with a URL there, good for some minutes, in place of the file; elsewhere, and "
    "for previews, the file is the answer all the same"
)
_MEDIA: dict[str, Any] = {
    kind: {"schema": {"type": "string", "format": "binary"}}
    for kind in ("video/mp4", "video/webm", "image/gif", "image/jpeg", "image/png", "application/json")
}
CONTENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file", "content": _MEDIA},
    206: {"description": "The range asked for", "content": _MEDIA},
    307: {"description": "With `redirect`, where the files lie on S3: `Location` is the file, for some minutes"},
    304: {"description": "Not modified: If-None-Match names the present ETag"},
    **error_responses(404, 409, 416),
}


class ContentQuery(BaseModel):
    """Which file."""

    model_config = ConfigDict(extra="forbid")

    variant: Variant = Field(
        "video",
        description="video, thumbnail (JPEG), frames (contact sheet, PNG), manifest (JSON); preview (JPEG): the newest",
    )
    redirect: bool = Field(False, description=REDIRECT)


@router.get("/{job_id}/content", response_class=Response, responses=CONTENT_RESPONSES)
async def get_content(
    job_id: str,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    query: Annotated[ContentQuery, Query()],
    range_header: Annotated[str | None, Header(alias="Range", description="one range of bytes")] = None,
    if_range: Annotated[str | None, Header(description="the ETag for which Range is meant")] = None,
    if_none_match: Annotated[str | None, Header(description="ETags the caller has")] = None,
) -> Response:
    """A file of a completed job; 409 until it is completed, or until there is a preview.

    One byte range a request; several give the whole file.
    """
    conditions = Conditions(range_header, if_range, if_none_match)
    return await file_answer(services, caller, request, job_id, query.variant, conditions, redirect=query.redirect)


@dataclass(frozen=True, slots=True)
class Conditions:
    """The headers that say how much of a file is wanted, and whether at all."""

    range: str | None = None
    if_range: str | None = None
    if_none_match: str | None = None

    @classmethod
    def of(cls, request: Request) -> Conditions:
        """Those of a request."""
        headers = request.headers
        return cls(headers.get("range"), headers.get("if-range"), headers.get("if-none-match"))


async def file_answer(
    services: Services,
    caller: Caller,
    request: Request,
    job_id: str,
    variant: Variant,
    conditions: Conditions | None = None,
    *,
    redirect: bool = False,
) -> Response:
    """A file of a completed job, or as much of it as the request's headers ask for.

    Args:
        redirect: answer with its URL, where the store has one.

    Raises:
        JobNotFound, Conflict: as the store.
        Problem: 416, the range lies outside.
    """
    conditions = conditions or Conditions.of(request)
    file = await run_in_thread(services.store.file, job_id, variant, caller.owner)
    if variant == "preview":
        return await _preview(services, caller, job_id, file)
    if not await run_in_thread(services.artifacts.exists, job_id, file.name):
        raise StillmotionError(f"the file {file.name} of job {job_id} is lost", code="artifact_lost")
    headers = _headers(job_id, file)
    if matches(conditions.if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if redirect and services.artifacts.signs_urls and not is_head(request):
        return await _redirect(services, job_id, file)
    span = _span(file, conditions.range if conditions.if_range in (None, headers["ETag"]) else None)
    start, stop = (0, file.bytes) if span is None else (span.start, span.stop)
    headers["Content-Length"] = str(stop - start)
    if span is not None:
        headers["Content-Range"] = span.content_range(file.bytes)
    status = 200 if span is None else 206
    if is_head(request):
        return Response(status_code=status, headers=headers, media_type=file.media_type)
    pieces = services.artifacts.pieces(job_id, file.name, start, stop)
    return StreamingResponse(pieces, status, headers, file.media_type)


async def _redirect(services: Services, job_id: str, file: StoredFile) -> Response:
    """The file's own URL, which is nobody's to cache: it is a key to the file."""
    seconds, name = services.settings.signed_url_s, f"{job_id}-{file.name}"
    url = await run_in_thread(services.artifacts.signed_get, job_id, file.name, file.media_type, name, seconds)
    return Response(status_code=307, headers={"Location": url, "Cache-Control": "no-store"})


async def _preview(services: Services, caller: Caller, job_id: str, file: StoredFile) -> Response:
    """The newest preview, whole: it may be replaced while it is read, and then the newer one is given."""
    while True:
        try:
            data = await run_in_thread(services.artifacts.read, job_id, file.name)
        except FileNotFoundError:
            newer = await run_in_thread(services.store.file, job_id, "preview", caller.owner)
            if newer == file:
                raise StillmotionError(f"the preview of job {job_id} is lost", code="artifact_lost") from None
            file = newer
            continue
        headers = {"ETag": f'"{file.sha256}"', "Cache-Control": "no-store"}
        return Response(data, 200, headers, file.media_type)


def _headers(job_id: str, file: StoredFile) -> dict[str, str]:
    return {
        "ETag": f'"{file.sha256}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'inline; filename="{job_id}-{file.name}"',
        "Cache-Control": "private, max-age=3600",
    }


def _span(file: StoredFile, header: str | None) -> Span | None:
    try:
        return parse_range(header, file.bytes)
    except Unsatisfiable as error:
        raise Problem(
            416,
            "range_not_satisfiable",
            f"the file has {file.bytes} bytes; {header} lies outside",
            param="Range",
            headers={"Content-Range": f"bytes */{file.bytes}"},
        ) from error
