"""What `stillmotion train RECIPE` runs: a recipe's config, the data it needs, and the trainer.

Runs lie side by side in one folder, and find what they build on there by name: the denoiser reads the autoencoder and
the image encoder of `OUT/mini-vae` and `OUT/mini-image-encoder`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from model.errors import DataError, InvalidRequest
from model.heap import keep_freed_memory
from training.config import Config, DenoiserConfig, LoraConfig, VAEConfig, with_overrides
from training.data.frames import load_clips
from training.data.shards import dataset_identity
from training.footage import examples_of, training_items
from training.objectives.protocol import Objective
from training.processes import first_alone, join
from training.recipes import RECIPES
from training.sharding import world
from training.trainer import Trainer

Report = Callable[[str, int, int], None]


def run(recipe: str, data: Path, out: Path, overrides: list[str], resume: bool, report: Report) -> Path:
    """Train one recipe on a dataset folder; returns the run folder, OUT/RECIPE.

    A denoiser's run ends with a checkpoint folder, OUT/RECIPE/checkpoint, that the service and diffusers load; a LoRA's
    with a file, OUT/RECIPE/lora.safetensors.

    Raises:
        InvalidRequest: no such recipe or setting.
        DataError: the data is missing, changed or held out; or there is nothing to resume.
    """
    if recipe not in RECIPES:
        raise InvalidRequest(f"no recipe is called {recipe!r}; there are: {', '.join(RECIPES)}", param="recipe")
    config = with_overrides(RECIPES[recipe](), overrides)
    folder = out / recipe
    if not resume and (folder / "state.pt").exists():
        raise DataError(f"{folder} already holds a run: add --resume to go on with it, or name another folder")
    keep_freed_memory()
    objective = build_objective(config, data, folder, report)
    trainer = Trainer(objective, config, folder)
    (folder / "data.json").write_text(json.dumps(dataset_identity(data)) + "\n")
    if resume:
        trainer.resume()
    trainer.run(report)
    if isinstance(config, LoraConfig) and world()[0] == 0:
        from training.lora import LoraObjective, base_entry, release_lora

        assert isinstance(objective, LoraObjective)
        with trainer.ema.swapped(objective.module):
            release_lora(objective, config, base_entry(config, out), folder)
    if isinstance(config, DenoiserConfig) and world()[0] == 0:
        from training.latent_colours import fit_latent_colours
        from training.objectives.denoise import DenoiseObjective
        from training.released import release, trained_vae

        assert isinstance(objective, DenoiseObjective)
        vae = trained_vae(out / config.vae)
        colours = fit_latent_colours(objective.examples.clips, float(vae.config["scaling_factor"]))
        release(folder, folder / "checkpoint", colours)
    return folder


def build_objective(config: Config, data: Path, folder: Path, report: Report) -> Objective:
    """The objective a config names, on its data, for the run in `folder`."""
    out = folder.parent
    cache = out / "cache"
    if isinstance(config, LoraConfig):
        return _lora_objective(config, data, folder, report)
    if isinstance(config, DenoiserConfig):
        from model.decode import decode
        from training.objectives.denoise import DenoiseObjective
        from training.released import trained_vae
        from training.starts import build_network

        device = join()
        network = build_network(config, out).to(device)
        vae = trained_vae(out / config.vae)
        with first_alone():
            examples = examples_of(config, network, data, out, report)
        return DenoiseObjective(config, network, examples, lambda latents: decode(vae, latents, 7))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InvalidRequest("only denoisers train in several processes; start this recipe in one", param="recipe")
    items = training_items(data)
    size = (128, 224)
    clips = load_clips(data, items, cache, *size, report)
    if isinstance(config, VAEConfig):
        from training.objectives.vae import VAEObjective

        return VAEObjective(config, clips)
    from training.objectives.contrastive import ContrastiveObjective

    towers = ContrastiveObjective(config, clips)
    towers.tokenizer.save_pretrained(folder / "tokenizer")
    return towers


def _lora_objective(config: LoraConfig, data: Path, folder: Path, report: Report) -> Objective:
    """The objective of a LoRA's run, on its base."""
    from model.decode import decode
    from training.footage import camera_examples
    from training.lora import LoraObjective, base_entry, hold_to_base, load_base

    device, out = join(), folder.parent
    entry = base_entry(config, out)
    folder.mkdir(parents=True, exist_ok=True)
    hold_to_base(folder, entry)
    base = load_base(config, entry)
    with first_alone():
        examples = camera_examples(config, base, data, out, report)
    base.unet.to(device)
    return LoraObjective(config, base.unet, examples, lambda latents: decode(base.vae, latents, 7))
