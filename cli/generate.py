"""`stillmotion generate`: stills or a prompt become one video, here, without a server."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cli.options import (
    FormatChoice,
    Json,
    Overwrite,
    ResizeChoice,
    ScheduleChoice,
    SolverChoice,
    check_new,
    check_writable,
    engine_options,
    write_whole,
)

if TYPE_CHECKING:
    from cli.progress import Report
    from model.catalog import ModelEntry
    from model.media.upscale import Upscalers
    from model.params import Params
    from model.sources.layout import Precision
    from model.stages import Stages
    from model.tasks import TaskSpec
    from serving.engine.local import Generated
    from serving.engine.settings import EngineSettings
    from serving.provenance.video_manifest import Finished

SHIPPED_INTERPOLATOR = "mini-frame-interpolation"


@engine_options("generate")
def generate(
    image: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="The still: any photograph.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The video; a contact sheet is written beside it. [IMAGE.mp4]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A shipped checkpoint, a folder, a hub id or a file. [by task]")
    ] = None,
    last_image: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Frame interpolation: the last frame.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text-to-video: what is to be seen.")] = None,
    elevation: Annotated[float | None, typer.Option(help="Multi-view: degrees above the object's equator.")] = None,
    lora: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="An adapter: one the checkpoint offers, or a file.")
    ] = None,
    lora_scale: Annotated[float | None, typer.Option(help="Of --lora: 1 as trained, below 0 the opposite. [1]")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same video. [random]")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. [the checkpoint's]")] = None,
    fps: Annotated[int | None, typer.Option(help="Conditioned on, and played at.")] = None,
    motion_bucket: Annotated[int | None, typer.Option(help="How much moves: 1 hardly, 255 very much.")] = None,
    noise_aug: Annotated[float | None, typer.Option(help="Noise on the conditioning picture.")] = None,
    min_guidance: Annotated[float | None, typer.Option(help="Guidance scale at the first frame.")] = None,
    max_guidance: Annotated[float | None, typer.Option(help="Guidance scale at the last frame.")] = None,
    solver: Annotated[SolverChoice | None, typer.Option(help="Integrator of the sampling ODE.")] = None,
    schedule: Annotated[ScheduleChoice | None, typer.Option(help="Noise levels stepped through.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the video, in pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Of the video, in pixels.")] = None,
    resize_mode: Annotated[ResizeChoice | None, typer.Option(help="How the still meets the video's aspect.")] = None,
    decode_chunk_size: Annotated[int | None, typer.Option(help="Frames decoded at once, at most.")] = None,
    interpolate: Annotated[
        bool, typer.Option("--interpolate", help="Make three frames between each two: four times the frame rate.")
    ] = False,
    interpolation_model: Annotated[
        str | None,
        typer.Option(help="What interpolates: a shipped checkpoint, or a folder; implies --interpolate. [the shipped]"),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="How long the video plays: beyond what the checkpoint makes at once, it is extended."),
    ] = None,
    upscale: Annotated[int | None, typer.Option(help="Make every frame 2, 3 or 4 times as large.")] = None,
    upscaler: Annotated[
        str | None,
        typer.Option(metavar="NAME=FILE", help="An ONNX super-resolution network for --upscale. [Lanczos resampling]"),
    ] = None,
    format: Annotated[FormatChoice | None, typer.Option(help="Container. [by the name of --out, else mp4]")] = None,
    overwrite: Overwrite = False,
    *,
    engine_options: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Turn a still, two stills or a prompt into a short video."""
    from cli.progress import reporting
    from model.media.image import fit_picture, open_picture, to_png
    from model.platform import resolve_dtype
    from model.prefault import prefault_weights
    from model.sources.source import find
    from serving.engine.settings import EngineSettings
    from serving.provenance.video_manifest import finish

    stills = {name: path for name, path in (("image", image), ("last_image", last_image)) if path is not None}
    video, sheet, container = outputs(list(stills.values()), out, format)
    check_new((video, sheet), overwrite)
    opened = {name: open_picture(path.read_bytes()) for name, path in stills.items()}  # a bad one ends it here
    precision = resolve_dtype(engine_options["dtype"], engine_options["device"])
    entry, adapter = adapted(find(model or default_model(stills, prompt, elevation), precision), lora)
    if precision == "float32":
        prefault_weights(entry, engine_options["device"])  # while what follows is imported
    _check_stills(entry.task, stills)
    fields = {
        "num_inference_steps": steps,
        "fps": fps,
        "motion_bucket_id": motion_bucket,
        "noise_aug_strength": noise_aug,
        "min_guidance_scale": min_guidance,
        "max_guidance_scale": max_guidance,
        "solver": solver and solver.value,
        "schedule": schedule and schedule.value,
        "width": width,
        "height": height,
        "resize_mode": resize_mode and resize_mode.value,
        "decode_chunk_size": decode_chunk_size,
        "prompt": prompt,
        "elevation": elevation,
        "lora": adapter,
        "lora_scale": lora_scale,
    }
    seed = secrets.randbelow(2**31) if seed is None else seed
    interpolator = (interpolation_model or SHIPPED_INTERPOLATOR) if interpolate or interpolation_model else None
    if seconds is not None:
        fields["num_frames"] = frames_of(entry, seconds, fps)
    staged = None
    if seconds is None and interpolator is None and upscale is None and upscaler is None:
        params = entry.resolve(fields, seed)
    else:
        params, staged = _with_stages(entry, fields, seed, interpolator, upscale, upscaler, precision)
    pictures = tuple(to_png(fit_picture(opened[name], *params.picture_fit)) for name in entry.task.pictures)
    opened.clear()  # photographs are large, and the pictures are all that the video is made of
    settings = EngineSettings(**engine_options)
    check_writable(video.parent)
    with reporting() as report:
        generated = _sample(entry, params, pictures, staged, container, settings, report)
    finished = finish(generated.completed, params, pictures, container.value)
    write_whole(video, finished.video)
    write_whole(sheet, generated.completed.frames)
    answer = _answer(generated, finished, entry, params, video, sheet)
    typer.echo(json.dumps(answer, indent=2) if as_json else _summary(answer))


def frames_of(entry: ModelEntry, seconds: float, fps: int | None) -> int:
    """The frame count for so many seconds: the nearest that the checkpoint makes at once, or more than its most."""
    wished = seconds * (fps or entry.defaults["fps"])
    if wished <= 0:
        raise typer.BadParameter("must be more than 0", param_hint="--seconds")
    if wished > max(entry.num_frames):
        return round(wished)
    return min(entry.num_frames, key=lambda count: (abs(count - wished), count))


def default_model(stills: Collection[str], prompt: str | None, elevation: float | None) -> str:
    """The shipped checkpoint for the task that these inputs are of."""
    if "last_image" in stills:
        return "mini-frame-interpolation"
    if elevation is not None:
        return "mini-multi-view"
    return "mini-image-to-video" if stills or prompt is None else "mini-text-to-video"


def adapted(entry: ModelEntry, lora: str | None) -> tuple[ModelEntry, str | None]:
    """The checkpoint, and the name by which it offers the LoRA: one of its own, or a file's."""
    from model.catalog import with_lora
    from model.lora.catalog import describe_lora

    if lora is None or not Path(lora).is_file():
        return entry, lora
    adapter = describe_lora(Path(lora))
    return with_lora(entry, adapter), adapter.pinned


def _check_stills(task: TaskSpec, stills: Collection[str]) -> None:
    """Refuse a picture that the task takes and is missing, and one that it does not take."""
    options = {"image": "IMAGE", "last_image": "--last-image"}
    for name, option in options.items():
        if name in task.pictures and name not in stills:
            raise typer.BadParameter(f"{task.name} needs it", param_hint=option)
        if name in stills and name not in task.pictures:
            raise typer.BadParameter(f"{task.name} takes no such picture; leave it out", param_hint=option)


def outputs(stills: Sequence[Path], out: Path | None, format: FormatChoice | None) -> tuple[Path, Path, FormatChoice]:
    """Where the video and its contact sheet go, and in which container; never onto one of the stills.

    The sheet lies beside the video, as .png; where that is a still, or a picture without a video beside it (which no
    earlier run wrote), as .frames.png.
    """
    if out is None:
        container = format or FormatChoice.mp4
        out = Path(f"{stills[0].stem if stills else 'video'}.{container}")
    elif format is not None:
        container = format
    elif out.suffix.lower().lstrip(".") in set(FormatChoice):
        container = FormatChoice(out.suffix.lower().lstrip("."))
    else:
        known = ", ".join(f".{name}" for name in FormatChoice)
        raise typer.BadParameter(
            f"{out.name} ends with none of {known}; name one, or give --format", param_hint="--out"
        )
    if out.is_dir():
        raise typer.BadParameter(f"{out} is a folder; name a file in it", param_hint="--out")
    inputs = {still.resolve() for still in stills}
    if out.resolve() in inputs:
        raise typer.BadParameter("the video would replace the still; name another file", param_hint="--out")
    sheet, beside = out.with_suffix(".png"), out.with_suffix(".frames.png")
    if sheet.resolve() in inputs or beside.exists() or (sheet.exists() and not out.exists()):
        sheet = beside
    return out, sheet, container


class _Staged(NamedTuple):
    """The stages behind a clip, and what they run on."""

    stages: Stages
    models: dict[str, ModelEntry]
    upscalers: Upscalers


def _with_stages(
    entry: ModelEntry,
    fields: dict[str, Any],
    seed: int,
    interpolator: str | None,
    upscale: int | None,
    upscaler: str | None,
    precision: Precision,
) -> tuple[Params, _Staged]:
    """The clip's settings, and the stages behind it."""
    from model.media.upscale import Upscalers, parse_files
    from model.sources.source import find
    from serving.interpolation.plan import StageWishes, plan_stages, split_frames

    between = None if interpolator is None else find(interpolator, precision)
    upscalers = Upscalers(parse_files(upscaler or ""))
    wishes = StageWishes(
        interpolate=False if between is None else between.name,
        upscale=upscale if upscale is not None or upscaler is None else 2,
        upscaler=upscalers.names[-1],
    )
    clip, frames = split_frames(entry, fields, wishes)
    params = entry.resolve(clip, seed)
    extender = entry
    if frames is not None and entry.task.name != "image-to-video":
        extender = find("mini-image-to-video", precision)
    served = [extender] if between is None else [extender, between]
    stages = plan_stages(served, entry, params, wishes, frames, upscalers)
    models = {"extend": extender} | ({} if between is None else {"interpolate": between})
    return params, _Staged(stages, models, upscalers)


def _sample(
    entry: ModelEntry,
    params: Params,
    pictures: tuple[bytes, ...],
    staged: _Staged | None,
    container: FormatChoice,
    settings: EngineSettings,
    report: Report,
) -> Generated:
    from cli.progress import of_events

    progress = of_events(report)
    if staged is None or not staged.stages:
        from serving.engine.local import generate as sample

        return sample(entry, params, pictures, output_format=container.value, progress=progress, settings=settings)
    from serving.interpolation.local import generate_stages

    return generate_stages(
        entry,
        params,
        pictures,
        staged.stages,
        staged.models,
        output_format=container.value,
        progress=progress,
        settings=dict.fromkeys(("generate", "extend", "interpolate"), settings),
        upscalers=staged.upscalers,
    )


def _answer(
    generated: Generated, finished: Finished, entry: ModelEntry, params: Params, video: Path, sheet: Path
) -> dict[str, Any]:
    completed = generated.completed
    return {
        "video": str(video),
        "contact_sheet": str(sheet),
        "seed": params.seed,
        "sha256": finished.video_sha256,
        "frames_sha256": completed.frames_sha256,
        "model": entry.name,
        "model_version": entry.version,
        "width": completed.width,
        "height": completed.height,
        "num_frames": completed.num_frames,
        "fps": completed.fps,
        "timings": {phase: round(seconds, 3) for phase, seconds in completed.timings.items()},
        "manifest": {name: value for name, value in finished.manifest.items() if name != "pictures"},
    }


def _summary(answer: dict[str, Any]) -> str:
    seconds = sum(answer["timings"].values())
    size = f"{answer['num_frames']} frames, {answer['width']}x{answer['height']}, {answer['fps']} fps"
    return (
        f"{answer['video']}  seed {answer['seed']}  {size}, {seconds:.1f} s\n{answer['contact_sheet']}  contact sheet"
    )
