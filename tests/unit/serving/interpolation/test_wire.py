"""A chained job whose models are hosted apart: every request and event crosses the wire between gateway and Triton.

The hosts are those that run inside Triton, the frames those that cross gRPC; the server itself is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from model.media.video import frames_sha256
from model.params import Params
from serving.engine.protocol import Completed, EngineEvent, EngineRequest, refuse_chained
from serving.interpolation.engine import ChainedEngine
from serving.jobs.artifacts import Artifacts
from serving.triton.hosting import Host
from serving.triton.wire import HEARTBEAT, Frame, Status, pack_request, unpack_event
from tests.unit.serving.interpolation.support import BETWEEN, PAIRS, STILL, Script, request
from tests.unit.serving.interpolation.test_engine import expected


class Hosted(Script):
    """Sends each request to the host of its model."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = {"still": Script(), "between": Script()}
        self.hosts = {
            entry.name: Host(entry, self.scripts[entry.name], number)
            for number, entry in enumerate((STILL, BETWEEN), start=1)
        }

    def estimate(self, model: str, params: Params) -> float | None:
        return 10.0

    async def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        sent: asyncio.Queue[Frame | None] = asyncio.Queue()
        assert refuse_chained(request) is None

        async def answer() -> None:
            host = self.hosts[request.model]
            await host.answer(pack_request(request, "gateway"), sent.put_nowait, lambda: False)
            sent.put_nowait(None)

        answering = asyncio.create_task(answer())
        while (frame := await sent.get()) is not None:
            if frame == HEARTBEAT:
                continue
            event = unpack_event(frame)
            assert not isinstance(event, Status)
            yield event
        await answering


async def test_it_is_the_same_video_and_each_stage_names_its_host_s_version(tmp_path: Path) -> None:
    hosted = Hosted()
    engine = ChainedEngine(hosted, Artifacts.open(str(tmp_path)), (STILL, BETWEEN))
    told = [event async for event in engine.submit(request())]
    done = told[-1]
    assert isinstance(done, Completed), done
    assert done.frames_sha256 == frames_sha256(expected())
    second = done.manifest["interpolate"]
    assert isinstance(second, dict)
    assert (done.manifest["repository_version"], second["repository_version"]) == (1, 2)
    assert len(hosted.scripts["still"].seen) == 1
    pairs = hosted.scripts["between"].seen.values()
    assert len(pairs) == PAIRS
    assert all(one.raw and one.share.beyond_s > 0 for one in list(pairs)[:-1])
