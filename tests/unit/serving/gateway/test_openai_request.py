"""The table of docs/openai.md, a test a row: each field of other video servers is heeded, or refused by its name."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidRequest, UnreadableImage
from serving.gateway.images import UploadRef
from serving.gateway.openai_request import order
from serving.gateway.openai_schema import job_request
from serving.gateway.submit import JobRequest
from tests.support.fakes import DEFAULTS, model_entry

PICTURE = b"\x89PNG not looked at here"
DATA_URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
STILLS = model_entry(num_frames=(14, 25), defaults={**DEFAULTS, "min_guidance_scale": 2.0})
TEXTS = model_entry("text-to-video", num_frames=(14, 25))


def requested(task: str = "image-to-video", **fields: Any) -> JobRequest:
    """The job that these fields order."""
    entry, picture = (TEXTS, None) if task == "text-to-video" else (STILLS, PICTURE)
    read = order({"prompt": "a fox", **fields}, picture)
    return job_request(entry, read.form, read.picture)


HEEDED: dict[str, list[tuple[Any, dict[str, Any]]]] = {
    "seed": [(42, {"seed": 42}), ("42", {"seed": 42})],
    "fps": [(6, {"fps": 6}), ("6", {"fps": 6})],
    "num_frames": [(14, {"num_frames": 14}), ("80", {"num_frames": 25}), (1, {"num_frames": 14})],
    "num_inference_steps": [(2, {"num_inference_steps": 2}), ("2", {"num_inference_steps": 2})],
    "guidance_scale": [
        (4.0, {"max_guidance_scale": 4.0, "min_guidance_scale": 2.0}),
        ("1.5", {"max_guidance_scale": 1.5, "min_guidance_scale": 1.5}),
    ],
    "size": [("96x64", {"width": 96, "height": 64}), ("1280x720", {"width": 96, "height": 64})],
    "seconds": [("2", {"num_frames": 14}), (4, {"num_frames": 25}), (3.5, {"num_frames": 25}), ("3.5", {})],
    "video_params": [({"num_frames": 25, "fps": 5, "width": 96, "height": 64}, {"num_frames": 25, "fps": 5})],
    "lora": [({"name": "pan@0123456789ab", "scale": 0.5}, {"lora": "pan@0123456789ab", "lora_scale": 0.5})],
    "extra_params": [
        ({"motion_bucket_id": 40, "solver": "heun"}, {"motion_bucket_id": 40, "solver": "heun"}),
        ({"noise_aug_strength": "0.1"}, {"noise_aug_strength": 0.1}),
    ],
    "extra_body": [({"seed": 7, "fps": 9}, {"seed": 7, "fps": 9})],
    "extra_json": [({"seed": 7}, {"seed": 7})],
}


@pytest.mark.parametrize("name", HEEDED)
def test_heeded(name: str) -> None:
    for value, settings in HEEDED[name]:
        made = requested(**{name: value}).settings
        assert {key: made[key] for key in settings} == settings, value


def test_width_and_height_are_a_size() -> None:
    assert {"width": 64, "height": 64}.items() <= requested(width="64", height=64).settings.items()
    with pytest.raises(InvalidRequest, match="go together"):
        requested(width=64)
    both = requested(width=64, height=64, size="96x64").settings
    assert (both["width"], both["height"]) == (96, 64), "as vLLM-Omni has it, size goes first"


def test_what_goes_before_what() -> None:
    assert requested(seconds="1", num_frames=25).settings["num_frames"] == 25
    assert requested(seconds="2", fps=13).settings["num_frames"] == 25, "seconds are counted at the fps that was sent"
    assert requested(fps=9, video_params={"fps": 5}).settings["fps"] == 9


def test_prompt_and_user_are_recorded() -> None:
    still, text = requested(user="me"), requested("text-to-video", user="me")
    assert still.metadata == {"openai.prompt": "a fox", "openai.user": "me"}
    assert (text.settings["prompt"], text.metadata) == ("a fox", {"openai.user": "me"})


def test_wishes_that_are_not_met_are_recorded() -> None:
    made = requested(num_frames=80, size="1280x720")
    assert made.metadata == {
        "openai.prompt": "a fox",
        "openai.num_frames": "80",
        "openai.size": "1280x720",
    }


def test_guidance_of_a_constant_kind_has_one_scale() -> None:
    settings = requested("text-to-video", guidance_scale=4).settings
    assert settings["max_guidance_scale"] == 4.0
    assert "min_guidance_scale" not in settings


def test_interpolation_is_fourfold() -> None:
    assert requested(enable_frame_interpolation="true").stages.interpolate is True
    assert requested(enable_frame_interpolation=True, frame_interpolation_exp=2).stages.interpolate is True
    assert requested(frame_interpolation_exp=1).stages.interpolate is False
    with pytest.raises(InvalidRequest) as caught:
        requested(enable_frame_interpolation=True, frame_interpolation_exp=1)
    assert caught.value.param == "frame_interpolation_exp"


@pytest.mark.parametrize("name", ["input_reference", "image_reference", "reference_url"])
def test_pictures(name: str) -> None:
    for value in (DATA_URL, {"image_url": DATA_URL}, f'{{"image_url": "{DATA_URL}"}}'):
        assert order({"prompt": "x", name: value}).picture == PICTURE
    url = "https://example.org/still.png"
    assert order({"prompt": "x", name: {"image_url": url}}).picture == url
    assert order({"prompt": "x", name: url}).picture == url
    for wrong in ({"file": "x"}, 5, ["a"]):
        with pytest.raises(InvalidRequest) as caught:
            order({"prompt": "x", name: wrong})
        assert caught.value.param == name
    for broken in ("data:image/png,abc", "data:image/png;base64,*"):
        with pytest.raises(UnreadableImage):
            order({"prompt": "x", name: broken})
    with pytest.raises(InvalidRequest) as caught:
        order({"prompt": "x", name: {"file_id": "file_1"}})
    assert (caught.value.code, caught.value.param) == ("invalid_value", f"{name}.file_id")
    upload = f"upload_{'0' * 64}"
    for named in (upload, {"file_id": upload}, f'{{"file_id": "{upload}"}}'):
        assert order({"prompt": "x", name: named}).picture == UploadRef(upload)
    with pytest.raises(InvalidRequest, match="more than one"):
        order({"prompt": "x", name: url}, PICTURE)


REFUSED: dict[str, Any] = {
    "negative_prompt": "blurry",
    "guidance_scale_2": 4.0,
    "boundary_ratio": 0.875,
    "flow_shift": 5.0,
    "true_cfg_scale": 4.0,
    "max_sequence_length": 512,
    "enable_teacache": True,
    "generate_sound": True,
    "sound_duration": 2.0,
    "audio_reference": {"audio_url": "https://example.org/a.wav"},
    "video_reference": {"video_url": "https://example.org/a.mp4"},
    "video_path": "/clip.mp4",
    "video_url": "https://example.org/a.mp4",
    "control_reference": "x",
    "control_type": "edge",
    "frame_interpolation_scale": 0.5,
    "frame_interpolation_model_path": "/rife",
    "output_path": "/out",
    "output_quality": "high",
    "output_compression": 50,
    "generator_device": "cuda",
    "diffusers_kwargs": {"eta": 1},
    "rollout": True,
    "rollout_sde_type": "sde",
    "aspect_ratio": "16:9",
    "short_edge": 480,
    "start_time_seconds": 1.0,
    "n": 2,
    "num_outputs_per_prompt": 2,
    "quality": "high",
    "task": "t2v",
    "stream": True,
    "response_format": "b64_json",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    for value in (REFUSED[name], str(REFUSED[name])):
        with pytest.raises(InvalidRequest) as caught:
            order({"prompt": "x", name: value})
        assert (caught.value.code, caught.value.param) == ("unsupported_field", name)
        assert name in caught.value.message
    order({"prompt": "x", name: None})
    order({"prompt": "x", name: ""})


NEUTRAL = {
    "enable_teacache": [False, "false"],
    "generate_sound": [False, "false"],
    "rollout": [False],
    "stream": [False],
    "frame_interpolation_scale": [1.0, "1.0"],
    "n": [1, "1"],
    "num_outputs_per_prompt": [1],
    "quality": ["auto", "standard", "default"],
    "output_quality": ["default"],
    "generator_device": ["cpu"],
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_values_that_ask_for_nothing(name: str) -> None:
    for value in NEUTRAL[name]:
        assert order({"prompt": "x", name: value}) == order({"prompt": "x"})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"seed": -1}, "seed"),
        ({"fps": 0}, "fps"),
        ({"num_inference_steps": 201}, "num_inference_steps"),
        ({"guidance_scale": "nan"}, "guidance_scale"),
        ({"seconds": "soon"}, "seconds"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": True}, "seconds"),
        ({"size": "big"}, "size"),
        ({"lora": {"path": "/lora"}}, "lora.name"),
        ({"extra_params": {"prompt": "y"}}, "extra_params.prompt"),
        ({"extra_params": {"elevation": 5}}, "extra_params.elevation"),
        ({"extra_params": {"motion_bucket_id": 999}}, "extra_params.motion_bucket_id"),
        ({"extra_params": {"seed": 5}, "seed": 5}, "extra_params.seed"),
        ({"extra_body": {"seed": 5}, "seed": 5}, "extra_body.seed"),
        ({"extra_body": "text"}, "extra_body"),
    ],
)
def test_faults_name_their_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requested(**fields)
    assert caught.value.param == param


_VLLM_OMNI = [
    {
        "prompt": "a lake",
        "width": "1280",
        "height": "720",
        "num_frames": "80",
        "fps": "16",
        "num_inference_steps": "40",
    },
    {"prompt": "a robot", "width": "854", "height": "480", "num_frames": "80", "fps": "16"},
    {
        "prompt": "a singer",
        "image_reference": f'{{"image_url": "{DATA_URL}"}}',
        "width": "832",
        "height": "480",
        "num_inference_steps": "40",
        "guidance_scale": "4.5",
        "fps": "16",
    },
    {
        "prompt": "two cats",
        "width": "832",
        "height": "480",
        "num_frames": "33",
        "fps": "16",
        "num_inference_steps": "40",
        "guidance_scale": "4.0",
        "seed": "42",
    },
]
_SGLANG = [
    {"prompt": "a calico cat", "size": "1280x720"},
    {"prompt": "a calico cat", "size": "1280x720", "seconds": 4, "extra_body": {"fps": 24, "num_frames": 33}},
    {"prompt": "a calico cat", "reference_url": DATA_URL, "seed": 1024, "enable_teacache": False},
]
_FASTVIDEO = [
    {"prompt": "a fox", "seconds": 5, "size": "832x480", "seed": 1024, "guidance_scale": 3.0, "num_inference_steps": 6},
    {"prompt": "a fox", "video_params": {"width": 832, "height": 480, "num_frames": 45, "fps": 16}, "n": 1},
]
_AIPERF = [
    {
        "model": "text-to-video",
        "prompt": "a fox",
        "size": "128x64",
        "num_inference_steps": 2,
        "seed": 42,
        "fps": 6,
        "seconds": 4,
    }
]
_LITELLM = [{"model": "text-to-video", "prompt": "a fox", "seconds": "4", "size": "96x64", "user": "someone"}]


@pytest.mark.parametrize("fields", [*_VLLM_OMNI, *_SGLANG, *_FASTVIDEO, *_AIPERF, *_LITELLM])
def test_requests_of_the_others_examples(fields: dict[str, Any]) -> None:
    read = order(fields)
    entry = TEXTS if read.picture is None else STILLS
    made = job_request(entry, read.form, read.picture)
    entry.resolve(dict(made.settings), 1)  # raises if the checkpoint could not make it


def test_the_table_in_the_docs_has_a_row_for_each() -> None:
    page = (Path(__file__).parents[4] / "docs" / "openai.md").read_text()
    first_cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    rows = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    fields = {"prompt", "model", "user", "width", "height", "enable_frame_interpolation", "frame_interpolation_exp"}
    fields |= {"input_reference", "image_reference", "reference_url", *HEEDED, *REFUSED}
    assert fields - rows == set()
