"""What the rest of the service knows of an engine: one request in, a stream of events out.

The gateway's dispatcher speaks only this protocol, so it does not know whether the engine runs in its own process or
behind Triton. Imports no torch. Every arrow carries its own frozen type.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from model.params import OutputFormat, Params
from model.stages import NO_STAGES, Stages

Priority = Literal["high", "normal", "low", "offline"]


@dataclass(frozen=True, slots=True)
class Share:
    """Whose work a request is, and how soon it is wanted: what the policy divides the engine by.

    Args:
        tenant: who is served a fair share: an API key's id, or empty where there are no keys.
        weight: of the tenant's share, against the others'.
        priority: class; `offline` runs in idle capacity only and yields at every step.
        deadline_s: seconds from submission by which the result is wanted; None for whenever.
        beyond_s: seconds of the caller's job that lie beyond this request: of a chained job's other requests. They
            count as its remaining work, so that a long job in short pieces is not taken for a short one.
    """

    tenant: str = ""
    weight: float = 1.0
    priority: Priority = "normal"
    deadline_s: float | None = None
    beyond_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One job for the engine.

    Args:
        job_id: unique among the requests in flight.
        model: which checkpoint, by name.
        params: complete settings, of the type of the checkpoint's task.
        images: the input pictures in the order of the task's spec, each already decoded, limited and stripped by the
            gateway (PNG); none for text-to-video.
        output_format: container and codec of the result.
        share: whose work it is, and how soon it is wanted.
        resume_from: the `state` of a Checkpointed event of the same job, to go on from there; None to begin.
        previews: whether Previewed events are wanted.
        stages: what follows the clip (serving.interpolation); an engine that does not chain refuses them.
        raw: whether the result is for another stage: its video is then the frames as they are, RGB bytes
            [T, H, W, 3], without thumbnail and contact sheet, and its timings name its share of `compute`.
    """

    job_id: str
    model: str
    params: Params
    images: tuple[bytes, ...]
    output_format: OutputFormat
    share: Share = Share()
    resume_from: bytes | None = None
    previews: bool = False
    stages: Stages = NO_STAGES
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Queued:
    """Waits in the queue; `position` 0 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A phase began: `encode`, `denoise`, `decode`, then a chained request's (model.stages.NAMES), or `mux`."""

    phase: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """Solver step `step` of `total` is done; `eta_s` seconds are left, by measured step times (None while unknown).

    Of the phase it comes in: `denoise`, or a later stage's, whose steps are those of all its requests together.
    """

    step: int
    total: int
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """Enough to go on after `step` steps, here or on another engine that serves the same checkpoint.

    Args:
        state: a safetensors file: the row's latents and solver history in float32, a few megabytes at full size.
    """

    step: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Previewed:
    """What the clip will look like, guessed after `step` steps: a small JPEG strip of its frames."""

    step: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Decoded:
    """`frames` of `total` frames are decoded."""

    frames: int
    total: int


@dataclass(frozen=True, slots=True)
class Completed:
    """The result.

    Args:
        video: the encoded container; `video_sha256` is of these bytes.
        frames_sha256: of the decoded RGB frames, [T, H, W, 3] uint8: compare these, never the container's bytes.
        thumbnail: a JPEG of the first frame.
        frames: a contact sheet, PNG.
        manifest: model and version, all parameters, seed, software versions, as JSON-ready values.
        timings: seconds a phase: queued, encode, denoise, decode, mux.
    """

    video: bytes
    video_sha256: str
    frames_sha256: str
    thumbnail: bytes
    frames: bytes
    width: int
    height: int
    num_frames: int
    fps: int
    degraded: bool
    manifest: dict[str, object]
    timings: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Failed:
    """The job failed; `code` and `message` as in model.errors."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class CancelledAt:
    """The job was cancelled after `step` steps and `compute_s` seconds of its own share of compute."""

    step: int
    compute_s: float


EngineEvent = Queued | PhaseStarted | Stepped | Checkpointed | Previewed | Decoded | Completed | Failed | CancelledAt
TERMINAL = (Completed, Failed, CancelledAt)


async def event_stream(
    events: asyncio.Queue[EngineEvent], on_close: Callable[[bool], None]
) -> AsyncIterator[EngineEvent]:
    """A request's events as they come, up to a terminal one.

    Args:
        on_close: called when the stream is closed, with whether it had come to its end.
    """
    ended = False
    try:
        while not ended:
            event = await events.get()
            ended = isinstance(event, TERMINAL)
            yield event
    finally:
        on_close(ended)


def refuse_chained(request: EngineRequest) -> Failed | None:
    """What an engine of single stages answers to a chained request; None to any other."""
    if not request.stages:
        return None
    message = "this engine runs single stages; put a ChainedEngine around it, or leave the stages out"
    return Failed("not_chained", message)


class Engine(Protocol):
    """Serves jobs. One terminal event (Completed, Failed or CancelledAt) ends each stream."""

    async def start(self) -> None:
        """Load and warm what is served; `ready` turns true."""
        ...

    async def stop(self) -> None:
        """Stop between two steps and let go of the device."""
        ...

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be served without loading first."""
        ...

    @property
    def capacity(self) -> int:
        """How many requests the engine takes in flight at once."""
        ...

    def estimate(self, model: str, params: Params) -> float | None:
        """Seconds the request would take on an idle engine, by measured step and decode times; None while unknown."""
        ...

    def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """Take a request; its events, as they happen, until a terminal one."""
        ...

    def cancel(self, job_id: str) -> None:
        """Ask that a job stop at the next step boundary; unknown ids are ignored (it has ended)."""
        ...
