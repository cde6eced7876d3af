"""Idempotency keys: the same key with the same request means what it made the first time.

A key belongs to its owner, holds for every kind of POST, and goes when what it made is removed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from serving.jobs.errors import Conflict
from serving.jobs.tables import IdempotencyRow


@dataclass(frozen=True, slots=True)
class Repeat:
    """What tells a repeat: the caller's key, and the hash of the request."""

    owner: str
    key: str
    request_hash: str


def hash_body(fields: Mapping[str, Any], *images: bytes) -> str:
    """SHA-256 over what a caller sent, whatever the order of the fields."""
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for image in images:
        digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()


def made_before(session: Session, repeat: Repeat | None) -> str | None:
    """The id of what the key made before; None if it is new, or there is no key.

    Raises:
        Conflict: it came before with another request.
    """
    if repeat is None:
        return None
    row = session.get(IdempotencyRow, (repeat.owner, repeat.key))
    if row is None:
        return None
    if row.request_hash != repeat.request_hash:
        raise Conflict(
            "this Idempotency-Key came before with another request; use a new key for a new request",
            code="idempotency_mismatch",
            param="Idempotency-Key",
        )
    return row.target


def remember(session: Session, repeat: Repeat | None, target: str) -> None:
    """Note what the key has made; within the transaction that makes it."""
    if repeat is not None:
        session.add(IdempotencyRow(owner=repeat.owner, key=repeat.key, request_hash=repeat.request_hash, target=target))
