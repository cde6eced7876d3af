"""One generation in this thread, without a server: what `stillmotion generate` runs.

The same phases, rows and denoiser calls as the engine, in a plain loop; so the same request gives the same video.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from model.catalog import ModelEntry
from model.params import OutputFormat, Params
from model.sampling.row import Row
from model.sampling.sampler import sample
from serving.engine.job import (
    Job,
    begin_decoding,
    check_finite,
    encode_request,
    finished_frames,
    fitted_pictures,
    video_manifest,
)
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.mux import build_result, encode_ahead
from serving.engine.protocol import Completed, Decoded, EngineEvent, EngineRequest, Stepped
from serving.engine.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class Generated:
    """A finished generation.

    Args:
        completed: the container, hashes, contact sheet and manifest, as the engine gives them.
        frames: RGB.
        latents: the clean latents, float32 on the CPU.
    """

    completed: Completed
    frames: UInt8[np.ndarray, "T H W 3"]
    latents: Float[Tensor, "T C h w"]


def generate(
    model: ModelEntry | LoadedModel,
    params: Params,
    images: tuple[bytes, ...],
    *,
    output_format: OutputFormat = "mp4",
    raw: bool = False,
    progress: Callable[[EngineEvent], None] | None = None,
    settings: EngineSettings | None = None,
) -> Generated:
    """Make one video.

    Args:
        model: a checkpoint, loaded here if it is not yet.
        images: the pictures' bytes, in the order of the task's spec and any format `model.media.image.open_picture`
        takes.
        raw: whether the frames go into another stage, so that no container is made (EngineRequest).
        progress: called with phases, steps and decoded frames; an exception from it ends the generation.
        settings: device, dtype, threads, determinism; used only where the model is not yet loaded.

    Raises:
        CheckpointError: the checkpoint does not load.
        UnreadableImage, ImageTooLarge: the picture.
        GenerationFailed: the latents overflowed.
    """
    if isinstance(model, ModelEntry):
        model = load_model(model, settings or EngineSettings(), one_request=True)
    how = model.settings
    torch.set_num_threads(how.fixed_threads if how.deterministic else how.cores)
    request = EngineRequest("local", model.entry.name, params, images, output_format)
    job = Job(request, progress or (lambda _: None), 0, model, model.key(params))
    with torch.inference_mode():
        job.enter("encode")
        job.pictures = fitted_pictures(request)
        row = encode_request(model, request, job.pictures)
        job.enter("denoise")
        job.row = sample(model.denoiser, row, lambda row: _stepped(job, row))
        check_finite(job.row)
    with ThreadPoolExecutor(1, thread_name_prefix="stillmotion-mux") as pool, torch.inference_mode():
        job.enter("decode")
        decoding = begin_decoding(job)
        container = None if raw else output_format
        final = not model.entry.task.restores_ends
        encoder = encode_ahead(pool, params.fps, container, params.num_frames, final=final)
        while not decoding.complete:
            with model.decoding():
                decoding.next(model.checkpoint.vae, job.row.latents)
            if encoder is not None:
                encoder.add(decoding.chunks[-1])
            job.deliver(Decoded(decoding.done, params.num_frames))
        job.enter("mux")
        frames = finished_frames(model, job.pictures, decoding)
        completed = build_result(
            frames,
            fps=params.fps,
            output_format=container,
            degraded=decoding.degraded,
            manifest=video_manifest(model, params, output_format, decoding),
            encoder=encoder,
        )
    job.close_phase()
    return Generated(replace(completed, timings=dict(job.timings)), frames, job.row.latents.cpu())


def _stepped(job: Job, row: Row) -> None:
    job.pace.observe(job.lap(), 1)
    job.deliver(Stepped(row.step, row.num_steps, job.pace.seconds_for(row.num_steps - row.step)))
