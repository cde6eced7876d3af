"""`AsyncClient`: the service with asyncio. Every method as in `Client`, where each is described."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Literal, Unpack

import httpx2

from stillmotion import _batches, _calls, _config, _flows, _streaming, errors
from stillmotion._calls import id_of
from stillmotion._config import JOB_TIMEOUT
from stillmotion._drivers import AsyncDriver
from stillmotion._image import ImageSource, LocalImage
from stillmotion._retry import RetryPolicy
from stillmotion._settings import (
    FrameInterpolationSettings,
    ImageToVideoSettings,
    MultiViewSettings,
    TextToVideoSettings,
)
from stillmotion.types import (
    Batch,
    BatchLine,
    BatchResult,
    Job,
    JobEvent,
    JobStatus,
    ModelInfo,
    ModelList,
    Upload,
    Variant,
)


class AsyncClient:
    """A Stillmotion service, with asyncio; arguments and errors as in `Client`.

    Pictures are read and downloads written without leaving the event loop's thread: both are small.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | httpx2.Timeout | None = None,
        retry: RetryPolicy | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        config = _config.resolve(base_url, api_key, timeout, retry)
        self._context = config.context
        self._http = httpx2.AsyncClient(
            base_url=config.base_url, headers=config.headers, timeout=config.timeout, transport=transport
        )
        self._driver = AsyncDriver(self._http)

    async def generate(
        self,
        image: ImageSource,
        *,
        timeout: float | None = JOB_TIMEOUT,
        interval: float | None = None,
        idempotency_key: str | None = None,
        **settings: Unpack[ImageToVideoSettings],
    ) -> Job:
        """Turn a still into a video and wait for it."""
        call = _calls.image_to_video(image, settings, idempotency_key)
        return await self._driver.run(_flows.generate(self._context, call, timeout, interval))

    async def submit(
        self, image: ImageSource, *, idempotency_key: str | None = None, **settings: Unpack[ImageToVideoSettings]
    ) -> Job:
        """Start a generation and come back at once."""
        call = _calls.image_to_video(image, settings, idempotency_key)
        return await self._driver.run(_flows.ask(self._context, call, Job))

    async def subscribe(
        self,
        image: ImageSource,
        on_update: Callable[[JobEvent], object],
        *,
        idempotency_key: str | None = None,
        **settings: Unpack[ImageToVideoSettings],
    ) -> Job:
        """As `generate`, following the event stream; what `on_update` returns is awaited if it can be."""
        job = await self.submit(image, idempotency_key=idempotency_key, **settings)
        async for event in self.stream_events(job):
            job = event.job
            result = on_update(event)
            if inspect.isawaitable(result):
                await result
        return errors.completed(job)

    async def text_to_video(
        self,
        prompt: str,
        *,
        wait: bool = True,
        timeout: float | None = JOB_TIMEOUT,
        interval: float | None = None,
        idempotency_key: str | None = None,
        **settings: Unpack[TextToVideoSettings],
    ) -> Job:
        """Turn a prompt into a video; with `wait=False`, come back at once."""
        call = _calls.text_to_video(prompt, settings, idempotency_key)
        return await self._driver.run(_flows.generated(self._context, call, wait, timeout, interval))

    async def frame_interpolation(
        self,
        image: ImageSource,
        last_image: ImageSource,
        *,
        wait: bool = True,
        timeout: float | None = JOB_TIMEOUT,
        interval: float | None = None,
        idempotency_key: str | None = None,
        **settings: Unpack[FrameInterpolationSettings],
    ) -> Job:
        """Make the frames between two stills."""
        call = _calls.frame_interpolation(image, last_image, settings, idempotency_key)
        return await self._driver.run(_flows.generated(self._context, call, wait, timeout, interval))

    async def multi_view(
        self,
        image: ImageSource,
        *,
        wait: bool = True,
        timeout: float | None = JOB_TIMEOUT,
        interval: float | None = None,
        idempotency_key: str | None = None,
        **settings: Unpack[MultiViewSettings],
    ) -> Job:
        """Make an orbit around the object in a still."""
        call = _calls.multi_view(image, settings, idempotency_key)
        return await self._driver.run(_flows.generated(self._context, call, wait, timeout, interval))

    async def extend(
        self,
        job: Job | str,
        *,
        seconds: float | None = None,
        num_frames: int | None = None,
        wait: bool = True,
        timeout: float | None = JOB_TIMEOUT,
        interval: float | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Make a job's clip longer, by `seconds` or to `num_frames`."""
        call = _calls.extend(id_of(job), {"seconds": seconds, "num_frames": num_frames}, idempotency_key)
        return await self._driver.run(_flows.generated(self._context, call, wait, timeout, interval))

    async def upload(self, image: LocalImage) -> Upload:
        """Send a picture that later requests, or the lines of a batch, name in place of a file."""
        return await self._driver.run(_flows.ask(self._context, _calls.upload(image), Upload))

    async def get(self, job_id: str) -> Job:
        """The job's state now."""
        return await self._driver.run(_flows.ask(self._context, _calls.get_job(job_id), Job))

    async def poll(self, job: Job | str, *, timeout: float | None = JOB_TIMEOUT, interval: float | None = None) -> Job:
        """Wait until the job has ended."""
        return await self._driver.run(_flows.poll(self._context, id_of(job), timeout, interval))

    def stream_events(self, job: Job | str, *, after: int = 0) -> AsyncGenerator[JobEvent, None]:
        """Each event of the job, once and in order, until it has ended."""
        return self._driver.iterate(_streaming.events(self._context, id_of(job), after))

    async def cancel(self, job: Job | str) -> Job:
        """Ask the job to stop at its next step; its state then."""
        return await self._driver.run(_flows.ask(self._context, _calls.cancel_job(id_of(job)), Job))

    async def delete(self, job: Job | str) -> None:
        """Remove the job and its files."""
        await self._driver.run(_flows.delete(self._context, id_of(job)))

    def list(
        self, *, status: JobStatus | None = None, order: Literal["asc", "desc"] = "desc", page_size: int = 50
    ) -> AsyncGenerator[Job, None]:
        """Every job, by time of creation."""
        return self._driver.iterate(_flows.list_jobs(self._context, status, order, page_size))

    async def create_batch(self, lines: Iterable[BatchLine], *, idempotency_key: str | None = None) -> Batch:
        """Submit many generations as offline work; every line is taken, or none."""
        call = _batches.create(lines, idempotency_key)
        return await self._driver.run(_flows.ask(self._context, call, Batch))

    async def get_batch(self, batch_id: str) -> Batch:
        """The batch's state now."""
        return await self._driver.run(_flows.ask(self._context, _batches.get(batch_id), Batch))

    async def poll_batch(
        self, batch: Batch | str, *, timeout: float | None = None, interval: float | None = None
    ) -> Batch:
        """Wait until all rows of the batch have ended."""
        return await self._driver.run(_batches.poll(self._context, id_of(batch), timeout, interval))

    async def cancel_batch(self, batch: Batch | str) -> Batch:
        """Stop the rows that have not ended."""
        return await self._driver.run(_flows.ask(self._context, _batches.cancel(id_of(batch)), Batch))

    def batch_results(self, batch: Batch | str) -> AsyncGenerator[BatchResult, None]:
        """The rows that have ended by now, each once, however they did."""
        return self._driver.iterate(_batches.results(self._context, id_of(batch)))

    async def models(self) -> tuple[ModelInfo, ...]:
        """What can be served."""
        answer = await self._driver.run(_flows.ask(self._context, _calls.list_models(), ModelList))
        return tuple(answer.data)

    async def content(self, job: Job | str, variant: Variant = "video") -> bytes:
        """The job's result in memory; a video is checked against its SHA-256."""
        return await self._driver.run(_streaming.content(self._context, job, variant))

    async def download_to(self, job: Job | str, path: str | os.PathLike[str], variant: Variant = "video") -> Path:
        """Download the job's result; `path` appears only when it is whole and right."""
        return await self._driver.run(_streaming.download(self._context, job, Path(path), variant))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
