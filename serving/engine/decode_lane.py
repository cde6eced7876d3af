"""The decode lane: chunks of frames beside the step loop, on a thread and, on a GPU, a stream of their own."""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch

from serving.engine.job import Job, row_of
from serving.engine.protocol import Decoded
from serving.engine.settings import EngineSettings
from serving.engine.stats import Recorder


class DecodeLane:
    """Decodes one chunk at a time. Called from one thread."""

    def __init__(self, settings: EngineSettings, recorder: Recorder) -> None:
        self._settings = settings
        self._recorder = recorder
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def chunk(self, job: Job, *, alone: bool) -> bool:
        """Decode the job's next chunk; whether it was the last.

        Args:
            alone: whether nothing is being denoised; then every core is the decoder's, else half of them.
        """
        assert job.decoding is not None
        settings = self._settings
        torch.set_num_threads(settings.cores if alone and not settings.deterministic else settings.fixed_threads)
        params, vae = job.request.params, job.model.checkpoint.vae
        started = time.perf_counter()
        with self._stream(job.model.checkpoint.unet.device), job.model.decoding():
            size = job.decoding.next(vae, row_of(job).latents)
        seconds = time.perf_counter() - started
        job.compute_s += seconds
        self._recorder.decoded(seconds)
        if alone:
            job.model.profile.observe_decode(size * params.height * params.width, seconds)
        job.deliver(Decoded(job.decoding.done, params.num_frames))
        return job.decoding.complete

    def _stream(self, device: torch.device) -> torch.cuda.StreamContext | nullcontext[None]:
        """The lane's own stream. What it reads is ready: the step lane looked at the finished latents' values."""
        if device.type != "cuda":
            return nullcontext()
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return torch.cuda.stream(self._streams[device])
