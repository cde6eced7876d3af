"""Weights go to their device as they are read: what the host holds meanwhile, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from model.weights import empty_network

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
