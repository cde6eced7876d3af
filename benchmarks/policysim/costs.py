"""What the simulated device takes for each piece of work.

The large shape is Stable Video Diffusion XT, 25 frames of 576x1024, on an H100 PCIe with TensorRT in float16, from
NVIDIA's model card: 19.10 s for 25 guided steps, 3.38 s for decoding, 22.64 s in all. One guided clip is taken to fill
the device: two in one call are worth at most 1.1 times one after the other.

The small shape is 14 frames of 320x576, by proportion of pixels and frames. How well it batches on a GPU we have not
measured; two rows in one call are taken to be worth 1.2 times two calls, the middle of 1.14 to 1.28 that small latents
gave on 2 CPU cores. A GPU with room to spare would gain more.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.engine.work_items import BatchingProfile


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of clip.

    Args:
        name: also its BatchKey.
        slot_s: a denoiser call of one batch slot.
        marginal: what each further slot adds, as a part of that.
        largest: batch slots of a call, at most.
        chunks, chunk_s: VAE decode.
        encode_s: picture to conditioning.
    """

    name: str
    slot_s: float
    marginal: float
    largest: int
    chunks: int
    chunk_s: float
    encode_s: float

    def call_s(self, slots: int) -> float:
        """A denoiser call."""
        return self.slot_s * (1 + self.marginal * (slots - 1))

    @property
    def batching(self) -> BatchingProfile:
        """What a profile of these calls says: what a second row, guided where two fit, adds to the first."""
        row = 2 if self.largest >= 4 else 1
        return BatchingProfile(self.largest, self.call_s(2 * row) / self.call_s(row) - 1)


def _shape(
    name: str, guided_s: float, gain: float, largest: int, decode_s: float, chunks: int, encode_s: float
) -> Shape:
    """A shape by its guided step and by how much two slots of one call gain over two calls."""
    marginal = 2 / gain - 1
    return Shape(name, guided_s / (1 + marginal), marginal, largest, chunks, decode_s / chunks, encode_s)


_SMALLER = 14 / 25 * (320 * 576) / (576 * 1024)

LARGE = _shape("25x576x1024", 19.10 / 25, 1.1, 2, 3.38, 4, 0.16)
SMALL = _shape("14x320x576", 19.10 / 25 * _SMALLER, 1.2, 8, 3.38 * _SMALLER, 2, 0.16 * _SMALLER)
