"""Webhook signatures, against the specification's own Python library as the other implementation."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stillmotion import StillmotionError, webhooks

standardwebhooks = pytest.importorskip("standardwebhooks")

SECRET = "whsec_" + base64.b64encode(b"a key of some bytes, long enough").decode()
AT = 1_700_000_000
JOB: dict[str, Any] = {
    "id": "job_1",
    "task": "image-to-video",
    "status": "completed",
    "phase": "mux",
    "progress": 100,
    "step": 4,
    "total_steps": 4,
    "created_at": 1.0,
    "model": "m",
    "model_version": "1",
    "seed": 1,
    "params": {},
    "urls": {"self": "/jobs/job_1", "cancel": "c", "events": "e", "content": "o"},
}
BODY = json.dumps({"type": "job.completed", "timestamp": "2023-11-14T22:13:20Z", "data": JOB}).encode()


def signed(body: bytes = BODY, secret: str = SECRET, at: int = AT) -> dict[str, str]:
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(at),
        "webhook-signature": webhooks.sign(secret, "msg_1", at, body),
    }


@given(key=st.binary(min_size=1, max_size=64), body=st.text(max_size=300), at=st.integers(0, 2**33))
def test_the_signature_is_the_specifications(key: bytes, body: str, at: int) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    theirs = standardwebhooks.Webhook(secret).sign("msg_1", datetime.fromtimestamp(at, UTC), body)
    assert webhooks.sign(secret, "msg_1", at, body.encode()) == theirs


def test_a_genuine_message_is_read() -> None:
    headers = {name.title(): value for name, value in signed().items()}
    message = webhooks.verify(BODY, headers, SECRET, now=AT + 10)
    assert (message.id, message.type, message.data.id) == ("msg_1", "job.completed", "job_1")
    assert webhooks.verify(BODY.decode(), headers, SECRET, now=AT) == message


def test_one_right_signature_among_several_is_enough() -> None:
    headers = signed()
    headers["webhook-signature"] = f"v1,AAAA v2,xyz {headers['webhook-signature']}"
    assert webhooks.verify(BODY, headers, SECRET, now=AT).id == "msg_1"


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "msg_2"},
        {"webhook-timestamp": str(AT + 1)},
        {"webhook-timestamp": "soon"},
        {"webhook-timestamp": "²"},
        {"webhook-signature": "v1,"},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,é"},
    ],
)
def test_an_altered_header_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(webhooks.BadSignature):
        webhooks.verify(BODY, {**signed(), **change}, SECRET, now=AT)


@given(st.data())
def test_an_altered_body_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(BODY) - 1))
    altered = BODY[:at] + bytes([BODY[at] ^ data.draw(st.integers(1, 255))]) + BODY[at + 1 :]
    with pytest.raises(webhooks.BadSignature):
        webhooks.verify(altered, signed(), SECRET, now=AT)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name: str) -> None:
    headers = {key: value for key, value in signed().items() if key != name}
    with pytest.raises(webhooks.BadSignature, match=name):
        webhooks.verify(BODY, headers, SECRET, now=AT)


@pytest.mark.parametrize("seconds", [-301, 301])
def test_an_old_message_is_refused(seconds: int) -> None:
    with pytest.raises(webhooks.BadSignature, match="300 s"):
        webhooks.verify(BODY, signed(), SECRET, now=AT + seconds)


def test_another_secret_is_refused_and_no_secret_is_an_error() -> None:
    other = "whsec_" + base64.b64encode(b"another").decode()
    with pytest.raises(webhooks.BadSignature):
        webhooks.verify(BODY, signed(secret=other), SECRET, now=AT)
    for nonsense in ("", "whsec_", "whsec_?", "YWJj"):
        with pytest.raises(ValueError, match="whsec_"):
            webhooks.verify(BODY, signed(), nonsense, now=AT)


@pytest.mark.parametrize("body", [b"[]", b"{}", b"null", b"no json"])
def test_a_genuine_message_of_another_form_is_no_crash(body: bytes) -> None:
    with pytest.raises(StillmotionError):
        webhooks.verify(body, signed(body), SECRET, now=AT)
