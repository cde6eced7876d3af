"""How `stillmotion serve` runs an app: when it says that it is ready, and how it ends. In processes of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli import server
from model.errors import StillmotionError

PROGRAM = """
import asyncio
from fastapi import FastAPI
from starlette.responses import StreamingResponse
from cli import server

looks = iter([False, False, True])
app = FastAPI()

@app.get("/")
def home(): return "here"

@app.get("/slow")
async def slow():
    async def pieces():
        yield b"begun"
        await asyncio.sleep(0.5)
        yield b" and ended"
    return StreamingResponse(pieces())

server.run(app, server.listen("127.0.0.1", 0), lambda: next(looks), lambda url: print(url, flush=True))
print("left in good order", flush=True)
"""

DRAINS = """
import asyncio
from fastapi import FastAPI
from cli import server

app = FastAPI()
over = asyncio.Event()
state = {"draining": False}

@app.get("/")
def home(): return state["draining"]

@app.get("/over")
async def end(): over.set()

async def drain():
    state["draining"] = True
    print("draining", flush=True)
    await over.wait()

server.run(app, server.listen("127.0.0.1", 0), lambda: True, lambda url: print(url, flush=True), drain)
print("left in good order", flush=True)
"""

BREAKS = """
from contextlib import asynccontextmanager
from fastapi import FastAPI
from cli import server

@asynccontextmanager
async def lifespan(app):
    yield
    print("left in good order", flush=True)

looks = iter([False, True])
server.BROKEN_POLL_S = 0.01
listener = server.listen("127.0.0.1", 0)
app = FastAPI(lifespan=lifespan)
server.run(app, listener, lambda: True, lambda url: print("ready", flush=True), None, lambda: next(looks))
"""

NEVER_STARTS = """
from contextlib import asynccontextmanager
from fastapi import FastAPI
from cli import server

@asynccontextmanager
async def lifespan(app):
    raise RuntimeError("no database")
    yield

server.run(FastAPI(lifespan=lifespan), server.listen("127.0.0.1", 0), lambda: True, print)
"""


NEVER_READY = """
from fastapi import FastAPI
from cli import server
from model.errors import StillmotionError

try:
    server.run(
        FastAPI(), server.listen("127.0.0.1", 0), lambda: False, print, failure=lambda: "unet/ was cut short: copy it"
    )
except StillmotionError as error:
    print("ended:", error)
"""


@contextmanager
def program(root: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with running:
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_it_says_once_where_it_is_and_a_signal_ends_it_well(root: Path, number: signal.Signals) -> None:
    with program(root, PROGRAM) as running:
        assert running.stdout
        url = running.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.read() == b'"here"'
        with urllib.request.urlopen(f"{url}/slow", timeout=60) as answer:
            assert answer.read(5) == b"begun"
            running.send_signal(number)
            assert answer.read() == b" and ended"
        stdout, stderr = running.communicate(timeout=60)
        assert (running.returncode, stdout, stderr) == (0, "left in good order\n", "")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=60)


@pytest.mark.slow
def test_requests_are_answered_while_it_drains(root: Path) -> None:
    with program(root, DRAINS) as running:
        assert running.stdout
        url = running.stdout.readline().strip()
        running.send_signal(signal.SIGTERM)
        assert running.stdout.readline() == "draining\n"
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.read() == b"true"
        urllib.request.urlopen(f"{url}/over", timeout=60).close()
        stdout, stderr = running.communicate(timeout=60)
    assert (running.returncode, stdout, stderr) == (0, "left in good order\n", "")


@pytest.mark.slow
def test_a_second_signal_ends_the_draining(root: Path) -> None:
    with program(root, DRAINS) as running:
        assert running.stdout
        running.stdout.readline()
        running.send_signal(signal.SIGTERM)
        assert running.stdout.readline() == "draining\n"
        running.send_signal(signal.SIGTERM)
        stdout, _ = running.communicate(timeout=60)
    assert (running.returncode, stdout) == (0, "left in good order\n")


@pytest.mark.slow
def test_an_app_that_does_not_start_is_an_error_and_never_ready(root: Path) -> None:
    with program(root, NEVER_STARTS) as running:
        stdout, stderr = running.communicate(timeout=60)
    assert (running.returncode, stdout) == (1, "")
    assert "no database" in stderr
    assert "StillmotionError: the service did not start" in stderr


@pytest.mark.slow
def test_a_service_that_broke_ends_with_an_error_so_that_a_supervisor_starts_it_again(root: Path) -> None:
    with program(root, BREAKS) as running:
        stdout, stderr = running.communicate(timeout=60)
    assert (running.returncode, stdout) == (1, "ready\nleft in good order\n")
    assert "StillmotionError: the engine broke" in stderr


@pytest.mark.slow
def test_an_engine_that_cannot_start_ends_the_service_with_the_reason(root: Path) -> None:
    with program(root, NEVER_READY) as running:
        stdout, _ = running.communicate(timeout=60)
    assert (running.returncode, stdout) == (0, "ended: unet/ was cut short: copy it\n")


def test_a_taken_address_is_named_with_the_remedy() -> None:
    with server.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(StillmotionError, match=f"127.0.0.1:{port} .*another --host or --port"):
            server.listen("127.0.0.1", port)
