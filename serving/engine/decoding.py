"""Frames of one job, chunk by chunk; and how the chunks shrink when memory runs out.

The chunk plan is part of the result (the decoder's temporal convolutions see the borders), so a video whose plan had
to change is marked as degraded and its manifest says which chunks it was made of.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
from diffusers import AutoencoderKLTemporalDecoder

from model.decode import decode_chunk
from model.sampling.solvers import Latents
from model.shapes import even_chunks
from serving.engine.failures import is_out_of_memory
from serving.engine.memory import relieve

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Decoding:
    """How far a job's frames are.

    Args:
        total: frames of the clip.
        plan: sizes of the chunks still to decode.
        chunks: what is decoded.
        degraded: whether memory made the plan change.
    """

    total: int
    plan: tuple[int, ...]
    chunks: list[np.ndarray] = field(default_factory=list[np.ndarray])
    degraded: bool = False

    @classmethod
    def begin(cls, total: int, largest_chunk: int) -> Decoding:
        """With an even plan."""
        return cls(total, even_chunks(total, largest_chunk))

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
                relieve()
                self.plan = even_chunks(self.total - self.done, (size + 1) // 2)
                self.degraded = True
                logger.warning(
                    "a chunk of %d frames does not fit into memory; the rest is decoded as %s", size, self.plan
                )
                continue
            self.chunks.append(chunk)
            self.plan = self.plan[1:]
            return size
