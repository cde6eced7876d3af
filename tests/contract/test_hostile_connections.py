"""Connections that mean no good: endless heads, dripping bodies, idle crowds. Each is closed in time, cheaply."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from pathlib import Path

import psutil
import pytest

from serving.gateway import connections
from serving.gateway.connections import raise_file_limit
from tests.contract.support import Running, ScriptedEngine, listening, picture

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
QUICK = {"header_timeout_s": 0.3}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_LOOK_S", 0.05)
    monkeypatch.setattr(connections, "_RATE_WINDOW_S", 0.5)


async def connect(app: Running) -> Pair:
    host, port = app.address.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def closed(pair: Pair, within_s: float) -> tuple[bytes, float]:
    """What came until the server closed the connection, and after how many seconds."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(within_s):
            data = await pair[0].read()
    except ConnectionError:
        data = b""
    pair[1].close()
    return data, time.monotonic() - began


async def dripped(pair: Pair, piece: bytes, gap_s: float) -> tuple[bytes, float]:
    """Send a piece again and again until the server answers or closes: its answer, and after how many seconds."""
    began, answer = time.monotonic(), asyncio.create_task(pair[0].read())
    while not answer.done() and time.monotonic() - began < 8:
        pair[1].write(piece)
        await asyncio.sleep(gap_s)
    pair[1].close()
    return (await answer if answer.done() else b"not closed"), time.monotonic() - began


async def is_alive(app: Running) -> bool:
    return (await app.client.get("/health/live")).status_code == 200


async def test_an_endless_head_is_cut_off(tmp_path: Path) -> None:
    """Without a key, without an end: three of 50 MB cost next to nothing."""
    process = psutil.Process()
    async with listening(tmp_path) as app:
        assert await is_alive(app)
        gc.collect()
        before, sent = process.memory_info().rss, 0
        for start in (b"GET / HTTP/1.1\r\nX-A: ", b"GET /", b"GET / HTTP/1.1\r\n"):
            reader, writer = await connect(app)
            writer.write(start)
            piece = b"a: b\r\n" * 10_000 if start.endswith(b"1.1\r\n") else b"a" * 60_000
            try:
                for _ in range(800):
                    writer.write(piece)
                    await writer.drain()
                    sent += len(piece)
            except ConnectionError:
                pass
            answer, _ = await closed((reader, writer), 5)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
        gc.collect()
        assert sent < 3 * 20e6, "the server stops reading long before the end"
        assert process.memory_info().rss - before < 20 * 2**20
        assert await is_alive(app)


async def test_a_great_head_that_is_complete_is_refused_in_our_shape(tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        answer = await app.client.get("/health/live", headers={"X-A": "a" * 70_000})
        assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")
        many = {f"X-{number}": "b" for number in range(3000)}
        assert (await app.client.get("/health/live", headers=many)).status_code == 431
        assert (await app.client.get("/health/live", headers={"X-A": "a" * 50_000})).status_code == 200


async def test_who_sends_nothing_or_half_a_head_is_closed(tmp_path: Path) -> None:
    async with listening(tmp_path, **QUICK) as app:
        idle, half = await connect(app), await connect(app)
        half[1].write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n")
        (nothing, idle_s), (answer, half_s) = await asyncio.gather(closed(idle, 5), closed(half, 5))
        assert nothing == b""
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert max(idle_s, half_s) < 2


async def test_a_dripping_head_gains_no_time(tmp_path: Path) -> None:
    async with listening(tmp_path, **QUICK) as app:
        pair = await connect(app)
        pair[1].write(b"GET /health/live HTTP/1.1\r\n")
        answer, seconds = await dripped(pair, b"a: b\r\n", 0.02)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert seconds < 3


async def test_a_dripping_upload_is_closed_with_one_line_and_nothing_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(tmp_path) as app:
        caplog.set_level(logging.INFO)
        caplog.clear()
        pair = await connect(app)
        head = b"POST /generate/image-to-video HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
        pair[1].write(head + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n")
        answer, seconds = await dripped(pair, b"a", 0.05)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert seconds < 3
        await asyncio.sleep(0.05)
        lines = [record for record in caplog.records if record.name.startswith(("serving", "uvicorn", "stillmotion"))]
        assert len(lines) <= 1
        assert all("\n" not in record.getMessage() and record.exc_info is None for record in lines)
        assert await app.stored() == (0, [])


async def test_an_aborted_upload_leaves_one_line_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(tmp_path) as app:
        caplog.set_level(logging.INFO)
        caplog.clear()
        _, writer = await connect(app)
        head = b"POST /generate/image-to-video HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
        writer.write(head + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.transport.abort()
        await asyncio.sleep(0.2)
        lines = [record for record in caplog.records if record.name.startswith(("serving", "uvicorn", "stillmotion"))]
        assert len(lines) <= 1
        assert not any(record.exc_info for record in caplog.records)
        assert 'status="499"' in (await app.client.get("/metrics")).text


async def test_an_honest_upload_that_pauses_for_the_server_is_not_slow(tmp_path: Path) -> None:
    async with listening(tmp_path, **QUICK) as app:
        job = await app.submit()
        await app.until(job.id, "completed")


async def test_streams_outlive_every_limit_on_heads_and_bodies(tmp_path: Path) -> None:
    engine = ScriptedEngine(gated=True)
    async with listening(tmp_path, engine, **QUICK) as app:
        job = await app.submit()
        async with app.client.stream("GET", job.urls.events) as stream:
            await asyncio.sleep(1.0)
            engine.gate.set()
            text = (await stream.aread()).decode()
        assert "event: completed" in text


async def test_a_crowd_of_idle_connections_keeps_nobody_out(tmp_path: Path) -> None:
    """The oldest idle one makes room; busy ones stay, and where all are busy the newcomer hears of it."""
    engine = ScriptedEngine(gated=True)
    async with listening(tmp_path, engine, max_connections=20, header_timeout_s=60) as app:
        job = await app.submit()
        idle = [await connect(app) for _ in range(60)]
        for _ in range(5):
            assert await is_alive(app)
        streams = []
        for _ in range(20):
            pair = await connect(app)
            pair[1].write(f"GET {job.urls.events} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await pair[0].readline()).startswith(b"HTTP/1.1 200 ")
            streams.append(pair)
        answer, _ = await closed(await connect(app), 5)
        assert answer.startswith(b"HTTP/1.1 503 ")
        engine.gate.set()
        for reader, writer in streams:
            assert b"event: completed" in await reader.readuntil(b"event: completed")
            writer.close()
        for _, writer in idle:
            writer.close()


async def test_one_address_has_its_share(tmp_path: Path) -> None:
    async with listening(tmp_path, max_connections_per_address=5, header_timeout_s=60) as app:
        crowd = [await connect(app) for _ in range(10)]
        await asyncio.sleep(0.1)
        assert await is_alive(app)
        for _, writer in crowd:
            writer.close()


async def test_who_does_not_read_an_answer_is_closed(tmp_path: Path) -> None:
    """A video that nobody reads keeps neither its file nor its connection for ever."""
    async with listening(tmp_path, stall_timeout_s=0.3) as app:
        job = await app.until((await app.submit()).id, "completed")
        name = next(iter(app.folder.glob(f"artifacts/{job.id}/video*"))).name
        (app.folder / "artifacts" / job.id / name).write_bytes(bytes(50_000_000))
        object.__setattr__(app.services.store, "file", lambda *_: _large(name))
        reader, writer = await connect(app)
        writer.write(f"GET {job.urls.content} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await writer.drain()
        await asyncio.sleep(2)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(50_000_000)
        writer.close()
        assert await is_alive(app)


def _large(name: str) -> object:
    from serving.jobs.records import StoredFile

    return StoredFile(name, "video/mp4", 50_000_000, "0" * 64)


def test_descriptors_are_raised_to_the_hard_limit() -> None:
    import resource

    assert raise_file_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == resource.getrlimit(resource.RLIMIT_NOFILE)[1]


async def test_a_refused_connection_costs_no_submission(tmp_path: Path) -> None:
    async with listening(tmp_path, **QUICK) as app:
        for _ in range(3):
            answer = await app.client.post(
                "/generate/image-to-video",
                files={"image": ("x.png", picture(), "image/png")},
                headers={"X": "a" * 70_000},
            )
            assert answer.status_code == 431
        assert await app.stored() == (0, [])
