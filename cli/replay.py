"""`stillmotion replay`: the same video again, and whether it is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import Json, Overwrite, check_new, check_writable, write_whole

NOT_IDENTICAL = 1


def replay(
    source: Annotated[
        Path,
        typer.Argument(metavar="MANIFEST|VIDEO", exists=True, dir_okay=False, help="A job's manifest, or its mp4."),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Keep the new video here.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A checkpoint's name or folder. [the one the manifest names]")
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The LoRA's file, where the checkpoint does not offer it."),
    ] = None,
    interpolation_model: Annotated[
        str | None, typer.Option(help="As --model, for the frames between of an interpolated video.")
    ] = None,
    extension_model: Annotated[
        str | None, typer.Option(help="As --model, for what goes on behind the clip of an extended video.")
    ] = None,
    upscaler: Annotated[
        str | None, typer.Option(metavar="NAME=FILE", help="The ONNX network that made the frames larger.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a video again from its manifest, and say whether it is identical. Exit code 1: it is not."""
    from cli.progress import of_events, reporting
    from model.catalog import with_lora
    from model.errors import InvalidRequest
    from model.lora.catalog import describe_lora
    from model.media.upscale import Upscalers, parse_files
    from model.platform import resolve_dtype
    from model.sources.source import find
    from serving.provenance.replay import read_recipe
    from serving.provenance.replay import replay as again
    from serving.provenance.video_manifest import finish

    if out is not None:
        check_new((out,), overwrite)
    manifest, video = _read(source)
    recipe = read_recipe(manifest)
    precision = resolve_dtype(recipe.settings.dtype, recipe.settings.device)
    entry = find(model or recipe.model, precision)
    if lora is not None:
        if recipe.params.adapter is None:
            raise InvalidRequest("the video was made without a LoRA; leave --lora out", param="lora")
        entry = with_lora(entry, describe_lora(lora, recipe.params.adapter.name))
    sources = {"interpolate": interpolation_model, "extend": extension_model}
    for stage, source_name in sources.items():
        if source_name is not None and stage not in recipe.stage_models:
            option = "--interpolation-model" if stage == "interpolate" else "--extension-model"
            raise typer.BadParameter(f"the video has no stage {stage}; leave it out", param_hint=option)
    models = {
        stage: entry if sources[stage] is None and name == recipe.model else find(sources[stage] or name, precision)
        for stage, (name, _) in recipe.stage_models.items()
    }
    if out is not None:
        check_writable(out.parent)
    with reporting() as report:
        done = again(
            recipe,
            entry,
            manifest,
            models=models,
            upscalers=Upscalers(parse_files(upscaler or "")),
            video=video,
            progress=of_events(report),
        )
    if out is not None:
        finished = finish(done.generated.completed, recipe.params, recipe.pictures, recipe.output_format)
        write_whole(out, finished.video)
    answer = {
        "identical": done.identical,
        "frames_sha256": done.generated.completed.frames_sha256,
        "expected_frames_sha256": recipe.frames_sha256,
        "psnr_db": None if done.psnr_db is None else round(done.psnr_db, 2),
        "differences": list(done.differences),
        "video": None if out is None else str(out),
    }
    typer.echo(json.dumps(answer, indent=2) if as_json else _summary(answer))
    if not done.identical:
        raise typer.Exit(NOT_IDENTICAL)


def _read(source: Path) -> tuple[dict[str, Any], bytes | None]:
    """The manifest, and the mp4 if that is where it was."""
    from model.errors import InvalidRequest
    from serving.provenance import video_manifest

    data = source.read_bytes()
    if data[4:8] != b"ftyp":
        return video_manifest.parse_manifest(data), None
    manifest = video_manifest.read_manifest(data)
    if manifest is None:
        raise InvalidRequest(f"{source} carries no manifest: it was not made by stillmotion, or was converted since")
    return manifest, data


def _summary(answer: dict[str, Any]) -> str:
    lines = ["identical" if answer["identical"] else "NOT identical"]
    if answer["psnr_db"] is not None:
        lines[0] += f", {answer['psnr_db']} dB"
    lines += [f"  {difference}" for difference in answer["differences"]]
    return "\n".join(lines)
