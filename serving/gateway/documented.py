"""What the OpenAPI document says of error answers: each route names the statuses it can give."""

from __future__ import annotations

from typing import Any, Final

from stillmotion.types import ErrorResponse

_MEANINGS: Final[dict[int, str]] = {
    400: "The body cannot be parsed",
    401: "No API key, or one that is not valid (any more)",
    403: "The key may not do this",
    404: "No such job, or another key's",
    409: "The job's present state, an Idempotency-Key used before, or an infeasible deadline does not allow it",
    413: "The body or the picture is too large",
    415: "Another content type than multipart/form-data or application/json",
    416: "The range lies outside of the file",
    422: "A field is unknown, missing or out of range; `param` names it",
    429: "The queue is full, or the key's rate or quota is used up; see Retry-After",
    500: "An unexpected error",
    503: "Not ready; see Retry-After",
    507: "The server's disk is full",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these error statuses, 422 and 500 always among them."""
    return {
        status: {"model": ErrorResponse, "description": _MEANINGS[status]} for status in sorted({422, 500, *statuses})
    }
