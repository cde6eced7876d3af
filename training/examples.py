"""Training examples of a run, built from its dataset folder; everything slow is cached beside the runs.

Held-out footage never gets past here. What cannot be read, and what is too short, is counted and named (ExcludedClips).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import cast

from torch import nn

from model.checkpoint import Checkpoint
from model.encoders import ImageEncoder
from model.errors import DataError, InvalidRequest
from model.presets import preset
from model.shapes import VAE_STRIDE, VideoShape, nearest
from model.tasks import task
from training.config import DenoiserConfig, LoraConfig, ProgressCallback
from training.data.camera import camera_clips
from training.data.config import EndsData, FilmData, OrbitData, PromptedData
from training.data.excluded_clips import ExcludedClips
from training.data.frames import Clip, load_sized, readable_photos, shown_size, subsample
from training.data.latents import LatentClip, encode_clips
from training.data.motion_bucket import MotionMap
from training.data.moves import camera_moves
from training.data.orbits import load_orbits
from training.data.split import refuse_held_out
from training.data.starter import Item, load_items
from training.distributed import join_processes
from training.frozen_networks import frozen_text, frozen_vae, frozen_vision, has_vision
from training.initial_weights import Denoiser
from training.objectives.buckets import WeightedExamples, make_buckets, sort_clips
from training.objectives.examples.ends import EndsExamples
from training.objectives.examples.film import CameraExamples, FilmExamples
from training.objectives.examples.orbits import OrbitExamples
from training.objectives.examples.prompted import PromptedExamples
from training.objectives.protocol import Examples
from training.runs import resolve_source


def training_items(data: Path, excluded: ExcludedClips | None = None) -> list[Item]:
    """The dataset's training items.

    Args:
        excluded: records what cannot be read, which is then passed over.

    Raises:
        DataError: an item marked for training overlaps what is held out, or too much cannot be read.
    """
    items = load_items(data, excluded)
    if excluded is not None:
        excluded.refuse_too_many(len(items))
    train_items = [item for item in items if item.split == "train"]
    refuse_held_out([item.span for item in train_items], [item.span for item in items if item.split == "heldout"])
    return train_items


def shapes_of(config: DenoiserConfig) -> tuple[VideoShape, ...]:
    """The sizes that a recipe's clips are sorted into; its own alone where it has no buckets.

    Raises:
        InvalidRequest: its own size is no multiple of the network's steps, or its data has one size by nature.
    """
    if not config.buckets.on:
        return (VideoShape(config.num_frames, config.height, config.width),)
    if isinstance(config.data, OrbitData):
        raise InvalidRequest("orbits have one size; leave the buckets out", param="buckets")
    unit = VAE_STRIDE * 2 ** (len(preset(config.preset).unet.channels) - 1)
    own = VideoShape(config.num_frames, config.height, config.width, unit)
    return own.variants(config.buckets.largest_aspect, config.buckets.lengths)


def examples_of(
    config: DenoiserConfig,
    network: nn.Module,
    data: Path,
    out: Path,
    report: ProgressCallback,
    excluded: ExcludedClips | None = None,
) -> Examples:
    """The examples a config names.

    Args:
        network: what trains, as training.initial_weights builds it.
        data: the dataset folder.
        out: the folder of runs.
        excluded: records the clips that the run goes without.

    Raises:
        DataError: the folder is not of the kind of data this config trains on, too much of it cannot be read or none is
            long enough, or the frozen networks are missing.
        InvalidRequest: the config's buckets make no sense.
    """
    footage = ExampleBuilder(config, data, out, report, excluded or ExcludedClips(report, config.most_unreadable))
    settings = config.data
    if isinstance(settings, FilmData):
        return footage.film_and_moves(settings)
    if isinstance(settings, PromptedData):
        return footage.prompted(settings)
    if isinstance(settings, OrbitData):
        return footage.orbits(settings)
    if not isinstance(network, Denoiser):
        raise DataError(f"{config.task} has no mask to learn; data with given ends trains frame-interpolation")
    return footage.ends(settings, network)


def camera_examples(
    config: LoraConfig, base: Checkpoint, data: Path, out: Path, report: ProgressCallback, excluded: ExcludedClips
) -> Examples:
    """Clips of the camera motions that a LoRA is to learn, as its base's frozen networks see them.

    Args:
        data: the dataset folder, whose photographs and film frames the camera moves over.
        out: the folder of runs.
        excluded: records the clips that the run goes without.

    Raises:
        DataError: the folder holds nothing to train on, too much of it cannot be read, or a motion that no clip can
            have.
    """
    settings, cache = config.data, out / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    items = training_items(data, excluded)
    readable_photos(data, items, excluded)
    rendered = camera_clips(
        data,
        camera_sources(items, excluded),
        cache,
        config.height,
        config.width,
        count=settings.clips,
        frames=config.num_frames,
        seed=config.optim.seed,
        motions=settings.motions,
    )
    if not rendered:
        raise DataError(f"{data} has no footage to move a camera over")
    encoder, device = cast(ImageEncoder, base.conditioners), join_processes()
    for network in (encoder.network, base.vae):
        cast(nn.Module, network).to(device)
    clips = encode_clips([clip for clip, _ in rendered], base.vae, encoder, cache, (1,), report)
    return CameraExamples(config, clips, base.vae, MotionMap())


def camera_sources(items: list[Item], excluded: ExcludedClips) -> list[Item]:
    """What the virtual camera moves over: photographs are few and film frames many, so each stands for several."""
    readable = [item for item in items if item.id not in excluded.unreadable]
    return readable + [item for item in readable if item.kind == "photo"] * 3


class ExampleBuilder:
    """A dataset folder at a recipe's sizes, with the frozen networks that read it."""

    def __init__(
        self, config: DenoiserConfig, data: Path, out: Path, report: ProgressCallback, excluded: ExcludedClips
    ) -> None:
        self.config, self.data, self.report, self.excluded = config, data, report, excluded
        self.cache, self.size = out / "cache", preset(config.preset)
        self.cache.mkdir(parents=True, exist_ok=True)
        self.shapes = shapes_of(config)
        self.own = next(shape for shape in self.shapes if self._is_own(shape))
        self.device = join_processes()
        self.vae = frozen_vae(resolve_source(config.vae, out, "vae"), self.size).to(self.device)
        self.towers = resolve_source(config.image_encoder, out, "image_encoder")
        self.scaling = float(self.vae.config["scaling_factor"])
        self.motion = MotionMap()

    def _is_own(self, shape: VideoShape) -> bool:
        config = self.config
        return (shape.num_frames, shape.height, shape.width) == (config.num_frames, config.height, config.width)

    def encoded(self, clips: list[Clip], strides: tuple[int, ...]) -> list[LatentClip]:
        """The clips as latents, one at each stride, with the image embedding of their first frame where it is read."""
        # A network that is told words alone needs no embeddings of pictures; a run's towers give them all the same.
        settings = bool(task(self.config.task).pictures) or has_vision(self.towers)
        vision = frozen_vision(self.towers, self.size) if settings else None
        if vision is not None:
            cast(nn.Module, vision.network).to(self.device)
        return encode_clips(clips, self.vae, vision, self.cache, strides, self.report)

    def film(self, items: list[Item], keep_every: int) -> list[Clip]:
        """The shots, each at the size of its aspect, thinned."""
        shots = [item for item in items if item.kind == "shot"]
        spatial = [shape for shape in self.shapes if shape.num_frames == self.config.num_frames]

        def size_of(item: Item) -> tuple[int, int]:
            shape = self.own
            if len(spatial) > 1:
                shape = nearest(spatial, self.config.num_frames, *shown_size(self.data, item)) or shape
            return shape.height, shape.width

        clips = load_sized(self.data, shots, self.cache, size_of, self.report, self.excluded)
        return [subsample(clip, keep_every) if keep_every > 1 else clip for clip in clips]

    def by_size(
        self,
        film: list[LatentClip],
        rendered: int,
        rendered_share: float,
        make: Callable[[DenoiserConfig, list[LatentClip], bool, float], WeightedExamples],
    ) -> Examples:
        """Examples of one size, or of several.

        Args:
            made: how many clips there are that were made, at the recipe's own size.
            made_share: of all rows, how many are to be of those.
            make: examples from a config of one size, its clips, whether the made ones are among them, and their share.
        """
        groups, short = sort_clips(film, self.shapes)
        self.excluded.too_short([c.clip.item.id for c in short], len(film), self.shortest)
        if not groups and not rendered:
            raise DataError(f"{self.data} has no clip of {self.shortest} frames or more to train on")
        if len(self.shapes) == 1:
            return make(self.config, groups.get(self.own, []), True, rendered_share if groups else 1.0)

        def of_shape(shape: VideoShape, clips: list[LatentClip], share: float) -> WeightedExamples:
            config = dataclasses.replace(
                self.config, num_frames=shape.num_frames, height=shape.height, width=shape.width
            )
            return make(config, clips, share > 0, share)

        sized = make_buckets(self.own, groups, rendered_share if rendered else 0.0, of_shape)
        for bucket in sized.buckets:
            shape, count = bucket.shape, len(groups.get(bucket.shape, []))
            shape_text = f"{shape.num_frames} frames of {shape.width}x{shape.height}"
            self.report(f"{shape_text}: {count} clips, {bucket.share:.1%} of the iterations", 0, 0)
        return sized

    @property
    def shortest(self) -> int:
        """The smallest frame count that a clip may have."""
        return min(shape.num_frames for shape in self.shapes)

    def film_and_moves(self, settings: FilmData) -> Examples:
        """Film clips, and camera moves over photographs beside them."""
        items, config = training_items(self.data, self.excluded), self.config
        photos = readable_photos(self.data, items, self.excluded) if settings.moves else []
        moves = camera_moves(
            self.data,
            photos,
            self.cache,
            config.height,
            config.width,
            count=settings.moves,
            frames=config.num_frames,
            seed=config.optim.seed,
            renderer=settings.renderer,
        )
        film = self.film(items, settings.keep_every)
        latents = self.encoded(film + moves, settings.strides)
        own_moves = latents[len(film) :]

        def make(config: DenoiserConfig, clips: list[LatentClip], with_moves: bool, share: float) -> FilmExamples:
            data = dataclasses.replace(settings, still_share=share)
            return FilmExamples(config, data, clips + (own_moves if with_moves else []), self.vae, self.motion)

        return self.by_size(latents[: len(film)], len(own_moves), settings.still_share, make)

    def prompted(self, settings: PromptedData) -> Examples:
        """Clips with captions: film, and camera moves whose caption names the motion."""
        items, config = training_items(self.data, self.excluded), self.config
        film = self.encoded(self.film(items, settings.keep_every), settings.strides)
        camera: list[tuple[LatentClip, str]] = []
        if settings.camera_clips:
            readable_photos(self.data, items, self.excluded)
            rendered = camera_clips(
                self.data,
                camera_sources(items, self.excluded),
                self.cache,
                config.height,
                config.width,
                count=settings.camera_clips,
                frames=config.num_frames,
                seed=0,
                motions=settings.motions,
                pan_travel=settings.pan_travel,
            )
            latents = self.encoded([clip for clip, _ in rendered], settings.strides)
            camera = [(latent, motion) for latent, (_, motion) in zip(latents, rendered, strict=True)]
        text, rendered_share = frozen_text(self.towers, self.size), 1 - settings.film_share

        def make(config: DenoiserConfig, clips: list[LatentClip], with_made: bool, share: float) -> PromptedExamples:
            data = settings if share == rendered_share else dataclasses.replace(settings, film_share=1 - share)
            own = camera if with_made else []
            return PromptedExamples(config, data, clips, own, text, self.scaling, self.motion)

        return self.by_size(film, len(camera), rendered_share, make)

    def ends(self, settings: EndsData, network: Denoiser) -> Examples:
        """Film clips of which both ends are given."""
        film = self.encoded(self.film(training_items(self.data, self.excluded), 1), settings.strides)

        def make(config: DenoiserConfig, clips: list[LatentClip], _with: bool, _share: float) -> EndsExamples:
            return EndsExamples(config, settings, clips, network.mask, self.scaling, self.motion)

        return self.by_size(film, 0, 0.0, make)

    def orbits(self, settings: OrbitData) -> Examples:
        """Rendered orbits around objects."""
        if self.own.height != self.own.width:
            raise InvalidRequest(f"orbits are square, not {self.own.width} x {self.own.height}", param="width")
        orbits = load_orbits(self.data, "train", self.excluded, self.own.height)
        latents = self.encoded([orbit.clip for orbit in orbits], ())
        placed = [(latent, orbit.item.elevation) for latent, orbit in zip(latents, orbits, strict=True)]
        return OrbitExamples(self.config, settings, placed, self.vae)
