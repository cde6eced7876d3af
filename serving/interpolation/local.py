"""A chained generation in this thread, without a server: what `stillmotion generate --interpolate` runs.

The same stages, seeds and settings as behind a server; so the same request gives the same video.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from PIL import Image

from model.catalog import ModelEntry
from model.interpolation import InterpolationStage, interleave, pairs_of
from model.media.image import to_png
from model.params import OutputFormat, Params
from serving.engine.loaded_model import load_model
from serving.engine.local import Generated, generate
from serving.engine.protocol import EngineEvent, PhaseStarted, Stepped
from serving.engine.settings import EngineSettings
from serving.interpolation.assemble import assemble_result
from serving.interpolation.pair_store import Rendered


def generate_chained(
    entries: tuple[ModelEntry, ModelEntry],
    params: Params,
    images: tuple[bytes, ...],
    chain: InterpolationStage,
    *,
    output_format: OutputFormat = "mp4",
    progress: Callable[[EngineEvent], None] | None = None,
    settings: tuple[EngineSettings, EngineSettings] | None = None,
) -> Generated:
    """Make one video in two stages.

    Args:
        entries: the checkpoints of both stages; each is loaded for its stage alone.
        images: as `serving.engine.local.generate` takes them.
        chain: the second stage, resolved for `params`.
        progress: called with phases, steps and decoded frames; in the phase `interpolate`, with the steps of all pairs.
        settings: of each stage.

    Returns:
        The whole video; its latents are the first stage's.

    Raises:
        CheckpointError, UnreadableImage, ImageTooLarge, GenerationFailed: as `generate`.
    """
    report = progress or (lambda _: None)
    first_settings, second_settings = settings or (EngineSettings(), EngineSettings())
    first = generate(
        entries[0], params, images, output_format=output_format, raw=True, progress=report, settings=first_settings
    )
    report(PhaseStarted("interpolate"))
    model = load_model(entries[1], second_settings)
    each = chain.params.num_inference_steps
    total = pairs_of(params) * each
    between: list[Rendered] = []

    def stepped(event: EngineEvent) -> None:
        if isinstance(event, Stepped):
            report(replace(event, step=len(between) * each + event.step, total=total))

    for index in range(pairs_of(params)):
        ends = tuple(to_png(Image.fromarray(frame)) for frame in first.frames[index : index + 2])
        generated = generate(model, chain.pair(index), ends, output_format=output_format, raw=True, progress=stepped)
        between.append(_rendered(generated).inner())
    result = assemble_result(_rendered(first), between, chain, params.fps, output_format)
    spent = sum(sum(pair.timings.values()) for pair in between)
    timings = {**first.completed.timings, "interpolate": spent}
    frames = interleave(first.frames, [pair.frames for pair in between])
    return Generated(replace(result, timings=timings), frames, first.latents)


def _rendered(generated: Generated) -> Rendered:
    done = generated.completed
    return Rendered(generated.frames, done.degraded, done.manifest, done.timings)
