"""A batch of uploaded pictures within a flat memory, in a gateway of its own process."""

from __future__ import annotations

import hashlib
import io

import pytest
from PIL import Image

from benchmarks.upload_batch import measure, numbered, picture


def test_pictures_differ_in_their_bytes_alone() -> None:
    jpeg = picture(0.05)
    first, second = numbered(jpeg, 1), numbered(jpeg, 2)
    assert hashlib.sha256(first).digest() != hashlib.sha256(second).digest()
    assert Image.open(io.BytesIO(first)).tobytes() == Image.open(io.BytesIO(second)).tobytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_sixty_two_megapixel_pictures_take_no_memory_of_their_own() -> None:
    """All 1,000: `python -m benchmarks.upload_batch`. Held at once, 60 files would be 60 MiB, and decoded 340 MiB."""
    found = await measure(60)
    assert found["completed"] == 60
    assert found["picture_bytes"] > 1_000_000
    assert found["request_bytes"] < 60 * 400
    assert max(found["memory_mib"].values()) < 80, found  # two are decoded at once, which takes 40
