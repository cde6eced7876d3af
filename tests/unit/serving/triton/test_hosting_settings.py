"""Parameters of config.pbtxt as the engine's settings, and the version that a stored state tells."""

from __future__ import annotations

import logging
from dataclasses import fields

import pytest
import torch
from safetensors.torch import save

from model.errors import InvalidRequest
from serving.engine.settings import EngineSettings
from serving.triton.hosting import PARAMETERS, settings_from
from serving.triton.wire import MODEL_KEY, state_version


def test_the_instance_says_the_device_unless_a_parameter_does() -> None:
    assert settings_from({}, "CPU", 0) == EngineSettings(device="cpu")
    assert settings_from({}, "GPU", 3).device == "cuda:3"
    assert settings_from({"device": "cpu"}, "GPU", 3).device == "cpu"


def test_each_parameter_is_the_setting_of_its_name() -> None:
    told = {"denoiser": "onnxruntime", "dtype": "bfloat16", "threads": "2", "max_rows": "3", "max_batch": "4"}
    told |= {"deterministic": "true", "warm_up": "false", "checkpoint_every_s": "off", "mux_threads": "2"}
    told |= {"attention": "sdpa", "reuse_every": "1", "guidance_interval": "0.3 5", "vram_budget": "12.5"}
    told |= {"decode_chunk_plan": "diffusers"}
    assert settings_from(told, "CPU", 0) == EngineSettings(
        backend="onnxruntime",
        device="cpu",
        dtype="bfloat16",
        threads=2,
        max_rows=3,
        max_batch=4,
        mux_threads=2,
        deterministic=True,
        warm_up=False,
        checkpoint_every_s=None,
        attention="sdpa",
        reuse_every=1,
        decode_chunk_plan="diffusers",
        guidance_interval=(0.3, 5.0),
        vram_budget_gib=12.5,
    )
    assert settings_from({"checkpoint_every_s": "2.5"}, "CPU", 0).checkpoint_every_s == 2.5


def test_every_setting_of_the_engine_has_a_parameter() -> None:
    assert {setting for setting, _ in PARAMETERS.values()} == {one.name for one in fields(EngineSettings)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("threads", "many"),
        ("deterministic", "perhaps"),
        ("max_rows", "0"),
        ("guidance_interval", "5"),
        ("decode_chunk_plan", "odd"),
    ],
)
def test_a_value_that_is_none_is_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        settings_from({name: text}, "CPU", 0)


def test_a_misspelt_parameter_is_told_and_what_the_export_writes_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        settings_from({"threds": "2", "backend": "onnx", "label.stable": "1", "checkpoint_version": "x"}, "CPU", 0)
    assert [record.args for record in caplog.records] == [("threds",)]


def test_a_state_tells_who_made_it() -> None:
    state = save({"x": torch.zeros(2)}, metadata={MODEL_KEY: "mini@0123456789ab"})
    assert state_version(state) == "0123456789ab"
    assert state_version(save({"x": torch.zeros(2)})) is None


@pytest.mark.parametrize("state", [b"", b"\xff" * 30, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"])
def test_what_is_no_state_tells_nothing(state: bytes) -> None:
    assert state_version(state) is None


def test_both_sides_name_the_maker_alike() -> None:
    from model.sampling import row as stored

    assert stored.CHECKPOINT_KEY == MODEL_KEY
