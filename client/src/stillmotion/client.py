"""`Client`: the service with blocking calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Literal, Unpack

import httpx2

from stillmotion import _batches, _calls, _config, _flows, _streaming, errors
from stillmotion._calls import id_of
from stillmotion._config import JOB_TIMEOUT
from stillmotion._drivers import Driver
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


class Client:
    """A Stillmotion service.

    Args:
        base_url: where it is; else STILLMOTION_BASE_URL, else http://127.0.0.1:8000.
        api_key: sent as a bearer token; else STILLMOTION_API_KEY, else none.
        timeout: seconds for each read, write and connection of a request; 60, and 10 to connect, if left out.
        retry: when a failed request is tried again. A retried POST carries the idempotency key of the first try.
        transport: another httpx2 transport, for tests and special networks.

    Use it as a context manager, or `close()` it. Safe to share between threads. Every method raises the errors of
    `stillmotion.errors`: APIError and its kinds where the service refuses, APIConnectionError where it is not reached.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | httpx2.Timeout | None = None,
        retry: RetryPolicy | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        config = _config.resolve(base_url, api_key, timeout, retry)
        self._context = config.context
        self._http = httpx2.Client(
            base_url=config.base_url, headers=config.headers, timeout=config.timeout, transport=transport
        )
        self._driver = Driver(self._http)

    def generate(
        self,
        image: ImageSource,
        *,
        timeout: float | None = JOB_TIMEOUT,
        interval: float | None = None,
        idempotency_key: str | None = None,
        **settings: Unpack[ImageToVideoSettings],
    ) -> Job:
        """Turn a still into a video and wait for it.

        Args:
            image: a path, the bytes of a file, an open binary file, a Pillow image, or an upload (`upload`).
            timeout: seconds to wait; None for ever.
            interval: seconds between looks; growing from 0.2 to 2 if left out.
            idempotency_key: the same key with the same request gives the same job; a fresh one if left out.
            settings: the fields of `ImageToVideoRequest`.

        Raises:
            JobFailed, JobCancelled, JobExpired: it ended without a video.
            JobTimeout: it did not end in time; it goes on.
        """
        call = _calls.image_to_video(image, settings, idempotency_key)
        return self._driver.run(_flows.generate(self._context, call, timeout, interval))

    def submit(
        self, image: ImageSource, *, idempotency_key: str | None = None, **settings: Unpack[ImageToVideoSettings]
    ) -> Job:
        """Start a generation and come back at once; arguments as in `generate`."""
        return self._driver.run(_flows.ask(self._context, _calls.image_to_video(image, settings, idempotency_key), Job))

    def subscribe(
        self,
        image: ImageSource,
        on_update: Callable[[JobEvent], object],
        *,
        idempotency_key: str | None = None,
        **settings: Unpack[ImageToVideoSettings],
    ) -> Job:
        """As `generate`, following the service's event stream: `on_update` is called with each event as it happens."""
        job = self.submit(image, idempotency_key=idempotency_key, **settings)
        for event in self.stream_events(job):
            job = event.job
            on_update(event)
        return errors.completed(job)

    def text_to_video(
        self,
        prompt: str,
        *,
        wait: bool = True,
        timeout: float | None = JOB_TIMEOUT,
        interval: float | None = None,
        idempotency_key: str | None = None,
        **settings: Unpack[TextToVideoSettings],
    ) -> Job:
        """Turn a prompt into a video; arguments and errors as in `generate`.

        Args:
            prompt: what is to be seen.
            wait: False: come back at once, with the job as it then is.
        """
        call = _calls.text_to_video(prompt, settings, idempotency_key)
        return self._driver.run(_flows.generated(self._context, call, wait, timeout, interval))

    def frame_interpolation(
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
        """Make the frames between two stills; arguments and errors as in `text_to_video` and `generate`.

        Args:
            image: the first frame.
            last_image: the last frame.
        """
        call = _calls.frame_interpolation(image, last_image, settings, idempotency_key)
        return self._driver.run(_flows.generated(self._context, call, wait, timeout, interval))

    def multi_view(
        self,
        image: ImageSource,
        *,
        wait: bool = True,
        timeout: float | None = JOB_TIMEOUT,
        interval: float | None = None,
        idempotency_key: str | None = None,
        **settings: Unpack[MultiViewSettings],
    ) -> Job:
        """Make an orbit around the object in a still; arguments and errors as in `text_to_video` and `generate`."""
        call = _calls.multi_view(image, settings, idempotency_key)
        return self._driver.run(_flows.generated(self._context, call, wait, timeout, interval))

    def extend(
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
        """Make a job's clip longer: another job, whose clip begins as that one's; errors as in `generate`.

        Args:
            job: the one to go on from.
            seconds: how much longer the clip shall be; or
            num_frames: of the whole clip, before interpolation.
            wait: False: come back at once, with the job as it then is.
        """
        call = _calls.extend(id_of(job), {"seconds": seconds, "num_frames": num_frames}, idempotency_key)
        return self._driver.run(_flows.generated(self._context, call, wait, timeout, interval))

    def upload(self, image: LocalImage) -> Upload:
        """Send a picture that later requests, or the lines of a batch, name in place of a file.

        The same bytes are the same upload. It expires (`expires_at`); nobody but the same API key can name it.
        """
        return self._driver.run(_flows.ask(self._context, _calls.upload(image), Upload))

    def get(self, job_id: str) -> Job:
        """The job's state now."""
        return self._driver.run(_flows.ask(self._context, _calls.get_job(job_id), Job))

    def poll(self, job: Job | str, *, timeout: float | None = JOB_TIMEOUT, interval: float | None = None) -> Job:
        """Wait until the job has ended; arguments and errors as in `generate`."""
        return self._driver.run(_flows.poll(self._context, id_of(job), timeout, interval))

    def stream_events(self, job: Job | str, *, after: int = 0) -> Generator[JobEvent, None, None]:
        """Each event of the job, once and in order, until it has ended; a broken stream is taken up where it broke.

        Args:
            after: leave out the events up to this id.
        """
        return self._driver.iterate(_streaming.events(self._context, id_of(job), after))

    def cancel(self, job: Job | str) -> Job:
        """Ask the job to stop at its next step; its state then."""
        return self._driver.run(_flows.ask(self._context, _calls.cancel_job(id_of(job)), Job))

    def delete(self, job: Job | str) -> None:
        """Remove the job and its files."""
        self._driver.run(_flows.delete(self._context, id_of(job)))

    def list(
        self, *, status: JobStatus | None = None, order: Literal["asc", "desc"] = "desc", page_size: int = 50
    ) -> Generator[Job, None, None]:
        """Every job, by time of creation; further pages are fetched as the iteration reaches them."""
        return self._driver.iterate(_flows.list_jobs(self._context, status, order, page_size))

    def create_batch(self, lines: Iterable[BatchLine], *, idempotency_key: str | None = None) -> Batch:
        """Submit many generations as offline work; every line is taken, or none.

        Args:
            lines: made by `stillmotion.batch_line`.
            idempotency_key: the same key with the same lines gives the same batch; a fresh one if left out.
        """
        call = _batches.create(lines, idempotency_key)
        return self._driver.run(_flows.ask(self._context, call, Batch))

    def get_batch(self, batch_id: str) -> Batch:
        """The batch's state now."""
        return self._driver.run(_flows.ask(self._context, _batches.get(batch_id), Batch))

    def poll_batch(self, batch: Batch | str, *, timeout: float | None = None, interval: float | None = None) -> Batch:
        """Wait until all rows of the batch have ended, however they did.

        Raises:
            BatchTimeout: they did not end in `timeout` seconds; they go on.
        """
        return self._driver.run(_batches.poll(self._context, id_of(batch), timeout, interval))

    def cancel_batch(self, batch: Batch | str) -> Batch:
        """Stop the rows that have not ended; the batch's state then."""
        return self._driver.run(_flows.ask(self._context, _batches.cancel(id_of(batch)), Batch))

    def batch_results(self, batch: Batch | str) -> Generator[BatchResult, None, None]:
        """The rows that have ended by now, each once; all of them where the batch is completed."""
        return self._driver.iterate(_batches.results(self._context, id_of(batch)))

    def models(self) -> tuple[ModelInfo, ...]:
        """What can be served."""
        return tuple(self._driver.run(_flows.ask(self._context, _calls.list_models(), ModelList)).data)

    def content(self, job: Job | str, variant: Variant = "video") -> bytes:
        """The job's result in memory; a video is checked against its SHA-256."""
        return self._driver.run(_streaming.content(self._context, job, variant))

    def download_to(self, job: Job | str, path: str | os.PathLike[str], variant: Variant = "video") -> Path:
        """Download the job's result; `path` appears only when it is whole, and a video only if its SHA-256 is right.

        Raises:
            ChecksumMismatch: the bytes were wrong, twice.
            Conflict: the job still runs.
            OSError: `path` cannot be written.
        """
        return self._driver.run(_streaming.download(self._context, job, Path(path), variant))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
