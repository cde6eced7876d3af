"""Weights go to their device as they are read, into the layout that fused blocks read: none is written twice.

What the host holds meanwhile is measured in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from model import weights as weights_module
from model.errors import CheckpointError
from model.optimized.fused_blocks import fuse
from model.sources.layout import component_files
from model.weights import Layout, allocate, channels_last, empty_network, forget_pages, load_network
from tests.unit.model.sources.support import published

LOAD = """
import json, sys
from pathlib import Path
from transformers import CLIPVisionModelWithProjection
from model import weights
from model.sources.layout import component_files
import torch

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

def to_a_device(weight, device, dtype):
    # as a copy to a GPU: the weight is read, held once in the dtype it is to have, and leaves the host
    return weight.to("cpu", dtype, copy=True).to(device)

device, dtype = sys.argv[2], getattr(torch, sys.argv[3])
if device == "meta":
    weights._placed = to_a_device
weights.empty_network(CLIPVisionModelWithProjection, Path(sys.argv[1]))  # imports what the first use does
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = memory("VmRSS")
network = weights.load_network(
    CLIPVisionModelWithProjection, component_files(Path(sys.argv[1]), "float16"), device, dtype
)
print(json.dumps({"peak": memory("VmHWM") - before, "loaded": sum(p.nbytes for p in network.parameters())}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
def test_the_host_holds_at_most_a_fifth_more_than_the_component(root: Path, tmp_path: Path) -> None:
    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=16, projection_dim=1024
    )
    config.save_pretrained(tmp_path)
    state = empty_network(CLIPVisionModelWithProjection, tmp_path).state_dict()
    file = tmp_path / "model.safetensors"
    save_file({name: torch.ones(one.shape, dtype=torch.float16) for name, one in state.items()}, file, {"format": "pt"})
    size = file.stat().st_size
    assert size > 200e6

    def measured(device: str, dtype: str) -> dict[str, int]:
        command = [sys.executable, "-c", LOAD, str(tmp_path), device, dtype]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout))

    gone = measured("meta", "float16")
    assert gone["peak"] <= 1.2 * size, f"{gone['peak'] / size:.2f} times the component"
    stays = measured("cpu", "float32")
    assert stays["loaded"] > 1.9 * size  # the network itself, on the host for good
    assert stays["peak"] - stays["loaded"] <= 1.2 * size


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("published") / "plain")


NETWORKS = {"unet": UNetSpatioTemporalConditionModel, "vae": AutoencoderKLTemporalDecoder}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_layout_changes_where_numbers_lie_and_none_of_them(tiny: Path, network: str, dtype: torch.dtype) -> None:
    files = component_files(tiny / network, "float16")
    plain = load_network(NETWORKS[network], files, "cpu", dtype).state_dict()
    for layout in ("together", "fused"):
        laid = load_network(NETWORKS[network], files, "cpu", dtype, layout).state_dict()
        assert list(laid) == list(plain)
        assert all(torch.equal(laid[name], plain[name]) for name in plain)
        storages = {one.untyped_storage().data_ptr() for one in laid.values()}
        # Weights of the file's own dtype are not copied: they stay in the file's mapping, but for those laid anew.
        assert len(storages) == 1 or dtype == torch.float16
    assert all(channels_last(one).data_ptr() == one.data_ptr() for one in laid.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fused_blocks_copy_no_weight_that_was_laid_for_them(tiny: Path, dtype: torch.dtype) -> None:
    files = component_files(tiny / "unet", "float16")

    def fused(layout: Layout) -> tuple[UNetSpatioTemporalConditionModel, int]:
        unet = load_network(UNetSpatioTemporalConditionModel, files, "cpu", dtype, layout)
        before = {name: one.data_ptr() for name, one in unet.named_parameters()}
        fuse(unet)
        return unet, sum(one.data_ptr() != before[name] for name, one in unet.named_parameters())

    (plain, copied), (laid, none) = fused("each"), fused("fused")
    assert copied > 50
    assert none == 0
    stacked = [(name, one) for name, one in laid.named_buffers() if name.endswith("attn1.stacked")]
    assert stacked
    for name, one in stacked:
        parts = [laid.get_parameter(name.replace("stacked", f"to_{part}.weight")) for part in "qkv"]
        assert torch.equal(one, torch.cat(parts))
        assert one.data_ptr() == parts[0].data_ptr()
        assert torch.equal(one, plain.get_buffer(name))


def test_strangers_are_named_before_a_weight_is_read(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny / "vae", tmp_path / "vae")
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    weights["stranger"] = weights.pop("quant_conv.bias")
    save_file(weights, file)

    def no_reading(*_: object, **__: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(weights_module, "safe_open", no_reading)
    with pytest.raises(CheckpointError, match=r"missing keys: quant_conv\.bias"):
        load_network(AutoencoderKLTemporalDecoder, component_files(folder, "float16"), "cpu", torch.float32, "fused")


SIDES = st.lists(st.integers(0, 5), max_size=5).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
LAYOUTS: st.SearchStrategy[Layout] = st.sampled_from(["together", "fused"])


@given(shapes=st.lists(SIDES, max_size=6), dtype=DTYPES, layout=LAYOUTS)
def test_weights_lie_apart_in_the_layout_that_is_asked_for(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, layout: Layout
) -> None:
    wanted = {f"weight {number}": torch.empty(shape, device="meta") for number, shape in enumerate(shapes)}
    weights = allocate(wanted, dtype, layout)
    assert list(weights) == list(wanted)
    for number, (name, weight) in enumerate(weights.items()):
        assert weight.shape == wanted[name].shape
        assert weight.dtype == dtype
        assert weight.data_ptr() % 64 == 0
        plain = torch.empty(weight.shape)
        assert weight.stride() == (channels_last(plain) if layout == "fused" else plain).stride()
        weight.fill_(number + 1)
    for number, weight in enumerate(weights.values()):  # none has written into another
        assert bool((weight == number + 1).all())
    assert len({weight.untyped_storage().data_ptr() for weight in weights.values()}) <= 1


def test_a_weight_whose_pages_are_let_go_reads_the_same_again(tmp_path: Path) -> None:
    file, stored = tmp_path / "model.safetensors", torch.randn(5, 10_000)
    save_file({"small": torch.ones(3), "large": stored}, file)
    with safe_open(file, framework="pt") as opened:
        for name in ("small", "large"):
            weight = opened.get_tensor(name)
            before = weight.clone()
            forget_pages(weight)
            assert torch.equal(weight, before)
    assert torch.equal(before, stored)
