"""A request inside the engine: its phases, timings and decode progress, and what is done to it around denoiser calls.

Encode, check, decode and finish are shared by the engine and by `generate` on the command line. The video manifest
names all that the pixels depend on, so that a video can be replayed. One thread at a time changes a job: the lane of
its phase.

Frames are decoded in chunks, and the chunk plan is part of the result (the decoder's temporal convolutions see the
borders). A plan that had to shrink because memory ran out marks the video as degraded, and its manifest lists the
chunks it was made of.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from PIL.Image import Image

from model.errors import GenerationFailed
from model.media.end_frames import restore_end_frames
from model.media.image import fit_picture, open_picture
from model.params import OutputFormat, Params
from model.sampling.row import BatchKey, Row
from model.sampling.sampler import prepare_row
from model.sampling.solvers import Latents
from model.shapes import ChunkPlan, chunk_sizes
from model.vae import decode_chunk
from serving.engine.loaded_model import LoadedModel
from serving.engine.mux import AheadEncoder
from serving.engine.oom import free_cached_memory, is_out_of_memory, release_traceback
from serving.engine.profile import SmoothedRate
from serving.engine.protocol import EngineEvent, EngineRequest, PhaseStarted

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class DecodeProgress:
    """How far a job's frames are.

    Args:
        total: frames of the clip.
        plan: sizes of the chunks still to decode.
        split: how they were laid out.
        chunks: what is decoded.
        degraded: whether memory made the plan change.
    """

    total: int
    plan: tuple[int, ...]
    chunks: list[np.ndarray] = field(default_factory=list[np.ndarray])
    degraded: bool = False
    split: ChunkPlan = "even"

    @classmethod
    def begin(cls, total: int, largest_chunk: int, split: ChunkPlan = "even") -> DecodeProgress:
        """With nothing decoded yet."""
        return cls(total, chunk_sizes(total, largest_chunk, split), split=split)

    @property
    def done(self) -> int:
        """Frames decoded."""
        return sum(map(len, self.chunks))

    @property
    def complete(self) -> bool:
        """Whether every frame is."""
        return not self.plan

    @property
    def sizes(self) -> list[int]:
        """Sizes of the chunks decoded so far, for the manifest."""
        return [len(chunk) for chunk in self.chunks]

    def frames(self) -> np.ndarray:
        """All of them, [T, H, W, 3] uint8."""
        return np.concatenate(self.chunks)

    def next(self, vae: AutoencoderKLTemporalDecoder, latents: Latents) -> int:
        """Decode one more chunk; returns its frames. Out of memory, the rest is planned in halves of the chunk.

        Raises:
            MemoryError, RuntimeError: not even a single frame fits, or the decoder failed otherwise.
        """
        while True:
            size = self.plan[0]
            try:
                chunk = decode_chunk(vae, latents[self.done : self.done + size])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                release_traceback(error)
            else:
                self.chunks.append(chunk)
                self.plan = self.plan[1:]
                return size
            # After the except block: within it, the error would keep the failed call's activations alive.
            free_cached_memory()
            self.plan = chunk_sizes(self.total - self.done, (size + 1) // 2, self.split)
            self.degraded = True
            logger.warning("a chunk of %d frames does not fit into memory; the rest is decoded as %s", size, self.plan)


Phase = Literal["queued", "encode", "denoise", "decode", "mux"]


@dataclass(slots=True, eq=False)
class Job:
    """A request and how far it is.

    Args:
        request: as it was submitted.
        deliver: hands an event to whoever follows the job; may be called from any thread.
        arrival: counts requests as they came.
        model: the checkpoint it is for.
        key: its rows' BatchKey, known before there is a row.
        pictures: the request's, opened and fitted to the clip by the encode phase.
        row: set by the encode phase.
        resident: whether it counts among the rows in work; a parked one keeps its row and waits.
        decoding: set when the decode phase begins.
        encoder: encodes its chunks as they are decoded; None where that is not possible.
        compute_s: its own share of compute: a batched call is split by the batch slots of its row.
        expected_end: (when it was said, seconds left as said then) of the first estimate, to judge estimates by.
        checkpoint_step, checkpoint_at: of the last stored state.
        retried: its last call failed for want of memory, and is being tried again.
        cancel_requested: set from any thread, read between steps.
        ended: a terminal event was delivered.
    """

    request: EngineRequest
    deliver: Callable[[EngineEvent], None]
    arrival: int
    model: LoadedModel
    key: BatchKey
    phase: Phase = "queued"
    pictures: tuple[Image, ...] = ()
    row: Row | None = None
    resident: bool = False
    decoding: DecodeProgress | None = None
    encoder: AheadEncoder | None = None
    timings: dict[str, float] = field(default_factory=dict[str, float])
    pace: SmoothedRate = field(default_factory=SmoothedRate)
    compute_s: float = 0.0
    position: int = -1
    expected_end: tuple[float, float] | None = None
    checkpoint_step: int = 0
    checkpoint_at: float = field(default_factory=time.perf_counter)
    retried: bool = False
    cancel_requested: bool = False
    ended: bool = False
    submitted: float = field(default_factory=time.perf_counter)
    _since: float = field(default_factory=time.perf_counter)
    _lap: float = 0.0

    @property
    def id(self) -> str:
        """The request's job id."""
        return self.request.job_id

    @property
    def step(self) -> int:
        """Completed solver steps; 0 before there is a row."""
        return 0 if self.row is None else self.row.step

    def enter(self, phase: Phase) -> None:
        """Note how long the phase before took, and announce the new one."""
        self.close_phase()
        self.phase = phase
        self._lap = self._since
        self.deliver(PhaseStarted(phase))

    def close_phase(self) -> None:
        """Note how long the current phase took."""
        now = time.perf_counter()
        self.timings[self.phase] = now - self._since
        self._since = now

    def lap(self) -> float:
        """Seconds since the last lap, or since the phase began: waiting for others included, as the caller feels it."""
        now = time.perf_counter()
        before, self._lap = self._lap, now
        return now - before


def row_of(job: Job) -> Row:
    """The row of a job past its encode phase."""
    assert job.row is not None
    return job.row


def begin_decoding(job: Job) -> DecodeProgress:
    """Lay out the chunks of a denoised job; smaller than requested where the GPU's memory budget requires it."""
    params = job.request.params
    largest = job.model.decode_chunk(params.decode_chunk_size)
    job.decoding = DecodeProgress.begin(params.num_frames, largest, job.model.settings.decode_chunk_plan)
    job.decoding.degraded = largest < params.decode_chunk_size
    return job.decoding


def _lora(model: LoadedModel, params: Params) -> dict[str, object] | None:
    """The adapter that a video was made with: beside its name and version, what it is."""
    use = params.adapter
    if use is None:
        return None
    entry = next(one for one in model.entry.loras if one.name == use.name)
    fields = {"name": use.name, "version": use.version, "scale": use.scale}
    return fields | {"rank": entry.rank, "alpha": entry.alpha, "base": entry.base}


def video_manifest(
    model: LoadedModel, params: Params, output_format: OutputFormat, decoding: DecodeProgress
) -> dict[str, object]:
    """Everything the pixels depend on, as JSON-ready values."""
    entry = model.entry
    settings = replace(model.settings, device=str(model.checkpoint.unet.device), threads=model.settings.cores)
    return {
        "task": entry.task.name,
        "model": entry.name,
        "model_version": entry.version,
        "params": asdict(params),
        "seed": params.seed,
        "output_format": output_format,
        "decode_chunks": decoding.sizes,
        "degraded": decoding.degraded,
        **settings.as_manifest(),
        "engine": {"host": platform.node(), "device": settings.device, "device_name": model.machine.device},
        "lora": _lora(model, params),
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in ("diffusers", "transformers", "av", "numpy", "pillow")},
        },
    }


def fitted_pictures(request: EngineRequest) -> tuple[Image, ...]:
    """The request's pictures, opened and fitted to the clip: once a job (Job.pictures).

    Raises:
        UnreadableImage, ImageTooLarge: one of them.
    """
    return tuple(fit_picture(open_picture(image), *request.params.picture_fit) for image in request.images)


def encode_request(model: LoadedModel, request: EngineRequest, pictures: Sequence[Image]) -> Row:
    """Encode phase: prompt or pictures become conditioning; the row is at its first noise level.

    Args:
        pictures: those of `fitted_pictures`.

    Raises:
        InvalidRequest: a setting the checkpoint cannot serve, or a LoRA that is not here.
    """
    params = request.params
    model.check_lora(params)
    with model.encoding():
        row = prepare_row(model.checkpoint, params, pictures)
    return replace(row, guidance_interval=model.settings.guidance_interval)


def synchronize(device: torch.device) -> None:
    """Wait for the work queued on the device's current stream, so that a clock read next has measured it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def finished_frames(model: LoadedModel, pictures: Sequence[Image], decoding: DecodeProgress) -> np.ndarray:
    """What the request gets of its decoded frames, [T, H, W, 3] uint8; `pictures` are the ends of some tasks."""
    frames = decoding.frames()
    if not model.entry.task.restores_ends:
        return frames
    return restore_end_frames(frames, [np.asarray(picture) for picture in pictures], model.entry.frame_noise)


def check_finite(row: Row) -> None:
    """Refuse to decode latents that overflowed: better an error than a black video.

    Raises:
        GenerationFailed: they did.
    """
    if not bool(row.latents.isfinite().all()):
        raise GenerationFailed(
            f"the latents are not finite after {row.num_steps} steps; try less guidance, or float32", code="not_finite"
        )
