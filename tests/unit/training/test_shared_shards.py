"""An autoencoder in two files loads as it did in one, and what a fitted decoder shares with another is identical."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder

from model.presets import preset
from model.vae import build_vae
from training.release import LATE_LAYERS, split_vae_weights


def test_two_files_hold_what_one_held(tmp_path: Path) -> None:
    vae = build_vae(preset("tiny"))
    vae.save_pretrained(tmp_path)
    split_vae_weights(tmp_path)
    assert not (tmp_path / "diffusion_pytorch_model.safetensors").exists()
    loaded, told = AutoencoderKLTemporalDecoder.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    ours, theirs = vae.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_another_decoder_leaves_the_shared_file_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = build_vae(preset("tiny"))
    for name in ("first", "second"):
        vae.save_pretrained(tmp_path / name)
        split_vae_weights(tmp_path / name)
        with torch.no_grad():
            for key, p in vae.named_parameters():
                if key.startswith(LATE_LAYERS):
                    p.add_(1.0)
    files = ["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"]
    same = [(tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes() for file in files]
    assert same == [True, False]
