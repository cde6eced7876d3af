"""Every error answer has one shape; this is where an exception gets its status.

{"error": {"type", "code", "message", "param", "request_id"}}: `type` is the class of error, one for each row of
_TYPES; `code` is stable and finer; `param` names the field at fault.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from stillmotion.types import ErrorBody, ErrorResponse

from model.errors import ImageTooLarge, InvalidRequest, StillmotionError, StorageFull
from serving.gateway.deadlines import DeadlineInfeasible
from serving.jobs.errors import (
    BatchNotFound,
    Conflict,
    DatabaseBusy,
    JobNotFound,
    QueueFull,
    UploadNotFound,
    UploadsFull,
)

_TYPES: Final[dict[int, str]] = {
    401: "authentication",
    403: "permission",
    404: "not_found",
    409: "conflict",
    429: "rate_limited",
    500: "internal",
    503: "unavailable",
    507: "storage_full",
}
_CODES: Final[dict[int, str]] = {404: "route_not_found", 405: "method_not_allowed"}
_STATUSES: Final[tuple[tuple[type[StillmotionError], int], ...]] = (
    (ImageTooLarge, 413),
    (InvalidRequest, 422),
    (JobNotFound, 404),
    (BatchNotFound, 404),
    (UploadNotFound, 404),
    (Conflict, 409),
    (QueueFull, 429),
    (UploadsFull, 429),
    (DeadlineInfeasible, 409),
    (StorageFull, 507),
    (DatabaseBusy, 503),
)
_RETRIED: Final = (QueueFull, UploadsFull, DatabaseBusy)
_PYDANTIC_CODES: Final[dict[str, str]] = {
    "missing": "missing_field",
    "extra_forbidden": "unknown_field",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "finite_number": "out_of_range",
}


class Problem(StillmotionError):
    """An answer from 400 up that is about HTTP itself rather than about a job or a picture."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.status = status
        self.headers = dict(headers or {})


def answer(
    request_id: str | None,
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error answer."""
    kind = _TYPES.get(status, "invalid_request" if status < 500 else "internal")
    body = ErrorBody(type=kind, code=code, message=message, param=param, request_id=request_id)
    return JSONResponse(ErrorResponse(error=body).model_dump(mode="json"), status, dict(headers or {}))


def first_problem(
    error: ValidationError | RequestValidationError, where: str, fields: Collection[str] = ()
) -> InvalidRequest:
    """The first thing wrong with a validated value, as our own error.

    Args:
        where: what has no such field.
        fields: the names there are; one like the unknown name is suggested.
    """
    first: dict[str, Any] = dict(error.errors()[0])
    # FastAPI begins the location with the part of the request: query, path or header.
    location = first["loc"][1:] if isinstance(error, RequestValidationError) else first["loc"]
    param = ".".join(map(str, location)) or None
    kind = first["type"]
    if kind == "extra_forbidden":
        message = f"{where} has no field {param!r}; {_hint(str(first['loc'][-1]), fields)}"
    elif kind == "missing":
        message = f"{param} is required"
    else:
        message = f"{param}: {first['msg']}"
    return InvalidRequest(message, code=_PYDANTIC_CODES.get(kind, "invalid_value"), param=param)


def _hint(unknown: str, fields: Collection[str]) -> str:
    """What to do about an unknown field: the name that was probably meant."""
    name = unknown.lower().replace("-", "_")
    parts = [field for field in fields if name in field.split("_")]
    close = difflib.get_close_matches(name, fields, n=1)
    meant = parts[0] if len(parts) == 1 else next(iter(close), None)
    return "leave it out" if meant is None else f"did you mean {meant}?"


def request_id(request: Request) -> str | None:
    """The id that the middleware gave this request."""
    value = request.scope.get("request_id")
    return value if isinstance(value, str) else None


async def _on_stillmotion_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, StillmotionError):
        raise error
    if isinstance(error, Problem):
        status, headers = error.status, error.headers
    else:
        status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
        headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, _RETRIED) else {}
    request.scope["refusal"] = error.code
    return answer(request_id(request), status, error.code, error.message, param=error.param, headers=headers)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    return await _on_stillmotion_error(request, first_problem(error, request.url.path))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    code = _CODES.get(error.status_code, f"http_{error.status_code}")
    message = str(error.detail)
    if error.status_code == 404:
        message = f"there is nothing at {request.url.path}; /docs lists the routes"
    elif error.status_code == 405:
        message = f"{request.method} is not possible at {request.url.path}"
    return answer(request_id(request), error.status_code, code, message, headers=error.headers)


def install(app: FastAPI) -> None:
    """Answer every exception of the app in the one shape (what remains unforeseen is the middleware's)."""
    app.add_exception_handler(StillmotionError, _on_stillmotion_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
