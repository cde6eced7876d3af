"""LoRA training: it starts as the base itself, changes the adapters alone, and goes on exactly where it stopped."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from model.errors import DataError, InvalidRequest
from model.lora.weights import temporal_projections
from model.optimized.rewrites import rewrite_exactly
from model.presets import preset
from model.tasks import task
from model.unet import build_unet, count_parameters
from model.vae import build_vae
from tests.unit.training.support import moving_square
from training.config import LoraConfig, Runtime
from training.data.camera import MOTIONS, camera_clips
from training.data.latents import LatentClip
from training.data.motion_bucket import MotionMap
from training.lora import LoraLinear, LoraObjective, adapt
from training.objectives.examples.film import CameraExamples
from training.objectives.protocol import Batch
from training.overrides import with_overrides
from training.recipes.camera_lora import mini_camera_lora_horizontal, mini_camera_lora_static
from training.trainer import Trainer

pytestmark = pytest.mark.timeout(600)  # seconds; ten on a quiet machine
RECIPE = mini_camera_lora_horizontal()
CONFIG = dataclasses.replace(
    RECIPE,
    preset="tiny",
    rank=3,
    alpha=6.0,
    optim=dataclasses.replace(RECIPE.optim, iterations=4, batch=2, warmup=2, log_every=1, checkpoint_every=2, seed=4),
    num_frames=3,
)


class Waves:
    """Clips whose content runs on by a step a frame, with a picture's latent and embedding."""

    def __init__(self) -> None:
        self.clips: list[LatentClip] = []

    def example(self, draw: torch.Generator) -> Batch:
        number = int(torch.randint(0, 50, (), generator=draw))
        g = torch.Generator().manual_seed(number)
        base = torch.randn(4, 8, 11, generator=g)
        clean = torch.stack([base[..., k : k + 8] for k in range(3)])[None]
        vector = torch.tensor([[5.0, 100.0, 0.02]])
        return Batch(clean, clean[:, :1].expand_as(clean), torch.randn(1, 1, 32, generator=g), vector, (f"w-{number}",))


@pytest.fixture(scope="module")
def base() -> UNetSpatioTemporalConditionModel:
    torch.manual_seed(1)
    # Frozen, as a checkpoint is loaded: torch multiplies by a weight that is to have a gradient in another order.
    unet = build_unet(preset("tiny"), task("image-to-video"), num_frames=3).eval().requires_grad_(False)
    rewrite_exactly(unet, context_tokens=1)
    return unet


def objective(base: UNetSpatioTemporalConditionModel, config: LoraConfig = CONFIG) -> LoraObjective:
    return LoraObjective(config, copy.deepcopy(base), Waves())


def output(unet: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(3)
    told = (torch.randn(1, 3, 8, 8, 8, generator=g), torch.tensor([0.3]), torch.randn(1, 1, 32, generator=g))
    with torch.inference_mode():
        out: Tensor = unet(*told, added_time_ids=torch.tensor([[5.0, 90.0, 0.02]]), return_dict=False)[0]
    return out


def test_it_starts_as_the_base_bit_for_bit(base: UNetSpatioTemporalConditionModel) -> None:
    made = objective(base)
    assert torch.equal(output(cast(nn.Module, made.unet)), output(cast(nn.Module, base)))
    pairs = made.adapters.pairs()
    assert pairs.keys() == temporal_projections(base).keys()
    for name, (down, up) in pairs.items():
        layer = temporal_projections(base)[name]
        assert (down.shape, up.shape) == ((3, layer.in_features), (layer.out_features, 3))
        assert down.std() > 0.1 / layer.in_features**0.5
        assert not up.any()
    assert len({float(down.detach().sum()) for down, _ in pairs.values()}) == len(pairs), "each is drawn by itself"


def test_only_the_adapters_train_and_each_of_them_does(base: UNetSpatioTemporalConditionModel, tmp_path: Path) -> None:
    made = objective(base)
    own = {id(p) for pair in made.adapters.pairs().values() for p in pair}
    assert {id(p) for p in cast(nn.Module, made.unet).parameters() if p.requires_grad} == own
    before = {name: p.detach().clone() for name, p in cast(nn.Module, made.unet).named_parameters()}
    trainer = Trainer(made, CONFIG, tmp_path)
    trainer.run(until=3)
    for name, p in cast(nn.Module, made.unet).named_parameters():
        assert torch.equal(p, before[name]) == ("lora_" not in name), name
    assert trainer.ema.average.keys() == dict(made.adapters.named_parameters()).keys()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    held = sum(value.numel() for value in state["module"].values())
    assert (
        held == count_parameters(made.adapters) == sum(a.numel() + b.numel() for a, b in made.adapters.pairs().values())
    )
    changed = output(cast(nn.Module, made.unet))
    assert not torch.equal(changed, output(cast(nn.Module, base)))


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_run(base: UNetSpatioTemporalConditionModel, tmp_path: Path) -> None:
    whole = Trainer(objective(base), CONFIG, tmp_path / "whole")
    whole.run()
    Trainer(objective(base), CONFIG, tmp_path / "parts").run(until=2)
    second = Trainer(objective(base), CONFIG, tmp_path / "parts")
    second.resume()
    assert second.step == 2
    second.run()
    curves = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)
    assert len(curves[0]) == 4
    for name, p in whole.objective.module.named_parameters():
        assert torch.allclose(p, dict(second.objective.module.named_parameters())[name], atol=1e-7), name
        assert torch.allclose(whole.ema.average[name], second.ema.average[name], atol=1e-7), name
    other = dataclasses.replace(CONFIG, rank=2)
    with pytest.raises(DataError, match="rank 3, not 2"):
        Trainer(objective(base, other), other, tmp_path / "parts").resume()


@pytest.mark.full
def test_recomputed_gradients_are_the_same(base: UNetSpatioTemporalConditionModel) -> None:
    grads = []
    for checkpointing in (False, True):
        made = objective(base, dataclasses.replace(CONFIG, runtime=Runtime(checkpointing=checkpointing)))
        made.backward(0)
        grads.append({name: p.grad for name, p in made.module.named_parameters() if "lora_B" in name})
    for name, grad in grads[0].items():
        again = grads[1][name]
        assert grad is not None and again is not None and grad.any()
        assert torch.allclose(grad, again, atol=1e-6), name


def test_adapters_on_the_meta_device_take_no_memory_and_count(base: UNetSpatioTemporalConditionModel) -> None:
    unet = build_unet(preset("tiny"), task("image-to-video"), device="meta")
    frozen = count_parameters(cast(nn.Module, unet))
    adapters = adapt(unet, 16, 16.0, 0)
    layers = [layer.plain for layer in unet.modules() if isinstance(layer, LoraLinear)]
    assert len(layers) == len(temporal_projections(base)) == 16
    assert count_parameters(adapters) == sum(16 * (layer.in_features + layer.out_features) for layer in layers)
    assert count_parameters(cast(nn.Module, unet), trainable=True) == count_parameters(adapters)
    assert count_parameters(cast(nn.Module, unet)) == frozen + count_parameters(adapters)
    assert all(p.is_meta for p in adapters.parameters())


def drawn(data_bucket: float) -> set[float]:
    """The buckets told of 12 rows."""
    torch.manual_seed(0)
    vae = build_vae(preset("tiny")).eval()
    clip = moving_square("c", frames=3)
    latents = np.zeros((3, 4, 8, 8), np.float16)
    known = LatentClip(clip, latents, np.ones((3, 32), np.float32), {1: np.full(2, 0.04, np.float32)})
    static = mini_camera_lora_static()
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(static.data, bucket_drawn=data_bucket))
    examples = CameraExamples(config, [known], vae, MotionMap())
    rows = [examples.example(torch.Generator().manual_seed(seed)) for seed in range(12)]
    assert all(row.clean.shape == row.concat.shape == (1, 3, 4, 8, 8) for row in rows)
    return {row.vector[0, 1].item() for row in rows}


def test_a_still_camera_learns_at_every_bucket_and_the_others_at_the_measured_one() -> None:
    assert drawn(0.0) == {128.0}
    assert len(drawn(1.0)) > 6
    assert mini_camera_lora_static().data.bucket_drawn == 1.0
    assert RECIPE.data.bucket_drawn == 0.0


def test_settings_that_a_run_would_not_heed_are_refused() -> None:
    for setting, why in (
        ("rank=0", "rank must be"),
        ("runtime.sharding=fsdp2", "not sharded"),
        ("vae=x", "no setting"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            with_overrides(CONFIG, [setting])
    changed = with_overrides(CONFIG, ["data.motions=zoom in, still"])
    assert isinstance(changed, LoraConfig)
    assert changed.data.motions == ("zoom in", "still")


def test_camera_clips_have_the_motions_asked_for(tmp_path: Path) -> None:
    def made(motions: tuple[str, ...]) -> list[str]:
        return [
            name for _, name in camera_clips(tmp_path, [], tmp_path, 8, 8, count=2, frames=2, seed=0, motions=motions)
        ]

    assert made(("still",)) == made(MOTIONS) == []
    for wrong in ((), ("tilt",)):
        with pytest.raises(DataError, match="have some of the motions pan left"):
            made(wrong)
