"""A real S3 endpoint, over HTTP, in a process of its own: moto's server."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

BUCKET = "films"


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Its URL; it has an empty bucket called `films`."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = folder / "s3.txt"
    with told.open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert server.poll() is None, told.read_text()
            try:
                httpx2.put(f"{url}/{BUCKET}", timeout=60).raise_for_status()
                break
            except httpx2.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


def environment(url: str) -> dict[str, str]:
    """What tells AWS's tools, and so s3fs, of it."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
