"""Webhooks: check that a message came from the service, and read it.

    from stillmotion import webhooks

    message = webhooks.verify(request.body, request.headers, secret="whsec_...")
    if message.type == "job.completed":
        print(message.data.id)

The signature is that of the Standard Webhooks specification (version 1, HMAC-SHA256), so any library for it works too.
A message may come more than once: its `id` tells.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from stillmotion.errors import StillmotionError, UnexpectedAnswer
from stillmotion.types import Job

TOLERANCE_S = 300.0
"""A message older than this, or from further in the future, is refused: somebody may be sending an old one again."""


class BadSignature(StillmotionError):
    """The message did not come from the service, or was altered on the way: do not act on it."""


class WebhookMessage(BaseModel):
    """News of a job's end. `id` is the same however often the message comes; `timestamp` is when the job ended."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    type: Literal["job.completed", "job.failed", "job.cancelled", "job.expired"]
    timestamp: str
    data: Job


def verify(
    body: bytes | str,
    headers: Mapping[str, str],
    secret: str,
    *,
    tolerance_s: float = TOLERANCE_S,
    now: float | None = None,
) -> WebhookMessage:
    """The message, if it is genuine.

    Args:
        body: of the request, exactly as it came: parsed and written again it has another signature.
        headers: of the request; their names in any case.
        secret: `whsec_...`, as given in the submission or set at the server.
        tolerance_s: how old the message may be, in seconds.
        now: Unix seconds; the clock's if left out.

    Raises:
        BadSignature: a header is missing, the message is too old, or the signature is not right.
        UnexpectedAnswer: it is genuine, and of a form that this version does not know.
        ValueError: `secret` is none.
    """
    lower_case = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, sent_at, signatures = (lower_case[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as error:
        raise BadSignature(f"the header {error.args[0]} is missing") from error
    if not (sent_at.isascii() and sent_at.isdecimal()):
        raise BadSignature("webhook-timestamp is no whole number of seconds")
    if abs((time.time() if now is None else now) - int(sent_at)) > tolerance_s:
        raise BadSignature(f"the message was sent more than {tolerance_s:g} s ago, or is from the future")
    content = body.encode() if isinstance(body, str) else body
    expected = sign(secret, message_id, int(sent_at), content).encode()
    if not any(hmac.compare_digest(expected, one.encode()) for one in signatures.split()):
        raise BadSignature("the signature is not right: another secret, or an altered message")
    return _read(message_id, content)


def sign(secret: str, message_id: str, sent_at: int, body: bytes) -> str:
    """The value of webhook-signature for a message: `v1,` and the HMAC-SHA256 of `id.timestamp.body`, base64.

    Raises:
        ValueError: `secret` is none.
    """
    signed = f"{message_id}.{sent_at}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret_bytes(secret), signed, hashlib.sha256)).decode()


def secret_bytes(secret: str) -> bytes:
    """The key within a secret: the base64 behind `whsec_`.

    Raises:
        ValueError: it is not written so.
    """
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("a webhook secret is whsec_ and then base64") from error
    if not secret.startswith("whsec_") or not key:
        raise ValueError("a webhook secret is whsec_ and then base64")
    return key


def _read(message_id: str, content: bytes) -> WebhookMessage:
    try:
        return WebhookMessage.model_validate({**json.loads(content), "id": message_id})
    except (ValueError, TypeError, RecursionError) as error:
        raise UnexpectedAnswer("the signature is right, but the message is not of a form this SDK knows") from error
