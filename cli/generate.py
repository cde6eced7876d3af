"""`stillmotion generate`: one still becomes one video, here, without a server."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import FormatChoice, Json, ResizeChoice, SolverChoice

if TYPE_CHECKING:
    from cli.progress import Report
    from model.catalog import ModelEntry
    from model.params import Params
    from serving.engine.local import Generated
    from serving.engine.protocol import EngineEvent

DEFAULT_MODEL = "mini-image-to-video"


def generate(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The still: any photograph.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The video; a contact sheet is written beside it. [IMAGE.mp4]")
    ] = None,
    model: Annotated[str, typer.Option(help="A shipped checkpoint, or a diffusers folder.")] = DEFAULT_MODEL,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same video. [random]")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. [the checkpoint's]")] = None,
    fps: Annotated[int | None, typer.Option(help="Conditioned on, and played at.")] = None,
    motion_bucket: Annotated[int | None, typer.Option(help="How much moves: 1 hardly, 255 very much.")] = None,
    noise_aug: Annotated[float | None, typer.Option(help="Noise on the conditioning picture.")] = None,
    min_guidance: Annotated[float | None, typer.Option(help="Guidance scale at the first frame.")] = None,
    max_guidance: Annotated[float | None, typer.Option(help="Guidance scale at the last frame.")] = None,
    solver: Annotated[SolverChoice | None, typer.Option(help="Integrator of the sampling ODE.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the video, in pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Of the video, in pixels.")] = None,
    resize_mode: Annotated[ResizeChoice | None, typer.Option(help="How the still meets the video's aspect.")] = None,
    decode_chunk_size: Annotated[int | None, typer.Option(help="Frames decoded at once, at most.")] = None,
    format: Annotated[FormatChoice | None, typer.Option(help="Container. [by the name of --out, else mp4]")] = None,
    as_json: Json = False,
) -> None:
    """Turn a still into a short video."""
    from cli.progress import reporting
    from model.catalog import find
    from model.image import open_picture

    video, sheet, container = outputs(image, out, format)
    picture = image.read_bytes()
    open_picture(picture)  # a bad picture is told before torch is loaded
    asked = {
        "num_inference_steps": steps,
        "fps": fps,
        "motion_bucket_id": motion_bucket,
        "noise_aug_strength": noise_aug,
        "min_guidance_scale": min_guidance,
        "max_guidance_scale": max_guidance,
        "solver": solver and solver.value,
        "width": width,
        "height": height,
        "resize_mode": resize_mode and resize_mode.value,
        "decode_chunk_size": decode_chunk_size,
    }
    entry = find(model)
    params = entry.resolve(asked, secrets.randbelow(2**31) if seed is None else seed)
    with reporting() as report:
        made = _sample(entry, params, picture, container, report)
    _write(video, made.completed.video)
    _write(sheet, made.completed.frames)
    answer = _answer(made, entry, params, video, sheet)
    typer.echo(json.dumps(answer, indent=2) if as_json else _told(answer))


def outputs(image: Path, out: Path | None, format: FormatChoice | None) -> tuple[Path, Path, FormatChoice]:
    """Where the video and its contact sheet go, and in which container.

    The sheet lies beside the video, as .png; where that is the still itself, as .frames.png.
    """
    if out is None:
        container = format or FormatChoice.mp4
        out = Path(f"{image.stem}.{container}")
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
    if out.resolve() == image.resolve():
        raise typer.BadParameter("the video would replace the still; name another file", param_hint="--out")
    sheet = out.with_suffix(".png")
    if sheet.resolve() == image.resolve():
        sheet = out.with_suffix(".frames.png")
    return out, sheet, container


def _sample(entry: ModelEntry, params: Params, picture: bytes, container: FormatChoice, report: Report) -> Generated:
    from serving.engine.local import generate as sample
    from serving.engine.protocol import Decoded, Stepped

    def progress(event: EngineEvent) -> None:
        if isinstance(event, Stepped):
            report("denoise", event.step, event.total)
        elif isinstance(event, Decoded):
            report("decode", event.frames, event.total)

    return sample(entry, params, (picture,), output_format=container.value, progress=progress)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _answer(made: Generated, entry: ModelEntry, params: Params, video: Path, sheet: Path) -> dict[str, Any]:
    completed = made.completed
    return {
        "video": str(video),
        "contact_sheet": str(sheet),
        "seed": params.seed,
        "sha256": completed.video_sha256,
        "frames_sha256": completed.frames_sha256,
        "model": entry.name,
        "model_version": entry.version,
        "width": completed.width,
        "height": completed.height,
        "num_frames": completed.num_frames,
        "fps": completed.fps,
        "timings": {phase: round(seconds, 3) for phase, seconds in completed.timings.items()},
        "manifest": completed.manifest,
    }


def _told(answer: dict[str, Any]) -> str:
    took = sum(answer["timings"].values())
    size = f"{answer['num_frames']} frames, {answer['width']}x{answer['height']}, {answer['fps']} fps"
    return f"{answer['video']}  seed {answer['seed']}  {size}, {took:.1f} s\n{answer['contact_sheet']}  contact sheet"
