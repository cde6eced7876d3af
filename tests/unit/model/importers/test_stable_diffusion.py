"""Stable Diffusion's folder becomes a video denoiser and autoencoder that compute of each frame what it did."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.errors import CheckpointError
from model.importers.stable_diffusion import NEW_IN_DENOISER, autoencoder_from, denoiser_from
from model.presets import preset
from tests.unit.training.published_folders import TINY, image_unet, stable_diffusion
from training.joint_image_video import enable_image_rows, image_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return stable_diffusion(tmp_path_factory.mktemp("published") / "sd")


def theirs(folder: Path) -> UNet2DConditionModel:
    """Stable Diffusion's own, but for the one number that no config of the video class holds."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    blocks = [*(block for block in unet.down_blocks if hasattr(block, "attentions")), *unet.up_blocks]
    for resnet in (resnet for block in blocks for resnet in block.resnets):
        resnet.norm1.eps = resnet.norm2.eps = 1e-6
    return unet.eval()


def test_pictures_are_denoised_as_before_with_the_temporal_layers_in(folder: Path) -> None:
    torch.manual_seed(1)
    unet = denoiser_from(folder, TINY).eval()
    enable_image_rows(unet)
    x, context, step = torch.randn(3, 4, 8, 8), torch.randn(3, 77, 32), torch.tensor([0.3, 20.0, 700.0])
    vector = torch.tensor([[6.0, 127.0], [1.0, 1.0], [24.0, 255.0]])

    @torch.no_grad()
    def ours() -> Tensor:
        with image_rows(torch.ones(3, 1)):
            return unet(x[:, None], step, encoder_hidden_states=context, added_time_ids=vector).sample[:, 0]

    with torch.no_grad():
        wanted = theirs(folder)(x, step, encoder_hidden_states=context).sample
        plain = UNet2DConditionModel.from_pretrained(folder / "unet")(x, step, encoder_hidden_states=context).sample
    before = ours()
    assert torch.allclose(before, wanted, atol=1e-5)
    assert torch.allclose(before, plain, atol=1e-3), "1e-6 under a root in the place of 1e-5"
    for name, p in unet.named_parameters():
        if "temporal" in name or "time_pos" in name or "mix_factor" in name:
            p.data.add_(0.3 * torch.randn_like(p))
    assert torch.equal(ours(), before), "whatever the temporal layers are, pictures pass them by"


@torch.no_grad()
def test_a_clip_is_denoised_frame_by_frame_until_the_temporal_layers_learn(folder: Path) -> None:
    torch.manual_seed(2)
    unet = denoiser_from(folder, TINY).eval()
    x, context, step = torch.randn(1, 3, 4, 8, 8), torch.randn(1, 77, 32), torch.tensor([0.3])
    told = {"encoder_hidden_states": context, "added_time_ids": torch.tensor([[6.0, 127.0]])}
    out = unet(x, step, **told).sample[0]
    frames = theirs(folder)(x[0], step, encoder_hidden_states=context.expand(3, -1, -1)).sample
    assert torch.allclose(out, frames, atol=1e-5)
    unet.down_blocks[0].resnets[0].temporal_res_block.conv2.weight.normal_()
    assert not torch.allclose(unet(x, step, **told).sample[0], frames, atol=1e-3)


def test_every_weight_has_a_place_and_what_is_new_is_temporal(folder: Path) -> None:
    old = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    unet = denoiser_from(folder, TINY)
    state = unet.state_dict()
    new = {name for name in state if any(part in name for part in NEW_IN_DENOISER)}
    assert len(state) == len(old) + len(new)
    assert all(name.startswith("add_embedding.") or "tempor" in name or "time_" in name for name in new)
    total = sum(p.numel() for name, p in state.items() if name not in new)
    assert total == sum(p.numel() for p in old.values())
    unet.train()
    out = unet(
        torch.randn(1, 2, 4, 8, 8),
        torch.tensor([0.1]),
        encoder_hidden_states=torch.randn(1, 77, 32),
        added_time_ids=torch.ones(1, 2),
    ).sample
    out.square().mean().backward()
    learning = {name for name, p in unet.named_parameters() if p.grad is not None and p.grad.any()}
    assert "add_embedding.linear_2.weight" in learning
    assert any("temporal_transformer_blocks" in name for name in learning) and any("time_pos" in n for n in learning)


@torch.no_grad()
def test_the_autoencoder_encodes_the_same_and_decodes_each_frame_the_same(folder: Path) -> None:
    torch.manual_seed(3)
    old, vae = AutoencoderKL.from_pretrained(folder / "vae").eval(), autoencoder_from(folder / "vae").eval()
    pixels, latents = torch.randn(2, 3, 32, 32), torch.randn(3, 4, 6, 6)
    assert torch.equal(vae.encode(pixels).latent_dist.mode(), old.encode(pixels).latent_dist.mode())
    first, last = old.decoder.conv_in(old.post_quant_conv(latents)), vae.decoder.conv_in(latents)
    assert torch.allclose(first[..., 1:-1, 1:-1], last[..., 1:-1, 1:-1], atol=1e-5), "but for the outermost cells"
    old.post_quant_conv.bias.zero_()
    old.save_pretrained(folder / "plain")
    plain = autoencoder_from(folder / "plain").eval()
    assert torch.allclose(plain.decode(latents, num_frames=3).sample, old.decode(latents).sample, atol=1e-5)
    assert vae.config["scaling_factor"] == 0.18215


def test_another_size_form_or_prediction_is_refused_by_what_differs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"attention heads, size 'svd'"):
        denoiser_from(folder, preset("svd"))
    wider = dataclasses.replace(TINY, name="wider", unet=dataclasses.replace(TINY.unet, context_dim=48))
    with pytest.raises(CheckpointError, match=r"of another size than 'wider': .*attn2\.to_k\.weight \(32, 32\)"):
        denoiser_from(folder, wider)
    cases: list[tuple[UNet2DConditionModel, str]] = [
        (image_unet(use_linear_projection=False), "use_linear_projection False, not True"),
        (image_unet(layers_per_block=2), "no place in ours: down_blocks.0.attentions.1"),
    ]
    for unet, told in cases:
        unet.save_pretrained(tmp_path / "other" / "unet")
        (tmp_path / "other" / "scheduler").mkdir(exist_ok=True)
        (tmp_path / "other" / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
        with pytest.raises(CheckpointError, match=told):
            denoiser_from(tmp_path / "other", TINY)
    (tmp_path / "other" / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    with pytest.raises(CheckpointError, match="predicts 'epsilon'; a start predicts v"):
        denoiser_from(tmp_path / "other", TINY)


def test_a_weight_that_is_missing_or_too_many_is_named(folder: Path, tmp_path: Path) -> None:
    cast_unet: nn.Module = image_unet()
    cast_unet.save_pretrained(tmp_path / "unet")  # type: ignore[operator]
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    whole = load_file(path)
    save_file({name: p for name, p in whole.items() if name != "conv_out.weight"}, path)
    with pytest.raises(CheckpointError, match=r"missing keys: conv_out\.weight"):
        denoiser_from(tmp_path, TINY)
    save_file({**whole, "control.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected keys: control\.weight"):
        denoiser_from(tmp_path, TINY)
