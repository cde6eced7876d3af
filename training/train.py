"""What `stillmotion train RECIPE` runs: a recipe's config, the data it needs, and the trainer.

Runs lie side by side in one folder, and find what they build on there by name: the denoiser reads the autoencoder and
the image encoder of `OUT/mini-vae` and `OUT/mini-image-encoder`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import cast

from torch import nn

from model.errors import DataError, InvalidRequest
from model.platform import retain_freed_memory
from model.presets import preset
from training.config import (
    Config,
    ConsistencyConfig,
    DecoderConfig,
    DenoiserConfig,
    EquivarianceConfig,
    LoraConfig,
    ProgressCallback,
    VAEConfig,
)
from training.data import orbits
from training.data.excluded_clips import ExcludedClips
from training.data.frames import load_clips
from training.data.shards import dataset_identity
from training.distributed import distributed, join_processes, main_process_first, rank_and_size
from training.examples import examples_of, training_items
from training.lora import LoraObjective, base_entry, load_base, pin_base, release_lora
from training.memory_plan import describe, plan
from training.objectives.protocol import Decode, Examples, Objective
from training.overrides import with_overrides
from training.recipes import PUBLISHED, RECIPES
from training.runs import resolve_source
from training.trainer import Trainer, has_state


def train(recipe: str, data: Path, out: Path, overrides: list[str], resume: bool, report: ProgressCallback) -> Path:
    """Train one recipe on a dataset folder; returns the run folder, OUT/RECIPE.

    A denoiser's run ends with a checkpoint folder, OUT/RECIPE/checkpoint, that the service and diffusers load; a LoRA's
    with a file, OUT/RECIPE/lora.safetensors.

    Raises:
        InvalidRequest: no such recipe or setting.
        DataError: the data is missing, changed or held out; or there is nothing to resume.
    """
    known = {**RECIPES, **PUBLISHED}
    if recipe not in known:
        raise InvalidRequest(f"no recipe is called {recipe!r}; there are: {', '.join(known)}", param="recipe")
    config = with_overrides(known[recipe](), overrides)
    folder = out / recipe
    if not resume and has_state(folder):
        raise DataError(f"{folder} already holds a run: add --resume to go on with it, or name another folder")
    retain_freed_memory()
    excluded = ExcludedClips(report, config.most_unreadable)
    objective = build_objective(config, data, folder, report, excluded)
    trainer = _trainer(objective, config, folder, report)
    (folder / "data.json").write_text(json.dumps({**dataset_identity(data), "left_out": excluded.record()}) + "\n")
    if resume:
        trainer.resume()
    trainer.run(report)
    if rank_and_size()[0] == 0:
        _release(trainer, out)
    return folder


def _trainer(objective: Objective, config: Config, folder: Path, report: ProgressCallback) -> Trainer:
    """The trainer of a run, told what the run's plan predicts."""
    if not isinstance(config, DenoiserConfig | LoraConfig) or rank_and_size()[0]:
        return Trainer(objective, config, folder)
    predicted = plan(config, rank_and_size()[1]).bytes
    report(describe(predicted, None), 0, 0)
    beside = cast(nn.Module, objective.unet) if isinstance(objective, LoraObjective) else None
    return Trainer(objective, config, folder, predicted, beside)


def _release(trainer: Trainer, out: Path) -> None:
    """Write what a finished run is served from."""
    config, objective, folder = trainer.config, trainer.objective, trainer.folder
    if isinstance(config, LoraConfig):
        assert isinstance(objective, LoraObjective)
        with trainer.ema.swap_weights(objective.module):
            release_lora(objective, config, base_entry(config, out), folder)
    if isinstance(config, DenoiserConfig):
        from training.frozen_networks import frozen_vae
        from training.objectives.denoise import DenoiseObjective
        from training.release import fit_latent_colours, release

        assert isinstance(objective, DenoiseObjective)
        vae = frozen_vae(resolve_source(config.vae, out, "vae"), preset(config.preset))
        colours = fit_latent_colours(objective.examples.clips, float(vae.config["scaling_factor"]))
        release(folder, folder / "checkpoint", colours)


def build_objective(
    config: Config, data: Path, folder: Path, report: ProgressCallback, excluded: ExcludedClips
) -> Objective:
    """The objective a config names, on its data, for the run in `folder`.

    Args:
        excluded: records the clips that the run goes without.

    Raises:
        InvalidRequest: the config wants several processes, and there is one; or one, and there are several.
    """
    out = folder.parent
    cache = out / "cache"
    if isinstance(config, LoraConfig):
        return _lora_objective(config, data, folder, report, excluded)
    if isinstance(config, DenoiserConfig):
        from model.vae import decode
        from training.frozen_networks import frozen_vae
        from training.initial_weights import build_network
        from training.objectives.denoise import DenoiseObjective

        device = join_processes()
        if config.runtime.sharding != "none" and not distributed():
            raise InvalidRequest(
                f"runtime.sharding={config.runtime.sharding} takes several processes: start them with torchrun or "
                "accelerate launch, or use --set runtime.sharding=none",
                param="set",
            )
        network = build_network(config, out).to(device)
        vae = frozen_vae(resolve_source(config.vae, out, "vae"), preset(config.preset)).to(device)
        with main_process_first():
            examples = examples_of(config, network, data, out, report, excluded)
        if isinstance(config, ConsistencyConfig):
            return _consistency_objective(config, network, examples, out, lambda latents: decode(vae, latents, 7))
        return DenoiseObjective(config, network, examples, lambda latents: decode(vae, latents, 7))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InvalidRequest("only denoisers train in several processes; start this recipe in one", param="recipe")
    if isinstance(config, DecoderConfig):
        return _decoder_objective(config, data, out, report, excluded)
    items = training_items(data, excluded)
    size = (128, 224)
    clips = load_clips(data, items, cache, *size, report, excluded)
    if isinstance(config, VAEConfig):
        from training.objectives.vae import VAEObjective

        return VAEObjective(config, clips, join_processes())
    if isinstance(config, EquivarianceConfig):
        from training.frozen_networks import frozen_vae
        from training.objectives.equivariance import EquivarianceObjective

        vae = frozen_vae(resolve_source(config.vae, out, "vae"), preset(config.preset)).to(join_processes())
        return EquivarianceObjective(config, vae, clips)
    from training.objectives.contrastive import ContrastiveObjective

    towers = ContrastiveObjective(config, clips, join_processes())
    towers.tokenizer.save_pretrained(folder / "tokenizer")
    return towers


def _consistency_objective(
    config: ConsistencyConfig, network: nn.Module, examples: Examples, out: Path, decode: Decode
) -> Objective:
    """The objective of a distillation, with its teacher beside the network."""
    from training.initial_weights import build_network, unet_of
    from training.objectives.consistency import ConsistencyObjective

    teacher = unet_of(build_network(dataclasses.replace(config, init=config.distil.teacher or config.init), out))
    return ConsistencyObjective(config, network, teacher.to(unet_of(network).device), examples, decode)


def _decoder_objective(
    config: DecoderConfig, data: Path, out: Path, report: ProgressCallback, excluded: ExcludedClips
) -> Objective:
    """The objective of a decoder's run: on orbits, or on footage at the mini size."""
    from training.frozen_networks import frozen_vae
    from training.objectives.decoder import DecoderObjective

    vae = frozen_vae(resolve_source(config.vae, out, "vae"), preset(config.preset)).to(join_processes())
    if dataset_identity(data)["name"] == orbits.NAME:
        return DecoderObjective(config, vae, [orbit.clip for orbit in orbits.load_orbits(data, "train", excluded)])
    items = training_items(data, excluded)
    return DecoderObjective(config, vae, load_clips(data, items, out / "cache", 128, 224, report, excluded))


def _lora_objective(
    config: LoraConfig, data: Path, folder: Path, report: ProgressCallback, excluded: ExcludedClips
) -> Objective:
    """The objective of a LoRA's run, on its base."""
    from model.vae import decode
    from training.examples import camera_examples

    device, out = join_processes(), folder.parent
    entry = base_entry(config, out)
    folder.mkdir(parents=True, exist_ok=True)
    pin_base(folder, entry)
    base = load_base(config, entry)
    with main_process_first():
        examples = camera_examples(config, base, data, out, report, excluded)
    base.unet.to(device)
    return LoraObjective(config, base.unet, examples, lambda latents: decode(base.vae, latents, 7))
