"""A StepLoop driven by a script: who is submitted when, what each job was told, and which rows each call served."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from safetensors.torch import load
from torch import Tensor

from model.denoiser import DenoiserInputs
from serving.engine.loaded_model import LoadedModel
from serving.engine.loop import StepLoop
from serving.engine.protocol import (
    TERMINAL,
    Checkpointed,
    Completed,
    EngineEvent,
    EngineRequest,
    PhaseStarted,
    Share,
    Stepped,
)
from serving.engine.settings import EngineSettings
from serving.engine.stats import EngineStats

KEEP_ALL = EngineSettings(device="cpu", warm_up=False, max_batch=8, checkpoint_every_s=0.0)
"""With a stored state after every step: the last one holds the finished latents."""


@dataclass
class Script:
    """Runs requests through one StepLoop.

    Args:
        on_event: called with every event, on the thread that delivered it.
        skip_decode: cancel each job when its latents are finished.
    """

    model: LoadedModel
    settings: EngineSettings = KEEP_ALL
    skip_decode: bool = False
    on_event: Callable[[StepLoop, str, EngineEvent], None] = lambda *_: None
    events: dict[str, list[EngineEvent]] = field(default_factory=lambda: defaultdict(list))
    timeline: list[tuple[str, EngineEvent]] = field(default_factory=list)

    def run(self, *requests: EngineRequest, after: dict[int, EngineRequest] | None = None) -> EngineStats:
        """Serve them all.

        Args:
            after: requests that are submitted when so many steps were made in all.
        """
        loop = StepLoop({self.model.entry.name: self.model}, self.settings)
        later = dict(after or {})
        pending = {request.job_id for request in [*requests, *later.values()]}
        lock = threading.RLock()
        steps = 0

        def submit(request: EngineRequest) -> None:
            loop.submit(request, lambda event: deliver(request.job_id, event))

        def deliver(job_id: str, event: EngineEvent) -> None:
            nonlocal steps
            with lock:
                self.events[job_id].append(event)
                self.timeline.append((job_id, event))
                steps += isinstance(event, Stepped)
                due = [request for step, request in list(later.items()) if step <= steps and later.pop(step)]
                if isinstance(event, TERMINAL):
                    pending.discard(job_id)
            for request in due:
                submit(request)
            if self.skip_decode and event == PhaseStarted("decode"):
                loop.cancel(job_id)
            self.on_event(loop, job_id, event)
            if not pending:
                loop.stop()

        for request in requests:
            submit(request)
        loop.run()
        return loop.stats()

    def last(self, job_id: str) -> EngineEvent:
        """The terminal event."""
        return self.events[job_id][-1]

    def completed(self, job_id: str) -> Completed:
        """The result."""
        done = self.last(job_id)
        assert isinstance(done, Completed), done
        return done

    def states(self, job_id: str) -> dict[int, bytes]:
        """Stored states by step."""
        return {event.step: event.state for event in self.events[job_id] if isinstance(event, Checkpointed)}

    def latents(self, job_id: str) -> Tensor:
        """The finished latents."""
        states = self.states(job_id)
        return load(states[max(states)])["x"]

    def steps_between(self, first: EngineEvent, last: EngineEvent, of: set[str]) -> int:
        """Steps that some jobs made between two events of the timeline, by identity."""
        order = [event for _, event in self.timeline]
        start = next(n for n, event in enumerate(order) if event is first)
        end = next(n for n, event in enumerate(order) if event is last)
        return sum(job_id in of and isinstance(event, Stepped) for job_id, event in self.timeline[start:end])


def ask(model: LoadedModel, job_id: str, picture: bytes, share: Share | None = None, **asked: object) -> EngineRequest:
    """A request whose seed follows from its name."""
    params = model.entry.resolve(asked, seed=sum(map(ord, job_id)))
    return EngineRequest(job_id, model.entry.name, params, (picture,), "mp4", share or Share())


@dataclass
class Watched:
    """A denoiser that notes the motion buckets of every call, and fails where it is told to."""

    inner: Callable[[DenoiserInputs], Tensor]
    fails: Callable[[set[int], int], BaseException | None] = lambda _buckets, _places: None
    calls: list[set[int]] = field(default_factory=list)

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        buckets = {int(bucket) for bucket in inputs.vector[:, 1]}
        if (error := self.fails(buckets, inputs.batch_size)) is not None:
            raise error
        self.calls.append(buckets)
        return self.inner(inputs)


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Of two latents."""
    return float((one - other).abs().max()) if one.shape == other.shape else float(torch.inf)
