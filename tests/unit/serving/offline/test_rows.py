"""A row means what the same fields mean over HTTP."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidRequest
from model.lora.catalog import LoraEntry, LoraUse
from model.stages import UpscaleStage
from model.tasks import task
from serving.gateway.requests import read_json
from serving.gateway.routes.generate import to_job_request
from serving.offline.rows import RowContext, as_json, read_row
from tests.unit.serving.offline.support import GOOD, entry, reading


def over_http(name: str, **body: Any) -> dict[str, Any]:
    """The settings that the gateway reads from a JSON body."""
    return dict(to_job_request(read_json(json.dumps(body).encode(), task(name)), name).settings)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("image-to-video", {"image": "a.jpg", "fps": 9, "seed": 3, "min_guidance_scale": 1.5, "solver": "heun"}),
        ("text-to-video", {"prompt": "a red ball", "seed": 1}),
        ("frame-interpolation", {"image": "a.jpg", "last_image": "b.png", "noise_aug_strength": 0.5, "seed": 2}),
        ("multi-view", {"image": "a.jpg", "elevation": 20.0, "seed": 4}),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_settings_are_those_of_the_api(name: str, fields: dict[str, Any], strict: bool) -> None:
    ask = read_row({"task": name, **fields}, reading("/stills"), strict=strict)
    body = {key: {"url": value} if key in task(name).pictures else value for key, value in fields.items()}
    assert ask.params == entry(name).resolve(over_http(name, **body), seed=fields["seed"])
    assert ask.pictures == tuple(f"/stills/{fields[key]}" for key in task(name).pictures)


def test_a_table_is_read_as_a_form_and_gives_the_same_row() -> None:
    as_text = {
        "image": "a.jpg",
        "num_inference_steps": "2",
        "fps": "7",
        "seed": "",
        "prompt": None,
        "metadata": '{"a": "b"}',
    }
    typed = {"image": "a.jpg", "num_inference_steps": 2, "fps": 7, "metadata": {"a": "b"}}
    floats = {**typed, "fps": 7.0, "seed": float("nan")}
    rows = [read_row(as_text, reading(), strict=False), read_row(typed, reading(), strict=True)]
    rows.append(read_row(floats, reading(), strict=False))
    assert rows[0] == rows[1] == rows[2]
    with pytest.raises(InvalidRequest) as caught:  # as in a JSON body: a number must be a number
        read_row({**typed, "fps": "7"}, reading(), strict=True)
    assert caught.value.param == "fps"


def test_the_id_follows_from_what_the_row_says_unless_it_names_one() -> None:
    first = read_row(GOOD, reading("/one"), strict=True)
    assert first.id == f"a-{first.content[:10]}"
    elsewhere = read_row({**GOOD, "image": "https://host/deep/My photo (1).JPEG?size=2"}, reading(), strict=True)
    assert elsewhere.id == f"My-photo-1--{elsewhere.content[:10]}"
    words = read_row({"task": "text-to-video", "prompt": "a ball"}, reading(), strict=True)
    assert words.id == words.content[:20]
    assert read_row(dict(reversed(GOOD.items())), reading("/one"), strict=True) == first
    changes: list[tuple[dict[str, Any], RowContext]] = [
        ({**GOOD, "seed": 1}, reading("/one")),
        ({**GOOD, "output_format": "gif"}, reading("/one")),
        (GOOD, reading("/another")),
        (GOOD, RowContext((entry(version="ba9876543210"),), {}, "/one")),
    ]
    others = [read_row(values, against, strict=True) for values, against in changes]
    assert len({first.id, *(other.id for other in others)}) == 5
    named = read_row({**GOOD, "id": "shot-7"}, reading("/one"), strict=True)
    assert (named.id, named.content) == ("shot-7", first.content)


def test_a_lora_s_version_and_strength_are_part_of_what_a_row_says() -> None:
    def read(version: str, **asked: Any) -> tuple[str, str, LoraUse | None]:
        pan = LoraEntry("pan", Path("pan.safetensors"), version, 16, 16.0)
        row = read_row({**GOOD, **asked}, RowContext((replace(entry(), loras=(pan,)),), {}, ""), strict=True)
        return row.content, row.id, row.params.adapter

    first, again = read("0" * 12, lora="pan"), read("0" * 12, lora="pan", lora_scale=1.0)
    assert first == again
    assert first[2] == LoraUse("pan", "0" * 12, 1.0)
    others = [read("1" * 12, lora="pan"), read("0" * 12, lora="pan", lora_scale=0.5), read("0" * 12)]
    assert len({one[0] for one in (first, *others)}) == 4


def test_a_row_without_a_seed_always_has_the_same_one() -> None:
    seeds = [read_row({**GOOD, "id": name}, reading(), strict=True).params.seed for name in ("a", "b", "a")]
    assert seeds[0] == seeds[2] != seeds[1]


def test_defaults_fill_what_a_row_leaves_open() -> None:
    ask = read_row(
        {"image": "a.jpg", "fps": 9, "seed": None}, reading(fps=5, seed=11, num_inference_steps=3), strict=True
    )
    assert (ask.params.fps, ask.params.seed, ask.params.num_inference_steps) == (9, 11, 3)


def test_the_named_model_says_the_task() -> None:
    assert (
        read_row({"model": "text-to-video", "prompt": "a"}, reading(), strict=True).entry.task.name == "text-to-video"
    )


def test_a_line_of_a_batch_over_http_is_a_row() -> None:
    line = {"custom_id": "shot-1", "url": "/generate/text-to-video", "body": {"prompt": "a", "seed": 5}}
    ask = read_row(line, reading(), strict=True)
    assert (ask.id, ask.entry.task.name, ask.params.seed) == ("shot-1", "text-to-video", 5)
    with pytest.raises(InvalidRequest):
        read_row({**line, "url": "/generate/nothing"}, reading(), strict=True)


def test_a_row_may_have_stages() -> None:
    row = {**GOOD, "seed": 7}  # without one it follows from all that a row says
    plain = read_row(row, reading(), strict=False)
    assert not plain.stages
    larger = read_row({**row, "upscale": "2"}, reading(), strict=False)
    assert (larger.stages.upscale, larger.params) == (UpscaleStage(2), plain.params)
    assert larger.content != plain.content, "another row"
    several = read_row({**row, "interpolate": "true"}, reading(), strict=False)
    assert several.stages.interpolate is not None
    alone = replace(reading(), entries=(entry(),))
    for value, strict in ((True, True), ("between", True), ("true", False)):
        with pytest.raises(InvalidRequest) as caught:
            read_row({**row, "interpolate": value}, alone, strict=strict)
        assert (caught.value.code, caught.value.param) == ("no_interpolation_model", "interpolate")
    left_out = read_row({**row, "interpolate": "false"}, reading(), strict=False)
    assert (left_out.params, left_out.content) == (plain.params, plain.content)


def test_pictures_may_be_bytes() -> None:
    data = b"\x89PNG and so on"
    told = as_json({"image": data, "num_inference_steps": 2})
    assert read_row(json.loads(told), reading(), strict=False).pictures == (data,)
    given = {"image": {"data": base64.b64encode(data).decode()}, "num_inference_steps": 2}
    assert read_row(given, reading(), strict=True).pictures == (data,)


@pytest.mark.parametrize("reference", ["/abs/a.jpg", "s3://bucket/a.jpg", "https://example.com/a.jpg"])
def test_absolute_pictures_stay_where_they_are(reference: str) -> None:
    assert read_row({**GOOD, "image": reference}, reading("/base"), strict=False).pictures == (reference,)
