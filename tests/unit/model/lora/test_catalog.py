"""A LoRA's file is described by its header, every key accounted for, and refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from model.errors import CheckpointError, InvalidRequest
from model.lora.catalog import LoraEntry, LoraUse, choose_lora, describe_lora, lora_use, offered_in, split_key

LAYER = "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q"
OTHER = LAYER.replace("to_q", "to_out.0")


def tensors() -> dict[str, Tensor]:
    return {
        f"{layer}.lora_{half}.weight": torch.ones(shape)
        for layer in (LAYER, OTHER)
        for half, shape in (("A", (3, 8)), ("B", (8, 3)))
    }


def saved(folder: Path, weights: dict[str, Tensor], told: dict[str, str] | None = None) -> Path:
    path = folder / "pan-left.safetensors"
    save_file(weights, path, metadata=told or {})
    return path


def test_a_file_tells_its_rank_and_what_it_was_trained_on(tmp_path: Path) -> None:
    path = saved(tmp_path, tensors(), {"name": "pan", "task": "image-to-video", "base": "m@0123456789ab", "alpha": "6"})
    entry = describe_lora(path)
    assert (entry.name, entry.rank, entry.alpha) == ("pan", 3, 6.0)
    assert (entry.task, entry.base) == ("image-to-video", "m@0123456789ab")
    assert describe_lora(path, "other").name == "other"
    save_file(tensors() | {f"{LAYER}.lora_A.weight": torch.zeros(3, 8)}, path)
    assert describe_lora(path).version != entry.version


def test_a_file_of_another_tool_is_named_after_itself_and_has_its_own_alpha(tmp_path: Path) -> None:
    bare = {key.removeprefix("unet."): value for key, value in tensors().items()}
    plain = describe_lora(saved(tmp_path, bare))
    assert (plain.name, plain.alpha, plain.task, plain.base) == ("pan-left", 3.0, "", "")
    told = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 12, "unet.use_dora": False})}
    assert describe_lora(saved(tmp_path, bare, told)).alpha == 12.0
    told = {"lora_adapter_metadata": json.dumps({"use_rslora": True})}
    with pytest.raises(CheckpointError, match="use_rslora, which is not served"):
        describe_lora(saved(tmp_path, bare, told))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_kohya_s_alphas_are_read_without_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    name = "lora_unet_up_blocks_1_attentions_2_temporal_transformer_blocks_0_ff_in_net_0_proj"
    weights = {f"{name}.lora_down.weight": torch.ones(3, 8), f"{name}.lora_up.weight": torch.ones(16, 3)}
    assert describe_lora(saved(tmp_path, weights)).alpha == 3.0
    entry = describe_lora(saved(tmp_path, weights | {f"{name}.alpha": torch.tensor(1.5, dtype=dtype)}))
    assert (entry.rank, entry.alpha) == (3, 1.5)
    other = name.replace("ff_in", "ff")
    more = {key.replace(name, other): value.clone() for key, value in weights.items()} | {
        f"{other}.alpha": torch.tensor(2.0)
    }
    with pytest.raises(CheckpointError, match="several alphas"):
        describe_lora(saved(tmp_path, weights | {f"{name}.alpha": torch.tensor(1.5)} | more))


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        (f"{LAYER}.lora_A.weight", LAYER.removeprefix("unet.")),
        (f"base_model.model.{LAYER}.lora_A.weight", LAYER.removeprefix("unet.")),
        (f"{OTHER}.lora.down.weight", OTHER.removeprefix("unet.")),
        (f"{LAYER.replace('.to_q', '.processor.to_q_lora')}.down.weight", LAYER.removeprefix("unet.")),
        (f"{LAYER.replace('.to_q', '.processor.to_out_lora')}.down.weight", OTHER.removeprefix("unet.")),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "mid_block.attentions.0.proj_in"),
        (
            "lora_unet_up_blocks_3_attentions_1_transformer_blocks_0_attn2_to_out_0.lora_down.weight",
            "up_blocks.3.attentions.1.transformer_blocks.0.attn2.to_out.0",
        ),
        (
            "lora_unet_down_blocks_2_attentions_0_temporal_transformer_blocks_0_ff_net_2.lora_down.weight",
            "down_blocks.2.attentions.0.temporal_transformer_blocks.0.ff.net.2",
        ),
    ],
)
def test_every_trainer_s_name_is_a_layer_s(key: str, layer: str) -> None:
    assert split_key(key) == (layer, "A")


def change(key: str, value: Tensor | None) -> Callable[[], dict[str, Tensor]]:
    """The file with one key given another tensor, or taken away."""
    return lambda: {name: one for name, one in (tensors() | {key: value}).items() if one is not None}


@pytest.mark.parametrize(
    ("weights", "told", "why"),
    [
        (change("unet.conv_in.lora_A.weight", torch.ones(3, 8)), {}, "unet.conv_in.lora_A.weight is of no layer"),
        (change(f"{LAYER}.alpha", torch.tensor(3.0)), {}, "several alphas, or some have none"),
        (change("lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight", torch.ones(3, 8)), {}, "of no layer that"),
        (
            change("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", torch.ones(3, 8)),
            {},
            "of no layer that",
        ),
        (change(LAYER.replace("attn1.to_q", "norm1") + ".lora_A.weight", torch.ones(3, 8)), {}, "is of no layer"),
        (
            change(LAYER.replace("temporal_", "") + ".lora_A.weight", torch.ones(3, 8)),
            {},
            "only one of lora_A and lora_B",
        ),
        (change(f"{LAYER}.lora_B.weight", None), {}, "only one of lora_A and lora_B"),
        (change(f"{LAYER}.lora_B.weight", torch.ones(8, 4)), {}, "lora_A of .* has rank 3, and lora_B rank 4"),
        (change(f"{LAYER}.lora_A.weight", torch.ones(8)), {}, "is no matrix"),
        (change(f"{LAYER.removeprefix('unet.')}.lora_A.weight", torch.ones(3, 8)), {}, "is there twice"),
        (tensors, {"rank": "16"}, "says rank 16, and its weights have rank 3"),
        (tensors, {"alpha": "much"}, "no alpha that is a number"),
        (tensors, {"name": "../up"}, "is no name for a LoRA"),
        (dict, {"name": "pan"}, "holds no weights"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    tmp_path: Path, weights: Callable[[], dict[str, Tensor]], told: dict[str, str], why: str
) -> None:
    with pytest.raises(CheckpointError, match=why) as caught:
        describe_lora(saved(tmp_path, weights(), told))
    assert (caught.value.code, caught.value.param) == ("bad_lora", "lora")


def test_unequal_ranks_are_refused(tmp_path: Path) -> None:
    weights = tensors() | {f"{LAYER}.lora_A.weight": torch.ones(2, 8), f"{LAYER}.lora_B.weight": torch.ones(8, 2)}
    with pytest.raises(CheckpointError, match="ranks 2, 3; one rank for all"):
        describe_lora(saved(tmp_path, weights))


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "lora.pt", "lora.ckpt"])
def test_a_pickle_is_refused_unread(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(CheckpointError, match="may run code"):
        describe_lora(path)


@given(cut=st.integers(0, 400))
def test_half_a_header_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = saved(tmp_path_factory.mktemp("cut"), tensors())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        describe_lora(path)


def test_a_folder_offers_its_files_by_name(tmp_path: Path) -> None:
    saved(tmp_path, tensors())
    (tmp_path / "README.md").write_text("not one")
    assert [one.name for one in offered_in(tmp_path)] == ["pan-left"]
    assert offered_in(tmp_path / "nowhere") == ()


ENTRY = LoraEntry("pan", Path("pan.safetensors"), "0123456789ab", 16, 16.0)


def test_a_request_may_pin_the_version() -> None:
    assert choose_lora("pan", (ENTRY,), "m") == choose_lora(ENTRY.pinned, (ENTRY,), "m") == ENTRY
    with pytest.raises(InvalidRequest, match="has version 0123456789ab here, not ffffffffffff") as caught:
        choose_lora("pan@ffffffffffff", (ENTRY,), "m")
    assert caught.value.code == "other_version"
    for offered, there in (((ENTRY,), "there are: pan"), ((), "there are none")):
        with pytest.raises(InvalidRequest, match=f"m offers no LoRA 'zoom'; {there}") as caught:
            choose_lora("zoom", offered, "m")
        assert (caught.value.code, caught.value.param) == ("lora_not_found", "lora")


def test_complete_settings_have_both_or_neither() -> None:
    assert lora_use(None, None) is None
    assert lora_use(ENTRY.pinned, 0.5) == LoraUse("pan", "0123456789ab", 0.5)
    for pinned, scale in (("pan@0123456789ab", None), (None, 1.0), ("pan", 1.0), ("pan@12", 1.0)):
        with pytest.raises(InvalidRequest):
            lora_use(pinned, scale)


def test_describing_imports_no_torch() -> None:
    code = "import sys, model.lora.catalog, model.catalog; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
