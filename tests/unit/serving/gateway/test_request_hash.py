"""Hashes of requests that servers before the latest fields stored with an Idempotency-Key: known answers."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from stillmotion.types import REQUESTS

from serving.gateway.auth import request_hash

STORED = {
    "image-to-video": "1485ca2765bd60cfe3f88dc54a89b9cbd82a77027cc91906d4aaeb81908f2b5e",
    "text-to-video": "f39dd89d3e96a1fe0d8283f63cb77c66f4f4f97bb0ec3a17e0c077ca89d4eed4",
    "frame-interpolation": "8ec5176df72bd03f94bcb06aac9c9133f1290a8ec35232e3cad8a400f75ac4dc",
    "multi-view": "15e254443d65f5dd59714afc57cd8f29f6250551bd6004ea96122b7ee20cec0a",
}
"""With seed 7 and all else left out, before `upscale`, `upscaler`, `stages` and `reuse` were fields."""
PICTURES = {
    "image-to-video": [b"first"],
    "text-to-video": [],
    "frame-interpolation": [b"first", b"last"],
    "multi-view": [b"first"],
}
"""The bytes whose SHA-256 went into each."""


def hash_of(task: str, **fields: Any) -> str:
    if task == "text-to-video":
        fields["prompt"] = "a beach"
    body = REQUESTS[task][0](seed=7, **fields).model_dump(mode="json")
    return request_hash(task, body, [sha256(picture).digest() for picture in PICTURES[task]])


@pytest.mark.parametrize("task", REQUESTS)
def test_a_request_from_before_an_upgrade_has_the_hash_that_was_stored_then(task: str) -> None:
    assert hash_of(task) == STORED[task]


@pytest.mark.parametrize(
    "fields", [{"upscale": 2}, {"upscaler": "lanczos"}, {"reuse": True}, {"stages": [{"kind": "upscale"}]}]
)
def test_a_later_field_that_is_set_makes_another_request(fields: dict[str, Any]) -> None:
    assert hash_of("image-to-video", **fields) != hash_of("image-to-video")
