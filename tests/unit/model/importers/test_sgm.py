"""Stability's single file: every name by rule, checked against names as others read them; there and back again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import load
from model.errors import CheckpointError, DataError
from model.importers.sgm import SET_ASIDE, Networks, Source, account, adapt, vision_sources
from model.presets import PRESETS, preset
from model.tasks import TASKS
from model.testing import build_random, stability_weights
from training.frozen_networks import frozen_text, frozen_vae, frozen_vision
from training.initial_weights import published_start

KNOWN = Path(__file__).parent / "sgm_names.txt"


def extras() -> dict[str, Tensor]:
    """One weight of each kind that is set aside."""
    return {prefix + ("weight" if prefix.endswith(".") else ""): torch.zeros(2) for prefix in SET_ASIDE}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random checkpoint folder, and the single file of the same weights."""
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = load(build_random(folder / "ours", preset("tiny"), TASKS["image-to-video"]))
    networks = Networks(checkpoint.unet, checkpoint.vae, checkpoint.conditioners.network)  # type: ignore[union-attr]
    save_file(stability_weights(networks) | extras(), folder / "svd.safetensors")
    return folder / "ours", folder / "svd.safetensors"


@pytest.mark.parametrize("size", ["svd", "svd-xt"])
def test_at_full_size_the_rules_give_each_weight_a_name_of_its_own(size: str) -> None:
    networks = Networks.build(PRESETS[size])
    named = Counter((source.key, source.part) for _, sources in networks.parts() for source in sources.values())
    assert set(named.values()) == {1}
    unet, vae, encoder = (len({source.key for source in sources.values()}) for _, sources in networks.parts())
    assert (unet, vae) == (len(networks.unet.state_dict()), len(networks.vae.state_dict()))
    assert encoder == len(networks.encoder.state_dict()) - 4 * PRESETS[size].image_encoder.layers
    assert account([key for key, _ in named] + list(extras()), networks).keys() == extras().keys()


def test_names_are_those_that_others_read_in_the_published_file() -> None:
    networks = Networks.build(PRESETS["svd-xt"])
    ruled = {source.key for _, sources in networks.parts() for source in sources.values()}
    known = {line for line in KNOWN.read_text().split("\n") if line and not line.startswith("#")}
    assert len(known) > 150
    assert known <= ruled, f"no rule gives {sorted(known - ruled)[:5]}"


def test_the_order_of_blocks_is_that_of_the_network() -> None:
    (unet, sources), *_ = Networks.build(PRESETS["svd"]).parts()
    weights = unet.state_dict()
    shapes = {source.key: tuple(weights[name].shape) for name, source in sources.items()}
    prefix = "model.diffusion_model."
    assert shapes[prefix + "input_blocks.4.0.skip_connection.weight"] == (640, 320, 1, 1)
    assert shapes[prefix + "input_blocks.9.0.op.weight"] == (1280, 1280, 3, 3)
    assert shapes[prefix + "output_blocks.2.1.conv.weight"] == (1280, 1280, 3, 3), "no attention before it"
    assert shapes[prefix + "output_blocks.5.2.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes[prefix + "output_blocks.11.0.in_layers.2.weight"] == (320, 640, 3, 3)


def test_a_file_becomes_the_checkpoint_it_was_made_of(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    ours, file = tiny
    entry, aside = adapt(file, tmp_path / "adapted", preset("tiny"), torch.float32)
    assert aside.keys() == extras().keys()
    assert all(aside.values()), "each with its reason"
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "image_encoder/model"):
        before, after = (load_file(folder / f"{part}.safetensors") for folder in (ours, entry.path))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before), part
    loaded = load(entry)
    picture = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        before = load(ours).conditioners.network(picture).image_embeds  # type: ignore[union-attr]
        assert torch.equal(loaded.conditioners.network(picture).image_embeds, before)  # type: ignore[union-attr]


def test_a_weight_too_few_too_many_or_of_another_shape_is_named(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    weights, file = load_file(tiny[1]), tmp_path / "bad.safetensors"
    name = "model.diffusion_model.out.2.weight"
    cases = [
        ({key: weight for key, weight in weights.items() if key != name}, "lacks .*out.2.weight"),
        (weights | {"model.diffusion_model.control.weight": torch.zeros(1)}, "no rule knows: .*control.weight"),
        (weights | {name: torch.zeros(5, 32, 3, 3)}, r"shape: conv_out.weight: \(5, 32, 3, 3\)"),
    ]
    for broken, told in cases:
        save_file(broken, file)
        with pytest.raises(CheckpointError, match=told):
            adapt(file, tmp_path / "out", preset("tiny"))
        assert not (tmp_path / "out").exists()
    file.write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(CheckpointError, match="cannot be read"):
        adapt(file, tmp_path / "out", preset("tiny"))


@pytest.mark.slow
def test_a_single_file_is_a_start_for_training(tiny: tuple[Path, Path]) -> None:
    ours, file = tiny
    size = preset("tiny")
    start = published_start(file, size)
    assert start.task is TASKS["image-to-video"]
    state = load_file(ours / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(p, state[name]) for name, p in start.unet.state_dict().items())
    assert all(p.requires_grad for p in start.unet.parameters())
    pixels, picture = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 224, 224)
    checkpoint = load(ours)
    with torch.no_grad():
        latents = frozen_vae(file, size).encode(pixels).latent_dist.mode()
        assert torch.allclose(latents, checkpoint.vae.encode(pixels).latent_dist.mode(), atol=1e-6)
        embeds = frozen_vision(file, size).network(picture).image_embeds
        assert torch.equal(embeds, checkpoint.conditioners.network(picture).image_embeds)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="holds no text encoder"):
        frozen_text(file, size)
    with pytest.raises(CheckpointError, match="of another size"):
        published_start(file, preset("mini"))


def test_query_key_and_value_come_from_one_weight() -> None:
    key = "vision_model.encoder.layers.3.self_attn.v_proj.bias"
    expected = Source(
        "conditioner.embedders.0.open_clip.model.visual.transformer.resblocks.3.attn.in_proj_bias", part=2
    )
    assert vision_sources([key])[key] == expected
