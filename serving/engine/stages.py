"""The phases of one job before and after its steps, shared by the engine and by `generate` on the command line."""

from __future__ import annotations

from model.decode import decode_chunk
from model.errors import GenerationFailed, InvalidRequest
from model.image import fit_picture, open_picture
from model.params import ImageToVideoParams
from model.sampling.prepare import begin_row
from model.sampling.row import Row
from model.shapes import even_chunks
from serving.engine.job import Job
from serving.engine.loaded import LoadedModel
from serving.engine.protocol import Decoded, EngineRequest


def encode_request(model: LoadedModel, request: EngineRequest) -> Row:
    """Encode phase: the picture, fitted to the clip, becomes conditioning; the row is at its first noise level.

    Raises:
        UnreadableImage, ImageTooLarge: the picture.
        InvalidRequest: a setting the checkpoint cannot serve.
    """
    params = request.params
    if not isinstance(params, ImageToVideoParams):
        raise InvalidRequest(f"{model.entry.name} cannot serve {type(params).__name__}")
    picture = fit_picture(open_picture(request.images[0]), params.height, params.width, params.resize_mode)
    return begin_row(model.checkpoint, params, [picture])


def check_finite(row: Row) -> None:
    """Refuse to decode latents that overflowed: better an error than a black video.

    Raises:
        GenerationFailed: they did.
    """
    if not bool(row.latents.isfinite().all()):
        raise GenerationFailed(
            f"the latents are not finite after {row.total} steps; try less guidance, or float32", code="not_finite"
        )


def decode_next(job: Job) -> bool:
    """Decode phase: one more chunk of the job's frames; whether that was the last."""
    model, row = job.model, job.row
    assert model is not None
    assert row is not None
    params = job.request.params
    plan = even_chunks(params.num_frames, params.decode_chunk_size)
    start = job.decoded
    size = plan[len(job.frames)]
    job.frames.append(decode_chunk(model.checkpoint.vae, row.latents[start : start + size]))
    job.deliver(Decoded(start + size, params.num_frames))
    return len(job.frames) == len(plan)
