"""Every objective computes where its network is: on the meta device, in place of a GPU.

torch refuses an operation on tensors there and on the CPU, as it does on a GPU's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.presets import preset
from model.vae import build_vae
from tests.unit.training.support import moving_square
from training import frozen_networks, train
from training.data import latents
from training.data.excluded_clips import ExcludedClips
from training.objectives import contrastive as contrastive_objective
from training.objectives import decoder, equivariance, vae
from training.objectives.contrastive import ContrastiveObjective
from training.objectives.decoder import DecoderObjective
from training.objectives.equivariance import EquivarianceObjective
from training.objectives.examples import drawing
from training.objectives.vae import VAEObjective
from training.recipes.image_encoder import mini_image_encoder
from training.recipes.vae import mini_decoder_orbits, mini_vae, mini_vae_equivariant

META = torch.device("meta")
CLIPS = [moving_square(f"c{i}", frames=4, seed=i) for i in range(3)]


def small(recipe: Any, **changes: Any) -> Any:
    return dataclasses.replace(recipe, preset="tiny", optim=dataclasses.replace(recipe.optim, batch=2), **changes)


def autoencoder() -> Any:
    return VAEObjective(small(mini_vae(), phase_batch=2, crop=32, frames=2), CLIPS)


def fitted_decoder() -> Any:
    return DecoderObjective(small(mini_decoder_orbits(), crop=32, frames=2), build_vae(preset("tiny")), CLIPS)


def equivariant() -> Any:
    return EquivarianceObjective(small(mini_vae_equivariant(), crop=40), build_vae(preset("tiny")), CLIPS)


def contrastive() -> Any:
    return ContrastiveObjective(small(mini_image_encoder()), CLIPS)


class Text(nn.Module):
    """In place of the text tower, whose attention mask reads numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(text_embeds=(self.embed(input_ids) * attention_mask[..., None]).mean(1))


def drawn(clips: object, count: int, frames: int, side: int, draw: object) -> Tensor:
    """In place of random_crops, which reads numbers."""
    return torch.zeros(count * frames, 3, side, side)


@pytest.mark.parametrize("make", [autoencoder, fitted_decoder, equivariant, contrastive])
def test_a_loss_is_computed_where_the_network_is(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    objective = make()
    for module in (vae, decoder, equivariance):
        monkeypatch.setattr(module, "random_crops", drawn)
    if isinstance(objective, ContrastiveObjective):
        captions = objective.batch(0)[1]
        monkeypatch.setattr(objective, "batch", lambda _: (torch.zeros(4, 3, 64, 64), captions))
        objective.towers.text = Text(preset("tiny").image_encoder.projection)
    monkeypatch.setattr(Tensor, "item", lambda _: 0.0)  # of the log's numbers
    objective.module.to(META)
    if isinstance(objective, VAEObjective):
        objective.target.to(META)
    for step in (0, 10**6):
        objective.enter(step)
        loss, _ = objective.loss(step)
        assert loss.device == META


def test_latents_are_encoded_where_the_autoencoder_is_and_stored_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(_: object, pixels: Tensor) -> Tensor:
        assert pixels.device == META
        return torch.zeros(len(pixels), 4, 8, 8)

    monkeypatch.setattr(latents, "encode_mode", encode)
    monkeypatch.setattr(drawing, "encode_mode", encode)
    encoder: Any = build_vae(preset("tiny"), device=META).to(META)
    encoded, embeds = latents._encode(CLIPS[0], encoder, None)
    assert encoded.shape == (4, 4, 8, 8) and embeds.shape == (4, 0)
    clip = latents.LatentClip(CLIPS[0], encoded, embeds, {})
    assert drawing.noisy_latent(encoder, clip, 1, 0.02, torch.Generator()).device == torch.device("cpu")


@pytest.mark.parametrize("recipe", [mini_vae, mini_decoder_orbits, mini_vae_equivariant, mini_image_encoder])
def test_a_recipe_s_networks_go_to_the_device_of_the_process(
    recipe: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `train` builds the objective, on a machine whose processes compute on the meta device."""
    monkeypatch.setattr(train, "join_processes", lambda: META)
    monkeypatch.setattr(train, "training_items", lambda *_: [])
    monkeypatch.setattr(train, "load_clips", lambda *_: CLIPS)
    monkeypatch.setattr(train, "dataset_identity", lambda _: {"name": "footage"})
    monkeypatch.setattr(train, "resolve_source", lambda *_: tmp_path)
    monkeypatch.setattr(frozen_networks, "frozen_vae", lambda *_: build_vae(preset("tiny")))
    monkeypatch.setattr(contrastive_objective.CLIPTokenizer, "save_pretrained", lambda *_: ())
    excluded = ExcludedClips(lambda *_: None, 0)
    objective = train.build_objective(small(recipe()), tmp_path, tmp_path / "run", lambda *_: None, excluded)
    assert {weight.device for weight in objective.module.parameters()} == {META}
