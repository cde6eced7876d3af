"""A LoRA that a command is given finds the checkpoint it is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.backends.registry import check_lora, with_usable_loras
from model.catalog import ModelEntry, attach_loras, with_lora
from model.errors import InvalidRequest
from model.lora.catalog import LoraUse, describe_lora
from model.tasks import task

LAYER = "unet.a.temporal_transformer_blocks.0.attn1.to_q"


def entry(name: str, kind: str = "image-to-video") -> ModelEntry:
    return ModelEntry(name, Path(name), task(kind), "0" * 12, (14,), 128, 224, 32, {})


def lora(folder: Path, name: str, **told: str) -> Path:
    path = folder / f"{name}.safetensors"
    folder.mkdir(exist_ok=True)
    save_file({f"{LAYER}.lora_A.weight": torch.ones(1, 4), f"{LAYER}.lora_B.weight": torch.ones(4, 1)}, path, told)
    return path


def offers(entries: list[ModelEntry]) -> dict[str, list[str]]:
    return {one.name: [lora.name for lora in one.loras] for one in entries}


def test_it_goes_to_the_checkpoint_it_was_trained_on(tmp_path: Path) -> None:
    first = lora(tmp_path, "pan", base="one@0123456789ab", task="image-to-video")
    made = attach_loras([entry("one"), entry("two"), entry("text", "text-to-video")], [str(first), f"left={first}"])
    assert offers(made) == {"one": ["pan", "left"], "two": [], "text": []}


def test_one_of_an_unknown_base_goes_to_the_only_one_that_can_take_it(tmp_path: Path) -> None:
    path = str(lora(tmp_path, "pan", task="image-to-video"))
    views = entry("views", "multi-view")
    assert offers(attach_loras([entry("one"), views], [path])) == {"one": ["pan"], "views": []}
    for served in ([entry("one"), entry("two")], [views], [replace(entry("one"), exported=True)]):
        with pytest.raises(InvalidRequest, match="with --model") as caught:
            attach_loras(served, [path])
        assert caught.value.param == "lora"


def test_a_folder_and_the_name_that_takes_another_s_place(tmp_path: Path) -> None:
    lora(tmp_path / "all", "pan", base="one")
    lora(tmp_path / "all", "zoom", base="one")
    made = attach_loras([entry("one")], [str(tmp_path / "all")])
    assert offers(made) == {"one": ["pan", "zoom"]}
    other = lora(tmp_path, "newer", base="one")
    made = attach_loras(made, [f"pan={other}"])
    assert {one.name: one.path for one in made[0].loras} == {
        "zoom": tmp_path / "all" / "zoom.safetensors",
        "pan": other,
    }


def test_a_name_twice_or_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = lora(tmp_path, "pan", base="one")
    with pytest.raises(InvalidRequest, match="two LoRAs are called 'pan'"):
        attach_loras([entry("one")], [str(path), f"pan={path}"])
    for given in ("nowhere.safetensors", f"a={tmp_path}"):
        with pytest.raises(InvalidRequest, match="is no file"):
            attach_loras([entry("one")], [given])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt"])
def test_a_backend_that_cannot_apply_it_refuses_with_the_remedy(tmp_path: Path, backend: str) -> None:
    one = with_lora(entry("one"), describe_lora(lora(tmp_path, "pan")))
    wanted = LoraUse("pan", one.loras[0].version, 1.0)
    with pytest.raises(InvalidRequest, match=f"one runs on {backend}.* --denoiser torch") as caught:
        check_lora(one, backend, wanted)
    assert (caught.value.code, caught.value.param) == ("lora_unsupported", "lora")
    check_lora(one, backend, None)
    for usable in ("torch", "torch-compiled", "torch-graphed"):
        check_lora(one, usable, wanted)
        assert with_usable_loras(one, usable) is one
    served = replace(one, exported=True) if backend == "tensorrt" else one
    assert with_usable_loras(served, backend).loras == ()
