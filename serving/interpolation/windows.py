"""The extending stage of a chained job: windows, one after the other, each an ordinary request of the engine.

A window's picture is the last frame of the clip so far, so there is one at a time; its row is batched with everybody's,
checkpointed and contained as any row is. What a window added is kept (serving.interpolation.pair_store) under the hash
of that frame: a job that resumes goes on in the middle of the first window that is not whole.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any

from PIL import Image

from model.errors import InvalidRequest
from model.interpolation import Frames
from model.media.image import to_png
from model.stages import ExtendStage, continue_clip
from serving.background import run_in_thread
from serving.engine.protocol import (
    CancelledAt,
    Checkpointed,
    Completed,
    Engine,
    EngineEvent,
    EngineRequest,
    Failed,
    Share,
    Stepped,
)
from serving.engine.wrapper import closing_events
from serving.interpolation.assemble import extended
from serving.interpolation.pair_store import PairStore, Rendered, window_name, window_state

_log = logging.getLogger(__name__)


class Windows:
    """Runs the windows of one job.

    Args:
        engine: of single stages.
        job: the chained request.
        stage: how long the clip becomes, and by what.
        clip: the generated one.
        store: where windows and checkpoints are kept.
        served: the checkpoint's version that is served now.
        share: whose work it is; of each window, but for `beyond_s`.
        beyond_s: seconds of the stages after this one.
    """

    phase = "extend"

    def __init__(
        self,
        engine: Engine,
        job: EngineRequest,
        stage: ExtendStage,
        clip: Rendered,
        store: PairStore,
        *,
        served: str,
        share: Share,
        beyond_s: float = 0.0,
    ) -> None:
        self._engine, self._job, self._stage, self._clip, self._store = engine, job, stage, clip, store
        self._share, self._beyond_s = share, beyond_s
        self._mark = f"{stage.model}@{served}"
        self._each = stage.params.num_inference_steps
        self._running: str | None = None
        self._cancelled = False
        self._windows: list[Rendered] = []
        self._whole_steps = 0
        self._part_steps = 0
        self.ending: Failed | CancelledAt | None = None
        self.compute_s = 0.0

    @property
    def step(self) -> int:
        """Steps made, of all windows."""
        return self._whole_steps + self._part_steps

    def cancel(self) -> None:
        """Begin no more, and stop what runs at its next step."""
        self._cancelled = True
        if self._running is not None:
            self._engine.cancel(self._running)

    async def run(self) -> AsyncGenerator[EngineEvent, None]:
        """Make every window; steps as they happen, those of all windows together."""
        last = self._clip.frames[-1]
        for index in range(self._stage.windows):
            if self._cancelled:
                self.ending = CancelledAt(self.step, self.compute_s)
                return
            picture = await run_in_thread(_png, last)
            mark = f"{self._mark} of {hashlib.sha256(picture).hexdigest()}"
            window = await run_in_thread(self._store.rendered, window_name(index), mark)
            if window is None:
                async with aclosing(self._make(index, picture, mark)) as events:
                    async for event in events:
                        yield event
                if self.ending is not None:
                    return
                window = self._windows.pop()
                window = await run_in_thread(self._joined, index, last, window)
                await run_in_thread(self._store.put, window_name(index), mark, window)
                await run_in_thread(self._store.discard, window_state(index))
            self._windows.append(window)
            self.compute_s += window.compute_s
            self._whole_steps, self._part_steps = self._whole_steps + self._each, 0
            yield self._stepped(None)
            last = window.frames[-1]

    def clip(self) -> Rendered:
        """The clip, extended; blocks. Its manifest says how under `extend`."""
        return extended(self._clip, self._windows, self._stage)

    def _joined(self, index: int, last: Frames, window: Rendered) -> Rendered:
        frames, drift = continue_clip(self._clip.frames[0], last, window.frames)
        manifest: dict[str, Any] = {**window.manifest, "drift": asdict(drift)}
        return replace(window, frames=frames[: self._stage.window_frames(index)], manifest=manifest)

    async def _make(self, index: int, picture: bytes, mark: str) -> AsyncGenerator[EngineEvent, None]:
        """One window, on from its checkpoint if it has one that is of use; it is appended, or `ending` is set."""
        state = await run_in_thread(self._store.checkpoint, window_state(index), mark)
        for attempt in (state, None) if state is not None else (None,):
            request = self._request(index, picture, attempt)
            async with aclosing(self._follow(request, index, mark)) as events:
                async for event in events:
                    yield event
            unusable = isinstance(self.ending, Failed) and self.ending.code == InvalidRequest.code
            if attempt is None or not unusable or self._part_steps:
                return
            _log.warning("window %d of job %s begins anew: %s", index, self._job.job_id, self.ending)
            await run_in_thread(self._store.discard, window_state(index))

    async def _follow(self, request: EngineRequest, index: int, mark: str) -> AsyncGenerator[EngineEvent, None]:
        self._running, self.ending = request.job_id, None
        try:
            async with closing_events(self._engine, request) as events:
                async for event in events:
                    match event:
                        case Stepped(step, _, eta_s):
                            self._part_steps = step
                            yield self._stepped(eta_s)
                        case Checkpointed(_, state):
                            await run_in_thread(self._store.put_checkpoint, window_state(index), mark, state)
                        case Completed():
                            self._windows.append(Rendered.of(event))
                            return
                        case CancelledAt(_, compute_s):
                            self.compute_s += compute_s
                            self.ending = CancelledAt(self.step, self.compute_s)
                            return
                        case Failed(code, message):
                            self.ending = Failed(code, f"window {index + 1}: {message}")
                            return
                        case _:  # the phases of one window are not the job's
                            pass
                    if self._cancelled:  # it may have been requested before the engine knew of the request
                        self._engine.cancel(request.job_id)
            self.ending = Failed("generation_failed", "the engine ended a window's events without a result")
        finally:
            self._running = None

    def _request(self, index: int, picture: bytes, state: bytes | None) -> EngineRequest:
        one = self._engine.estimate(self._stage.model, self._stage.params) or 0.0
        left = (self._stage.windows - index - 1) * one
        return EngineRequest(
            f"{self._job.job_id}.window-{index}",
            self._stage.model,
            self._stage.params,
            (picture,),
            self._job.output_format,
            replace(self._share, beyond_s=left + self._beyond_s),
            resume_from=state,
            raw=True,
        )

    def _stepped(self, eta_s: float | None) -> Stepped:
        total = self._stage.windows * self._each
        one = self._engine.estimate(self._stage.model, self._stage.params)
        if one is None:
            return Stepped(self.step, total, None)
        whole = self._whole_steps // self._each
        windows_left = self._stage.windows - whole - (0 if eta_s is None else 1)
        return Stepped(self.step, total, (eta_s or 0.0) + windows_left * one + self._beyond_s)


def _png(frame: Frames) -> bytes:
    return to_png(Image.fromarray(frame))
