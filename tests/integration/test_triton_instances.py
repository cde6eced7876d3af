"""Two instances of a model in one Triton server, on a CPU as they would be on two GPUs: each a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest
from stillmotion.types import Job

from serving.triton import channel
from serving.triton.server import NoTritonServer, TritonServer, fetch_server
from tests.integration.triton_support import Gateway, checkpoint, gateway, host, triton_server, undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # seconds on a busy machine
STILL = "image-to-video"
STEPS = 40


def stubs(server: TritonServer) -> list[psutil.Process]:
    """The processes of Triton's Python backend, one an instance."""
    assert server.process is not None
    below = psutil.Process(server.process.pid).children(recursive=True)
    return [process for process in below if process.name().startswith("triton_python")]


async def reach(service: Gateway, job: Job, step: int) -> None:
    async for kind, now in service.events(job):
        if kind == "step" and now.step is not None and now.step >= step:
            return


async def test_the_jobs_of_a_killed_instance_go_on_in_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton ends no stream of an instance that is killed; its heartbeats stop (serving.triton.channel)."""
    try:
        fetch_server()
    except NoTritonServer as error:
        pytest.skip(f"no tritonserver: {error}")
    monkeypatch.setattr(channel, "SILENCE_S", 30.0)
    entry = checkpoint(tmp_path / "checkpoints", STILL)
    host(entry, tmp_path / "repository", instances=2)
    with triton_server(tmp_path / "repository", tmp_path / "server.log", [STILL]) as server:
        own = stubs(server)
        assert len(own) == 2, [process.cmdline() for process in own]
        async with gateway(tmp_path / "gateway", server.ports.url) as service:
            sent = [await service.submit(entry, seed, num_inference_steps=STEPS) for seed in range(4)]
            await asyncio.gather(*(reach(service, job, 5) for job in sent))
            os.kill(own[0].pid, signal.SIGKILL)
            ended = await service.ended(*sent)
        for job in ended:
            assert job.output is not None, job.error
            assert job.output.frames_sha256 == undisturbed(entry, job.seed, num_inference_steps=STEPS)
