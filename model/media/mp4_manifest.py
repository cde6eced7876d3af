"""Where a video comes from, inside the video: a manifest in a box of its own at the end of an mp4.

An mp4 is a row of boxes (ISO/IEC 14496-12, 4.2): a size, a name, a body. Players pass over a `uuid` box that they do
not know (11.1), so the manifest is there without touching a byte of what plays, and equal inputs still give equal
files: nothing in it tells the time. Imports no torch.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import UUID

from model.errors import InvalidRequest

BOX: Final = UUID("5f3a0c58-6a0b-4d0e-9a55-2b6a7b1d3c01").bytes
"""The type of our box, drawn once at random."""
_WHOLE_HEAD: Final = 8 + 16


def attach(video: bytes, manifest: Mapping[str, Any]) -> bytes:
    """An mp4 with the manifest in it; one that was in it before is replaced.

    Raises:
        InvalidRequest: not an mp4, or cut short.
    """
    kept = b"".join(video[start:stop] for name, start, stop in _boxes(video) if not _is_ours(video, name, start))
    body = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    size = _WHOLE_HEAD + len(body)
    return kept + size.to_bytes(4, "big") + b"uuid" + BOX + body


def read(video: bytes) -> dict[str, Any] | None:
    """The manifest in an mp4, or None if it has none.

    Raises:
        InvalidRequest: not an mp4, or cut short, or what is in our box is no manifest.
    """
    for name, start, stop in _boxes(video):
        if _is_ours(video, name, start):
            return parse(video[start + _WHOLE_HEAD : stop])
    return None


def parse(text: bytes) -> dict[str, Any]:
    """A manifest from its JSON. Raises InvalidRequest."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"the manifest is no JSON: {error}", code="bad_manifest") from error
    if not isinstance(found, dict):
        raise InvalidRequest("the manifest is no JSON object", code="bad_manifest")
    return found


def pictures(manifest: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The pictures a video was made from, as PNG, in the order of its task's spec.

    Raises:
        InvalidRequest: the manifest holds none, or they cannot be read.
    """
    held = manifest.get("pictures")
    if not isinstance(held, list) or not all(isinstance(item, str) for item in held):
        raise InvalidRequest("the manifest does not hold the pictures that it was made from", code="bad_manifest")
    try:
        return tuple(base64.b64decode(item, validate=True) for item in held)
    except binascii.Error as error:
        raise InvalidRequest(f"a picture in the manifest is no base64: {error}", code="bad_manifest") from error


def encode_picture(picture: bytes) -> str:
    """A PNG as the manifest holds it."""
    return base64.b64encode(picture).decode("ascii")


def _boxes(video: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each outermost box."""
    if video[4:8] != b"ftyp":
        raise InvalidRequest("not an mp4: only those carry a manifest", code="unreadable_video")
    at = 0
    while at < len(video):
        size, name = int.from_bytes(video[at : at + 4], "big"), video[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(video[at + 8 : at + 16], "big")
        elif size == 0:  # to the end of the file
            size = len(video) - at
        if size < 8 or at + size > len(video):
            raise InvalidRequest("the mp4 is cut short", code="unreadable_video")
        yield name, at, at + size
        at += size


def _is_ours(video: bytes, name: bytes, start: int) -> bool:
    return name == b"uuid" and video[start + 8 : start + _WHOLE_HEAD] == BOX
