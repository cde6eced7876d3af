"""Jobs after their submission: look, list, cancel, delete, and how they fail."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from stillmotion.types import JobEngine, JobList

from model.errors import OutOfMemory
from serving.engine.protocol import Completed, EngineRequest, Failed
from serving.jobs.artifacts import Artifacts
from serving.provenance import video_manifest
from tests.contract.support import error_of, running
from tests.support.fakes import ScriptedEngine


async def test_pages_cover_every_job_once_in_order(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        ids = [(await app.submit()).id for _ in range(5)]
        for order, expected in (("asc", ids), ("desc", ids[::-1])):
            got: list[str] = []
            after = None
            while True:
                query = {"limit": 2, "order": order, **({"after": after} if after else {})}
                page = JobList.model_validate((await app.client.get("/jobs", params=query)).json())
                got += [job.id for job in page.data]
                after = page.last_id
                if not page.has_more:
                    break
            assert got == expected
        await app.until(ids[0], "in_progress")
        queued = (await app.client.get("/jobs", params={"status": "queued"})).json()["data"]
        assert {job["id"] for job in queued} == set(ids[1:])


async def test_cancel_of_a_waiting_job_is_at_once_and_costs_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        first, second = await app.submit(), await app.submit()
        await app.until(first.id, "in_progress")
        answer = await app.client.post(second.urls.cancel)
        assert (answer.status_code, answer.json()["status"], answer.json()["cancelled_at_step"]) == (
            200,
            "cancelled",
            0,
        )
        app.engine.gate.set()
        await app.until(first.id, "completed")
        assert [request.job_id for request in app.engine.requests] == [first.id]


async def test_cancel_of_a_running_job_stops_it_between_steps(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        job = await app.submit()
        await app.until(job.id, "in_progress")
        assert (await app.client.post(job.urls.cancel)).json()["status"] in ("in_progress", "cancelled")
        stopped = await app.until(job.id, "cancelled")
        assert (stopped.cancelled_at_step, stopped.timings) == (0, {"compute": 0.0})
        again = await app.client.post(job.urls.cancel)
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")
        app.engine.gate.set()
        await app.until((await app.submit()).id, "completed")


async def test_cancel_of_a_finished_job_leaves_it(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job = await app.submit()
        await app.until(job.id, "completed")
        assert (await app.client.post(job.urls.cancel)).json()["status"] == "completed"


async def test_delete_removes_rows_and_files(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job = await app.submit()
        await app.until(job.id, "completed")
        assert len((await app.stored())[1]) == 6
        answer = await app.client.delete(job.urls.self)
        assert (answer.status_code, answer.content) == (204, b"")
        assert await app.stored() == (0, [])
        for path in (job.urls.self, job.urls.events, job.urls.content):
            assert error_of(await app.client.get(path)).code == "job_not_found"


async def test_delete_of_a_running_job_is_a_conflict(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        first, second = await app.submit(), await app.submit()
        await app.until(first.id, "in_progress")
        answer = await app.client.delete(first.urls.self)
        assert (answer.status_code, error_of(answer).code) == (409, "job_in_progress")
        assert (await app.client.delete(second.urls.self)).status_code == 204
        assert (await app.stored())[0] == 1


@pytest.mark.parametrize(
    ("ending", "code", "says"),
    [
        (Failed("out_of_memory", "the device is full"), "out_of_memory", "the device is full"),
        (OutOfMemory("too large even alone"), "out_of_memory", "too large even alone"),
        (RuntimeError("a secret of the inside"), "internal_error", "log"),
    ],
)
async def test_a_failed_job_says_why_and_the_next_one_runs(
    tmp_path: Path, ending: Failed | Exception, code: str, says: str
) -> None:
    async with running(tmp_path, ScriptedEngine(ending=ending)) as app:
        failed = await app.until((await app.submit()).id, "failed")
        assert failed.error is not None
        assert failed.error.code == code
        assert says in failed.error.message
        assert "secret" not in failed.error.message
        content = await app.client.get(failed.urls.content)
        assert (content.status_code, error_of(content).code) == (409, "content_not_ready")
        app.engine.ending = None
        await app.until((await app.submit()).id, "completed")


class FullDisk(LocalFileSystem):  # type: ignore[misc]
    """A disk that fills up while a file is written: half of it arrives."""

    cachable = False
    full = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: object) -> None:
        if self.full:
            super().pipe_file(path, value[: len(value) // 2], mode, **options)
            raise OSError(errno.ENOSPC, "No space left on device")
        super().pipe_file(path, value, mode, **options)


async def test_a_full_disk_fails_that_job_and_the_service_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        disk = FullDisk()
        swapped = Artifacts(disk, str(tmp_path / "artifacts"))
        # The disk is swapped underneath the running parts, which share one Artifacts.
        app.services.artifacts._fs = swapped._fs
        job = await app.submit()
        disk.full = True
        app.engine.gate.set()
        failed = await app.until(job.id, "failed")
        assert failed.error is not None
        assert failed.error.code == "storage_full"
        assert "space" in failed.error.message
        refused = await app.post()
        assert (refused.status_code, error_of(refused).code) == (507, "storage_full")
        assert await app.stored() == (1, [])
        disk.full = False
        await app.until((await app.submit()).id, "completed")


async def test_a_crash_midway_runs_the_job_again(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        job = await app.submit(seed=3)
        stopping = await app.submit(seed=4)
        await app.until(job.id, "in_progress")
    async with running(tmp_path, ScriptedEngine(capacity=2, gated=True)) as app:
        await app.until(stopping.id, "in_progress")
        await asyncio.to_thread(app.services.store.cancel, stopping.id)  # asked, but the engine is never told
    async with running(tmp_path) as app:
        done = await app.until(job.id, "completed")
        assert done.seed == 3
        assert (await app.until(stopping.id, "cancelled")).error is None
        assert [request.job_id for request in app.engine.requests] == [job.id]


class NamedEngine(ScriptedEngine):
    """Says in its manifests where it ran, as the real one does."""

    @staticmethod
    def result(request: EngineRequest) -> Completed:
        done = ScriptedEngine.result(request)
        engine = {"host": "node-7", "device": "cuda:1", "device_name": "NVIDIA H200"}
        return replace(done, manifest={**done.manifest, "engine": engine})


async def test_a_completed_job_names_its_engine_and_its_video_not_the_machine(tmp_path: Path) -> None:
    async with running(tmp_path, NamedEngine()) as app:
        job = await app.submit()
        assert job.engine is None
        job = await app.until(job.id, "completed")
        assert job.engine == JobEngine(host="node-7", device="cuda:1", device_name="NVIDIA H200")
        manifest = (await app.client.get(job.urls.content, params={"variant": "manifest"})).json()
        assert manifest["engine"] == {"device": "cuda:1", "device_name": "NVIDIA H200"}
        video = (await app.client.get(job.urls.content)).content
        assert video_manifest.read_manifest(video)["engine"] == manifest["engine"]
        assert b"node-7" not in video
