"""A plan for a GPU with little memory: what stays on it, how many clips a call takes, and how many frames a chunk.

From the most convenient way of working to the most careful one, the first whose computed peak fits the budget is
taken. Weights are counted; activations are rehearsed (model.rehearsal); `SLACK` is allowed on top for what is not seen
(the driver's own, kernels' workspaces, holes between allocations).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from model.checkpoint import Checkpoint
from model.conditioners import ImagePair
from model.errors import InvalidRequest
from model.rehearsal import decoder_bytes, denoiser_bytes, encoder_bytes, parameter_bytes
from model.shapes import LatentShape, even_chunks

GIB = 2**30
SLACK_BYTES = int(0.8 * GIB)
"""Of a CUDA context and its libraries. An allowance, not a measurement."""
SLACK_SHARE = 1.15
"""Of activations: workspaces and holes. An allowance, not a measurement."""
MOST_PLACES = 8


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that a checkpoint's parts take on the device, at one clip size.

    Args:
        unet, vae, conditioners: weights.
        denoise: activations of a denoiser call, by places.
        decode: activations of a decoded chunk, by frames.
        encode: activations of encoding a picture.
    """

    unet: int
    vae: int
    conditioners: int
    denoise: Callable[[int], int]
    decode: Callable[[int], int]
    encode: int


@dataclass(frozen=True, slots=True)
class VramPlan:
    """How to stay within a budget.

    Args:
        places: of one denoiser call, at most; below 2, the two places of a guided request take a call each.
        decode_chunk: frames decoded at once, at most.
        offload: whether encoders and autoencoder are on the device only while they are used.
        peak_bytes: what this needs, as computed.
    """

    places: int
    decode_chunk: int
    offload: bool
    peak_bytes: int

    def as_dict(self) -> dict[str, object]:
        """JSON-ready, for a manifest."""
        return asdict(self)


def needs_of(checkpoint: Checkpoint, latent: LatentShape) -> Needs:
    """The needs of a loaded checkpoint whose weights have numbers (not of an export)."""
    conditioners = checkpoint.conditioners
    encoder = conditioners.vision.encoder if isinstance(conditioners, ImagePair) else conditioners.encoder
    return Needs(
        unet=parameter_bytes(checkpoint.unet),
        vae=parameter_bytes(checkpoint.vae),
        conditioners=parameter_bytes(encoder),
        denoise=_in_proportion(lambda places: denoiser_bytes(checkpoint.unet, latent, places)),
        decode=lambda chunk: decoder_bytes(checkpoint.vae, latent, chunk),
        encode=encoder_bytes(checkpoint.vae, latent) if checkpoint.entry.task.pictures else 0,
    )


def _in_proportion(measure: Callable[[int], int]) -> Callable[[int], int]:
    """A call of n places needs n times what a call of one does."""
    one: list[int] = []

    def bytes_of(places: int) -> int:
        if not one:
            one.append(measure(1))
        return one[0] * places

    return bytes_of


def plan(needs: Needs, budget_bytes: int, frames: int, *, asked_chunk: int, overlap: bool) -> VramPlan:
    """The most convenient way of working that fits.

    Args:
        frames: of the clip.
        asked_chunk: frames decoded at once where memory allows.
        overlap: whether chunks are decoded while another clip is denoised, as a service does.

    Raises:
        InvalidRequest: not even the most careful one fits.
    """
    best: VramPlan | None = None
    for places, chunk, offload in _ways(frames, asked_chunk):
        peak = _peak(needs, places, chunk, offload=offload, overlap=overlap)
        best = VramPlan(places, chunk, offload, peak)
        if peak <= budget_bytes:
            return best
    assert best is not None
    raise InvalidRequest(
        f"{budget_bytes / GIB:.1f} GiB are too little: with everything moved off the GPU that can be, it takes "
        f"{best.peak_bytes / GIB:.1f} GiB; give that much, a smaller clip, or --dtype float16",
        param="vram_budget",
        code="vram_budget",
    )


def _ways(frames: int, asked_chunk: int) -> Iterator[tuple[int, int, bool]]:
    """(places, chunk, offload), the most convenient first: batches go first, then residence, then the chunk."""
    largest = max(even_chunks(frames, asked_chunk))
    places = MOST_PLACES
    while places > 2:
        yield places, largest, False
        places //= 2
    for offload in (False, True):
        yield 2, largest, offload
    chunk = largest
    while chunk > 2:
        chunk = (chunk + 1) // 2
        yield 2, chunk, True
    for chunk in (largest, (largest + 1) // 2, 2, 1):
        yield 1, min(chunk, largest), True


def _peak(needs: Needs, places: int, chunk: int, *, offload: bool, overlap: bool) -> int:
    denoise = SLACK_SHARE * needs.denoise(places)
    decode = SLACK_SHARE * needs.decode(chunk)
    encode = SLACK_SHARE * needs.encode
    visitors = (needs.conditioners + needs.vae, 0, needs.vae) if offload else (needs.conditioners + needs.vae,) * 3
    phases = [visitors[0] + encode, visitors[1] + denoise, visitors[2] + decode]
    together = visitors[2] + denoise + decode if overlap else 0
    return int(SLACK_BYTES + needs.unet + max(*phases, together))
