"""The upscaling stage of a chained job: its frames made larger one by one, in a thread of this process.

Some frames at a time are kept (serving.interpolation.pair_store), so that a job that resumes goes on behind them; a
cancelled job stops behind the frame that is in work.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Final

import numpy as np

from model.errors import StillmotionError
from model.interpolation import Frames
from model.media.upscale import Upscaler
from model.stages import UpscaleStage
from serving.background import run_in_thread
from serving.engine.protocol import CancelledAt, EngineEvent, Failed, Stepped
from serving.interpolation.assemble import upscaled
from serving.interpolation.pair_store import PairStore, Rendered, larger_name

RUN: Final = 8
"""Frames of one file in the store."""


def runs_of(frames: int) -> int:
    """How many files so many frames take in the store."""
    return -(-frames // RUN)


class Upscaling:
    """Makes one job's frames larger.

    Args:
        stage: by how much, and by what.
        upscaler: that which it names.
        clip: what is made larger.
        store: of larger frames.
        turn: held while a frame is in work, so that few jobs' frames are at once.
    """

    phase = "upscale"

    def __init__(
        self, stage: UpscaleStage, upscaler: Upscaler, clip: Rendered, store: PairStore, turn: asyncio.Semaphore
    ) -> None:
        self._stage, self._upscaler, self._clip, self._store, self._turn = stage, upscaler, clip, store, turn
        self._cancelled = False
        self._parts: list[Frames] = []
        self.ending: Failed | CancelledAt | None = None
        self.step = 0
        self.compute_s = 0.0

    def cancel(self) -> None:
        """Begin no further frame."""
        self._cancelled = True

    async def run(self) -> AsyncGenerator[EngineEvent, None]:
        """Make every frame larger; a step is a frame."""
        frames, began, found = self._clip.frames, time.monotonic(), 0
        for index in range(runs_of(len(frames))):
            part = frames[index * RUN : (index + 1) * RUN]
            digest = hashlib.sha256(part.tobytes()).hexdigest()
            mark = f"{self._stage.network}@{self._upscaler.version} x{self._stage.factor} of {digest}"
            stored = await run_in_thread(self._store.rendered, larger_name(index), mark)
            if stored is not None:
                self._parts.append(stored.frames)
                self.step += len(part)
                found += len(part)
                yield Stepped(self.step, len(frames), self._eta(began, found))
                continue
            larger: list[Frames] = []
            for frame in part:
                if self._cancelled:
                    self.ending = CancelledAt(self.step, self.compute_s)
                    return
                try:
                    async with self._turn:
                        larger.append(await self._one(frame))
                except StillmotionError as error:
                    self.ending = Failed(error.code, error.message)
                    return
                self.step += 1
                yield Stepped(self.step, len(frames), self._eta(began, found))
            made = Rendered(np.stack(larger), False, {}, {})
            self._parts.append(made.frames)
            await run_in_thread(self._store.put, larger_name(index), mark, made)

    def clip(self) -> Rendered:
        """The larger clip; blocks. Its manifest says how under `upscale`."""
        stage = replace(self._stage, version=self._upscaler.version)
        return upscaled(self._clip, np.concatenate(self._parts), stage)

    async def _one(self, frame: Frames) -> Frames:
        began = time.monotonic()
        larger = await run_in_thread(self._upscaler.larger, frame, self._stage.factor)
        self.compute_s += time.monotonic() - began
        return larger

    def _eta(self, began: float, found: int) -> float | None:
        made = self.step - found
        return (time.monotonic() - began) / made * (len(self._clip.frames) - self.step) if made else None
