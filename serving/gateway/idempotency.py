"""The Idempotency-Key of a POST, as a route's parameter and as what the store compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Header

from serving.jobs.idempotency import Repeat, hash_body
from serving.keys.ring import Caller

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="a repeat with the same key has no second effect; with another request it is a 409",
    ),
]


def repeat_of(caller: Caller, key: str | None, request: Mapping[str, Any]) -> Repeat | None:
    """What tells a repeat of this request; None without a key."""
    return None if key is None else Repeat(caller.owner, key, hash_body(request))
