"""`stillmotion generate` for real, on a tiny random checkpoint; and where its files go."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from cli.generate import default_model, outputs
from cli.main import app
from cli.options import FormatChoice
from model.media.video import decode_video, frames_sha256, probe
from model.presets import preset
from model.tasks import TASKS
from model.testing import build_random


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_random(folder, preset("tiny"), TASKS["image-to-video"])
    return folder


@pytest.fixture
def still(tmp_path: Path) -> Path:
    path = tmp_path / "still.png"
    Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(path)
    return path


def generate(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["generate", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_a_still_becomes_a_video_with_a_contact_sheet(tiny: Path, still: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "x.mp4"
    result = CliRunner().invoke(
        app, ["generate", str(still), "-o", str(out), "--model", str(tiny), "--seed", "7", "--steps", "2"]
    )
    assert result.exit_code == 0, result.stderr
    assert "seed 7" in result.stdout
    assert str(out) in result.stdout
    assert "denoise: 2/2" in result.stderr
    info = probe(out)
    assert (info.codec, info.pix_fmt, info.faststart) == ("h264", "yuv420p", True)
    with Image.open(tmp_path / "new" / "x.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > info.width
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["x.mp4", "x.png"]


@pytest.mark.slow
def test_the_seed_decides_the_frames(tiny: Path, still: Path, tmp_path: Path) -> None:
    common = ("--model", tiny, "--steps", 2)
    first = generate(still, "-o", tmp_path / "a.mp4", "--seed", 7, *common)
    again = generate(still, "-o", tmp_path / "b.mp4", "--seed", 7, *common)
    other = generate(still, "-o", tmp_path / "c.mp4", "--seed", 8, *common)
    assert first["frames_sha256"] == again["frames_sha256"] != other["frames_sha256"]
    hashes = [frames_sha256(decode_video(tmp_path / f"{name}.mp4")[0]) for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]
    drawn = {generate(still, "-o", tmp_path / "d.mp4", "--overwrite", *common)["seed"] for _ in range(2)}
    assert len(drawn) == 2


def test_every_option_reaches_the_manifest(tiny: Path, still: Path, tmp_path: Path) -> None:
    asked = {
        "--steps": ("num_inference_steps", 3),
        "--fps": ("fps", 11),
        "--motion-bucket": ("motion_bucket_id", 200),
        "--noise-aug": ("noise_aug_strength", 0.25),
        "--min-guidance": ("min_guidance_scale", 1.25),
        "--max-guidance": ("max_guidance_scale", 2.25),
        "--solver": ("solver", "heun"),
        "--schedule": ("schedule", "align-your-steps"),
        "--attention": ("attention", "math"),
        "--reuse-every": ("reuse_every", 2),
        "--resize-mode": ("resize_mode", "fit"),
        "--decode-chunk-size": ("decode_chunk_size", 2),
        "--decode-chunk-plan": ("decode_chunk_plan", "diffusers"),
        "--seed": ("seed", 5),
    }
    options = [part for option, (_, value) in asked.items() for part in (option, value)]
    answer = generate(still, "-o", tmp_path / "x.webm", "--model", tiny, *options)
    told = json.dumps(answer["manifest"])
    for name, value in asked.values():
        assert f'"{name}": {json.dumps(value)}' in told
    info = probe(tmp_path / "x.webm")
    assert (info.codec, info.fps) == ("vp9", 11)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("others")
    names = ("text-to-video", "frame-interpolation", "multi-view")
    for name in names:
        build_random(folder / name, preset("tiny"), TASKS[name], num_frames=3)
    return {name: folder / name for name in names}


@pytest.mark.slow  # four checkpoints
def test_every_task_has_its_own_inputs(others: dict[str, Path], still: Path, tmp_path: Path) -> None:
    asked: dict[str, tuple[object, ...]] = {
        "text-to-video": ("--prompt", "a red ball"),
        "frame-interpolation": (still, "--last-image", still),
        "multi-view": (still, "--elevation", 20),
    }
    told = {}
    for name, inputs in asked.items():
        out = tmp_path / f"{name}.mp4"
        answer = generate(*inputs, "-o", out, "--model", others[name], "--steps", 1, "--seed", 1)
        told[name] = answer["manifest"]
        assert probe(out).frames == 3
    assert [manifest["task"] for manifest in told.values()] == list(asked)
    assert told["text-to-video"]["params"]["prompt"] == "a red ball"
    assert told["multi-view"]["params"]["elevation"] == 20.0


def test_inputs_of_another_task_are_wrong_usage_and_named(
    tiny: Path, others: dict[str, Path], still: Path, tmp_path: Path
) -> None:
    wrong: list[tuple[Path, tuple[object, ...], str]] = [
        (tiny, (still, "--prompt", "a ball"), "image-to-video has no field 'prompt'"),
        (tiny, (still, "--elevation", 3), "image-to-video has no field 'elevation'"),
        (tiny, (still, "--last-image", still), "--last-image"),
        (tiny, (), "IMAGE"),
        (others["text-to-video"], (still, "--prompt", "a ball"), "IMAGE"),
        (others["text-to-video"], (), "prompt is required"),
        (others["text-to-video"], ("--prompt", "a ball", "--noise-aug", 0.1), "no field 'noise_aug_strength'"),
        (others["frame-interpolation"], (still,), "--last-image"),
        (others["multi-view"], (still, "--elevation", 91), "elevation must be"),
    ]
    for model, inputs, named in wrong:
        arguments = [*inputs, "-o", tmp_path / "x.mp4", "--model", model]
        result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
        assert result.exit_code == 2, named
        assert named in result.stderr.replace("\n", " "), result.stderr
    assert not (tmp_path / "x.mp4").exists()


def test_the_shipped_model_follows_from_what_is_given() -> None:
    assert default_model(["image"], None, None) == "mini-image-to-video"
    assert default_model([], "a ball", None) == "mini-text-to-video"
    assert default_model(["image", "last_image"], None, None) == "mini-frame-interpolation"
    assert default_model(["image"], None, 3.0) == "mini-multi-view"


def test_a_size_that_cannot_be_made_is_wrong_usage(tiny: Path, still: Path, tmp_path: Path) -> None:
    arguments = ["generate", str(still), "-o", str(tmp_path / "x.mp4"), "--model", str(tiny), "--width", "13"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: width must be")
    assert not (tmp_path / "x.mp4").exists()


def test_where_the_files_go(tmp_path: Path) -> None:
    still = tmp_path / "photo.png"
    still.touch()
    assert outputs([still], None, None) == (Path("photo.mp4"), Path("photo.png"), FormatChoice.mp4)
    assert outputs([still], None, FormatChoice.gif)[::2] == (Path("photo.gif"), FormatChoice.gif)
    assert outputs([still], Path("x.WEBM"), None)[2] == FormatChoice.webm
    assert outputs([still], Path("x.bin"), FormatChoice.mp4)[0] == Path("x.bin")
    assert outputs([still], tmp_path / "photo.mp4", None)[1] == tmp_path / "photo.frames.png"
    assert outputs([], None, None)[0] == Path("video.mp4")
    with pytest.raises(typer.BadParameter, match="replace the still"):
        outputs([still], still, FormatChoice.mp4)


def test_the_still_is_left_alone(tiny: Path, still: Path) -> None:
    before = still.read_bytes()
    answer = generate(still, "-o", still.with_suffix(".mp4"), "--model", tiny, "--steps", 1)
    assert still.read_bytes() == before
    with Image.open(io.BytesIO(Path(answer["contact_sheet"]).read_bytes())) as sheet:
        assert sheet.format == "PNG"


@pytest.mark.slow
def test_interpolate_makes_three_frames_between_each_two(tiny: Path, still: Path, tmp_path: Path) -> None:
    between = tmp_path / "between"
    build_random(between, preset("tiny"), TASKS["frame-interpolation"], num_frames=5)
    common = (still, "-o", tmp_path / "x.mp4", "--model", tiny, "--seed", 7, "--steps", 1, "--fps", 5)
    answer = generate(*common, "--interpolation-model", between)
    assert (answer["num_frames"], answer["fps"]) == (21, 20)
    assert answer["manifest"]["interpolate"]["model"] == "between"
    frames, fps = decode_video(tmp_path / "x.mp4")
    assert (len(frames), fps) == (21, 20)
    for arguments, told in (
        (("--overwrite", "--interpolation-model", tiny), "not frame-interpolation"),
        (("--overwrite", "--interpolate", "--interpolation-model", tmp_path), "no model folder"),
    ):
        refused = CliRunner().invoke(app, ["generate", *map(str, (*common, *arguments))])
        assert refused.exit_code != 0
        assert told in str(refused.exception) + refused.stderr, refused
