"""The footage of a run: dataset folder to training examples, everything slow cached beside the runs.

Held-out footage never gets past here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from model.checkpoint import Checkpoint
from model.conditioners import VisionTower
from model.errors import DataError
from training.config import DenoiserConfig, EndsData, FilmData, LoraConfig, OrbitData, PromptedData
from training.data.camera import camera_clips
from training.data.frames import Clip, load_clips, thinned
from training.data.latents import LatentClip, encode_clips
from training.data.moves import camera_moves
from training.data.orbits import load_orbits
from training.data.split import refuse_held_out
from training.data.starter import Item, load_items
from training.motion import MotionMap
from training.objectives.batch import Examples
from training.objectives.examples.camera import CameraExamples
from training.objectives.examples.ends import EndsExamples
from training.objectives.examples.film import FilmExamples
from training.objectives.examples.orbits import OrbitExamples
from training.objectives.examples.prompted import PromptedExamples
from training.released import trained_image_encoder, trained_text_tower, trained_vae
from training.starts import Denoiser

Report = Callable[[str, int, int], None]


def training_items(data: Path) -> list[Item]:
    """The dataset's training items.

    Raises:
        DataError: an item marked for training overlaps what is held out.
    """
    items = load_items(data)
    chosen = [item for item in items if item.split == "train"]
    refuse_held_out([item.span for item in chosen], [item.span for item in items if item.split == "heldout"])
    return chosen


def examples_of(config: DenoiserConfig, network: nn.Module, data: Path, out: Path, report: Report) -> Examples:
    """The examples a config names.

    Args:
        network: what trains, as training.starts builds it.
        data: the dataset folder.
        out: the folder of runs.

    Raises:
        DataError: the folder is not of the kind of data this config trains on, or the frozen networks are missing.
    """
    footage = _Footage(config, data, out, report)
    wanted = config.data
    if isinstance(wanted, FilmData):
        return footage.film_and_moves(wanted)
    if isinstance(wanted, PromptedData):
        return footage.prompted(wanted)
    if isinstance(wanted, OrbitData):
        return footage.orbits(wanted)
    if not isinstance(network, Denoiser):
        raise DataError(f"{config.task} has no mask to learn; data with given ends trains frame-interpolation")
    return footage.ends(wanted, network)


def camera_examples(config: LoraConfig, base: Checkpoint, data: Path, out: Path, report: Report) -> Examples:
    """Clips of the camera motions that a LoRA is to learn, as its base's frozen networks see them.

    Args:
        data: the dataset folder, whose photographs and film frames the camera moves over.
        out: the folder of runs.

    Raises:
        DataError: the folder holds nothing to train on, or a motion that no clip can have.
    """
    wanted, cache = config.data, out / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    made = camera_clips(
        data,
        camera_sources(training_items(data)),
        cache,
        config.height,
        config.width,
        count=wanted.clips,
        frames=config.num_frames,
        seed=config.optim.seed,
        motions=wanted.motions,
    )
    if not made:
        raise DataError(f"{data} has no footage to move a camera over")
    assert isinstance(base.conditioners, VisionTower)
    clips = encode_clips([clip for clip, _ in made], base.vae, base.conditioners.encoder, cache, (1,), report)
    return CameraExamples(config, clips, base.vae, MotionMap())


def camera_sources(items: list[Item]) -> list[Item]:
    """What the virtual camera moves over: photographs are few and film frames many, so each stands for several."""
    return items + [item for item in items if item.kind == "photo"] * 3


class _Footage:
    """A dataset folder at one size, with the frozen networks that read it."""

    def __init__(self, config: DenoiserConfig, data: Path, out: Path, report: Report) -> None:
        self.config, self.data, self.out, self.report = config, data, out, report
        self.cache = out / "cache"
        self.size = (config.height, config.width)
        self.vae = trained_vae(out / config.vae)
        self.scaling = float(self.vae.config["scaling_factor"])
        self.motion = MotionMap()

    def encoded(self, clips: list[Clip], strides: tuple[int, ...]) -> list[LatentClip]:
        encoder = trained_image_encoder(self.out / self.config.image_encoder)
        return encode_clips(clips, self.vae, encoder, self.cache, strides, self.report)

    def film(self, items: list[Item], keep_every: int) -> list[Clip]:
        shots = [item for item in items if item.kind == "shot"]
        clips = load_clips(self.data, shots, self.cache, *self.size, self.report)
        return [thinned(clip, keep_every) if keep_every > 1 else clip for clip in clips]

    def film_and_moves(self, wanted: FilmData) -> Examples:
        items, config = training_items(self.data), self.config
        photos = [item for item in items if item.kind == "photo"]
        clips = self.film(items, wanted.keep_every) + camera_moves(
            self.data,
            photos,
            self.cache,
            *self.size,
            count=wanted.moves,
            frames=config.num_frames,
            seed=config.optim.seed,
        )
        latents = self.encoded(clips, wanted.strides)
        return FilmExamples(config, wanted, latents, self.vae, self.motion)

    def prompted(self, wanted: PromptedData) -> Examples:
        items, config = training_items(self.data), self.config
        film = self.encoded(self.film(items, wanted.keep_every), wanted.strides)
        sources = camera_sources(items)
        made = camera_clips(
            self.data, sources, self.cache, *self.size, count=wanted.camera_clips, frames=config.num_frames, seed=0
        )
        latents = self.encoded([clip for clip, _ in made], wanted.strides)
        camera = [(latent, motion) for latent, (_, motion) in zip(latents, made, strict=True)]
        text = trained_text_tower(self.out / config.image_encoder)
        return PromptedExamples(config, wanted, film, camera, text, self.scaling, self.motion)

    def ends(self, wanted: EndsData, network: Denoiser) -> Examples:
        film = self.encoded(self.film(training_items(self.data), 1), wanted.strides)
        return EndsExamples(self.config, wanted, film, network.mask, self.scaling, self.motion)

    def orbits(self, wanted: OrbitData) -> Examples:
        orbits = load_orbits(self.data, "train")
        latents = self.encoded([orbit.clip for orbit in orbits], ())
        placed = [(latent, orbit.item.elevation) for latent, orbit in zip(latents, orbits, strict=True)]
        return OrbitExamples(self.config, wanted, placed, self.vae)
