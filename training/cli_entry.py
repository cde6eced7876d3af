"""What `stillmotion train RECIPE` runs: a recipe's config, the data it needs, and the trainer.

Runs lie side by side in one folder, and find what they build on there by name: the denoiser reads the autoencoder and
the image encoder of `OUT/mini-vae` and `OUT/mini-image-encoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from model.errors import DataError, InvalidRequest
from training.config import Config, DenoiserConfig, VAEConfig, with_overrides
from training.data.frames import Clip, load_clips, thinned
from training.data.split import refuse_held_out
from training.data.starter import Item, load_items
from training.objectives.protocol import Objective
from training.recipes import RECIPES
from training.trainer import Trainer

Report = Callable[[str, int, int], None]


def run(recipe: str, data: Path, out: Path, overrides: list[str], resume: bool, report: Report) -> Path:
    """Train one recipe on a dataset folder; returns the run folder, OUT/RECIPE.

    A denoiser's run ends with a checkpoint folder, OUT/RECIPE/checkpoint, that the service and diffusers load.

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
    objective = build_objective(config, data, folder, report)
    trainer = Trainer(objective, config, folder)
    if resume:
        trainer.resume()
    trainer.run(report)
    if isinstance(config, DenoiserConfig):
        from training.latent_colours import fit_latent_colours
        from training.objectives.denoise import DenoiseObjective
        from training.released import release

        assert isinstance(objective, DenoiseObjective)
        release(folder, folder / "checkpoint", fit_latent_colours(objective.film, objective.scaling))
    return folder


def training_items(data: Path) -> list[Item]:
    """The dataset's training items; held-out footage never gets past here.

    Raises:
        DataError: an item marked for training overlaps what is held out.
    """
    items = load_items(data)
    chosen = [item for item in items if item.split == "train"]
    refuse_held_out([item.span for item in chosen], [item.span for item in items if item.split == "heldout"])
    return chosen


def build_objective(config: Config, data: Path, folder: Path, report: Report) -> Objective:
    """The objective a config names, on its data, for the run in `folder`."""
    items = training_items(data)
    out = folder.parent
    cache = out / "cache"
    if isinstance(config, DenoiserConfig):
        return _denoiser(config, items, data, out, report)
    size = (128, 224)
    clips = load_clips(data, items, cache, *size, report)
    if isinstance(config, VAEConfig):
        from training.objectives.vae import VAEObjective

        return VAEObjective(config, clips)
    from training.objectives.contrastive import ContrastiveObjective

    towers = ContrastiveObjective(config, clips)
    towers.tokenizer.save_pretrained(folder / "tokenizer")
    return towers


def _denoiser(config: DenoiserConfig, items: list[Item], data: Path, out: Path, report: Report) -> Objective:
    from training.data.latents import encode_clips
    from training.data.moves import camera_moves
    from training.motion import MotionMap
    from training.objectives.denoise import DenoiseObjective
    from training.released import start_from, trained_image_encoder, trained_vae

    cache = out / "cache"
    vae = trained_vae(out / config.vae)
    encoder = trained_image_encoder(out / config.image_encoder)
    clips: list[Clip] = load_clips(data, items, cache, config.height, config.width, report)
    clips = [thinned(clip, config.keep_every) for clip in clips if clip.item.kind == "shot"]
    photos = [item for item in items if item.kind == "photo"]
    size = (config.height, config.width)
    clips += camera_moves(
        data, photos, cache, *size, count=config.moves, frames=config.num_frames, seed=config.optim.seed
    )
    latents = encode_clips(clips, vae, encoder, cache, config.strides, report)
    objective = DenoiseObjective(config, latents, vae, MotionMap())
    if config.init:
        start_from(objective.module, out / config.init)
    return objective
