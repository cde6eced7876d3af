"""Uploads: pictures sent apart from the requests that name them, so that a thousand rows of a batch are short lines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from stillmotion.types import SignedUpload, Upload, UploadIntent

from model.errors import InvalidRequest, UnreadableImage
from model.media.image import ACCEPTED, HEAD_BYTES, picture_format
from serving.background import run_in_thread
from serving.gateway.auth import CallerDep
from serving.gateway.errors import Problem
from serving.gateway.images import room_for_uploads
from serving.gateway.openapi import error_responses, upload_body
from serving.gateway.requests import MULTIPART
from serving.gateway.services import Services, ServicesDep

router = APIRouter(prefix="/uploads", tags=["uploads"])
_PIECE: Final = 1 << 20
"""Bytes written at once, and all of a picture that is in memory."""
_FIELD: Final = "file"
_STORED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": Upload, "description": "It was there already, and stays longer"},
    201: {"model": Upload, "description": "It is stored"},
}


@router.post(
    "",
    status_code=201,
    response_model=Upload,
    responses={**_STORED, **error_responses(400, 413, 429, 507)},
    openapi_extra=upload_body(_FIELD),
)
async def create_upload(request: Request, services: ServicesDep, caller: CallerDep) -> JSONResponse:
    """Store a picture for a while, to be named by later requests as `image: {"upload": id}`.

    The body is the picture's file as it is, or a form with one `file`. The same bytes are the same upload: sent again,
    it stays longer. Nobody but the same API key can name it.
    """
    form = request.headers.get("content-type", "").partition(";")[0].strip().lower() == MULTIPART
    declared = request.headers.get("content-length", "")
    await run_in_thread(services.uploads.check_room, caller.owner, int(declared) if declared.isdecimal() else 0)
    try:
        pieces = _of_form(await _form_file(request)) if form else request.stream()
        upload, is_new = await _store(services, caller.owner, pieces)
    finally:
        await request.close()
    return JSONResponse(upload.model_dump(mode="json"), 201 if is_new else 200)


@router.post("/signed", responses=error_responses(409, 413, 429))
async def sign_upload(intent: UploadIntent, services: ServicesDep, caller: CallerDep) -> SignedUpload:
    """A URL of S3 to which the caller can PUT a picture past this service; 409 where the artifacts lie elsewhere.

    The URL is for this one picture, by its SHA-256 and size. Once it is PUT, `image: {"upload": id}` names it.
    """
    most = services.settings.max_upload_bytes
    if intent.bytes > most:
        raise Problem(413, "body_too_large", f"a picture may have {most} bytes, not {intent.bytes}", param="bytes")
    signed = await run_in_thread(services.uploads.sign, caller.owner, intent.sha256, intent.bytes)
    return SignedUpload(upload=signed.upload, url=signed.url, headers=signed.headers)


@router.get("/{upload_id}", responses=error_responses(404))
async def get_upload(upload_id: str, services: ServicesDep, caller: CallerDep) -> Upload:
    """An upload, and until when it stays."""
    return await run_in_thread(services.uploads.get, caller.owner, upload_id)


@router.delete("/{upload_id}", status_code=204, responses=error_responses(404))
async def delete_upload(upload_id: str, services: ServicesDep, caller: CallerDep) -> None:
    """Remove an upload. Jobs that named it have their own copy."""
    await run_in_thread(services.uploads.remove, caller.owner, upload_id)


async def _store(services: Services, owner: str, pieces: AsyncIterator[bytes]) -> tuple[Upload, bool]:
    """Write what comes into the artifact store, a piece at a time.

    Raises:
        UnreadableImage: it does not begin as a picture does; nothing is stored.
        UploadsFull, StorageFull: no room; nothing of it is left.
    """
    joined = _joined(pieces)
    first = await anext(joined, b"")
    if picture_format(first[:HEAD_BYTES]) is None:
        raise UnreadableImage(f"this is no picture that can be read; send one of {ACCEPTED}", param=_FIELD)
    name, file = await run_in_thread(services.uploads.incoming)
    whole = False
    try:
        await run_in_thread(file.write, first)
        async for piece in joined:
            await run_in_thread(file.write, piece)
        sha256 = await run_in_thread(file.finish)
        whole = True
    finally:
        if not whole:
            await run_in_thread(file.discard)
    return await run_in_thread(services.uploads.add, owner, name, sha256, file.size)


async def _joined(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of about a megabyte: each costs a thread."""
    waiting = bytearray()
    async for piece in pieces:
        waiting += piece
        if len(waiting) >= _PIECE:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


async def _form_file(request: Request) -> UploadFile:
    try:
        with room_for_uploads():
            form = await request.form(max_files=1, max_fields=0)
    except HTTPException as error:
        raise Problem(400, "malformed_body", f"the multipart body cannot be read: {error.detail}") from error
    value = form.get(_FIELD)
    if not isinstance(value, UploadFile):
        raise InvalidRequest(f"{_FIELD} is required: a file part with the picture", code="missing_field", param=_FIELD)
    return value


async def _of_form(part: UploadFile) -> AsyncIterator[bytes]:
    while piece := await part.read(_PIECE):
        yield piece
