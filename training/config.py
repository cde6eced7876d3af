"""Typed configs: a recipe is a function that returns one of these, complete.

Nothing is left to defaults of the moment: what a run does is what its config says, and the config is saved beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from model.errors import InvalidRequest
from model.params import LCM_LEVELS

METHODS = ("adamw", "muon")


@dataclass(frozen=True, slots=True)
class Optim:
    """Linear warm-up and cosine decay to `final_lr_share` of the peak, by AdamW or by Muon (training.optimizers).

    Args:
        ema_decay: of the averaged weights that are shipped.
        other_emas: decays of further averages that a state holds beside it, to choose from when a checkpoint is
            written (`training.release.release`).
        clip_norm: largest norm of the gradient.
        method: `adamw` or `muon`.

    Raises:
        InvalidRequest: another method.
    """

    iterations: int
    batch: int
    lr: float
    warmup: int
    final_lr_share: float
    beta2: float
    weight_decay: float
    clip_norm: float
    ema_decay: float
    seed: int
    checkpoint_every: int
    log_every: int
    method: str = "adamw"
    other_emas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidRequest(
                f"no optimizer is called {self.method!r}; there are: {', '.join(METHODS)}", param="set"
            )


@dataclass(frozen=True, slots=True)
class Runtime:
    """How the work of an iteration is laid out on machines; none of it changes what is computed but by rounding.

    Args:
        precision: of the network's calls, `float32` or `bfloat16` (autocast; weights and their averages stay float32).
        accumulate: calls whose gradients are added up before a step, so that a large batch fits.
        checkpointing: recompute blocks for their gradients in place of keeping what they computed.
        sharding: `none`, or `fsdp2`: parameters, gradients and optimizer states lie in parts on the processes.
        fast_blocks: the denoiser's blocks compute the same sums in fewer passes (training.fast_blocks); clips only, no
            joint pictures.
    """

    precision: str = "float32"
    accumulate: int = 1
    checkpointing: bool = False
    sharding: str = "none"
    fast_blocks: bool = False


@dataclass(frozen=True, slots=True)
class Buckets:
    """Sizes that clips are sorted into by aspect and length; the rows of an iteration are of one (model.shapes).

    Args:
        largest_aspect: of the longer side to the shorter, in the shapes that are made of the recipe's pixels a frame;
            0: every clip is cropped to the recipe's own size.
        lengths: frame counts besides the recipe's own, for clips that are too short for it.
    """

    largest_aspect: float = 0.0
    lengths: tuple[int, ...] = ()

    @property
    def on(self) -> bool:
        """Whether there are sizes besides the recipe's own."""
        return self.largest_aspect > 0 or bool(self.lengths)


ProgressCallback = Callable[[str, int, int], None]
"""Called with (what, done, total) as long work goes on; (message, 0, 0) is a message alone."""

MOST_UNREADABLE = 0.1
"""Share of a dataset's clips that may be unreadable before training stops."""


@dataclass(frozen=True, slots=True)
class VAEConfig:
    """Autoencoder training in three phases (see training.objectives.vae).

    Args:
        skeleton_until, spatial_until: iterations at which the decoder's residual branches, then its temporal layers,
            join; the encoder is frozen from `skeleton_until` on, so latents may be cached from then.
        phase_warmup: iterations over which the learning rate rises again after each of the two.
        phase_batch: pictures an iteration from `skeleton_until` on (`optim.batch` before).
        crop: side of the square crops, pixels.
        frames: clip length of the crops once the temporal layers train.
        latent_noise: standard deviation of noise put on latents before decoding; makes the decoder forgiving.
        target_weight: how strongly latents are held to the whitened PCA of 8x8 patches.
        whitening: latent k has standard deviation ~ eigenvalue^((1 - whitening) / 2); 1 is fully white.
        gradient_weight: weight of the L1 of spatial differences beside the L1 of pixels.
        most_unreadable: share of the dataset's clips that may be unreadable; more stop the run.
    """

    preset: str
    optim: Optim
    skeleton_until: int
    spatial_until: int
    phase_warmup: int
    phase_batch: int
    crop: int
    frames: int
    latent_noise: float
    target_weight: float
    whitening: float
    gradient_weight: float
    most_unreadable: float = MOST_UNREADABLE


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder fitted to a kind of picture (see training.objectives.decoder).

    Args:
        vae: the autoencoder it begins from, a run or published weights.
        crop, frames, latent_noise, gradient_weight, most_unreadable: as in VAEConfig; `optim.batch` clips an iteration.
    """

    preset: str
    optim: Optim
    vae: str
    crop: int
    frames: int
    latent_noise: float
    gradient_weight: float
    most_unreadable: float = MOST_UNREADABLE


@dataclass(frozen=True, slots=True)
class EquivarianceConfig:
    """An autoencoder whose latents are to move with the picture (see training.objectives.equivariance).

    Args:
        vae: the autoencoder it begins from, a run or published weights.
        consistency: weight of the distance between the transformed latent and the latent of the transformed picture.
        scale_share: share of transformations that scale; the others shift by a part of a cell.
        crop, latent_noise, gradient_weight, most_unreadable: as in VAEConfig; `optim.batch` crops an iteration.
    """

    preset: str
    optim: Optim
    vae: str
    consistency: float
    scale_share: float
    crop: int
    latent_noise: float
    gradient_weight: float
    most_unreadable: float = MOST_UNREADABLE


@dataclass(frozen=True, slots=True)
class ImageEncoderConfig:
    """Contrastive training of the image and text towers (see training.objectives.contrastive).

    Args:
        most_unreadable: as in VAEConfig.
    """

    preset: str
    optim: Optim
    temperature: float
    text_weight: float
    most_unreadable: float = MOST_UNREADABLE


@dataclass(frozen=True, slots=True)
class FilmData:
    """Film clips, and camera moves over photographs: image-to-video's data.

    Args:
        keep_every: of the film's frames, only every so many-th is read at all.
        strides: strides a clip may have over the kept frames; its fps is the film's over both.
        still_share: share of clips made from a photograph by a rendered camera move.
        moves: how many such clips there are.
        noise_aug_log_mean, noise_aug_log_std: of ln(sigma) of the noise on the conditioning picture.
        renderer: of camera moves: `window` (training.data.moves), `paths` or `slow-pan` (training.data.camera_paths).
    """

    keep_every: int
    strides: tuple[int, ...]
    still_share: float
    moves: int
    noise_aug_log_mean: float
    noise_aug_log_std: float
    renderer: str = "window"


@dataclass(frozen=True, slots=True)
class PromptedData:
    """Captioned clips: a virtual camera over film frames and photographs, and film.

    Args:
        keep_every, strides: as in FilmData.
        camera_clips: how many clips of a virtual camera there are; the motions take turns.
        film_share: share of the iterations' clips that are film, the rest are of the camera.
        image_share: share of rows that are independent pictures in place of a clip (joint training; 1: pictures only).
        motion_alone, motion_untold: shares of captions that are only the motion's name, or lack it; the rest have both.
        bucket_untold: share of clips whose motion bucket is told as the middle of the scale, so that the prompt rules.
        pan_travel: least and greatest way of a panning camera, in heights of what it sees.
        motions: which of the camera's motions there are.
    """

    keep_every: int
    strides: tuple[int, ...]
    camera_clips: int
    film_share: float
    image_share: float
    motion_alone: float
    motion_untold: float
    bucket_untold: float
    pan_travel: tuple[float, float] = (0.3, 1.0)
    motions: tuple[str, ...] = ("pan left", "pan right", "zoom in", "zoom out", "still")


@dataclass(frozen=True, slots=True)
class EndsData:
    """Short film clips of which both ends are given: frame interpolation's data.

    Args:
        strides: over the film's frames.
        still_moving: flow, in short sides a second, added to a clip's own when clips are drawn in proportion to it.
        noise_aug_log_mean, noise_aug_log_std: of ln(sigma) of the noise on the ends' latents.
    """

    strides: tuple[int, ...]
    still_moving: float
    noise_aug_log_mean: float
    noise_aug_log_std: float


@dataclass(frozen=True, slots=True)
class OrbitData:
    """Rendered orbits around objects (training.data.orbits): multi-view's data.

    Args:
        fps, motion_bucket_id: told of every clip, since an orbit of fixed length has one speed.
        noise_aug_log_mean, noise_aug_log_std: of ln(sigma) of the noise on the conditioning picture.
    """

    fps: int
    motion_bucket_id: int
    noise_aug_log_mean: float
    noise_aug_log_std: float


@dataclass(frozen=True, slots=True)
class CameraData:
    """Clips of a virtual camera over film frames and photographs: a camera LoRA's data.

    Args:
        motions: those of training.data.camera that it is to learn; they take turns.
        clips: how many there are.
        bucket_drawn: share of clips that are told a motion bucket drawn from the whole scale in place of the measured
            one, so that the LoRA rules whatever the bucket; 0 leaves the amount of motion to the bucket.
        noise_aug_log_mean, noise_aug_log_std: of ln(sigma) of the noise on the conditioning picture.
    """

    motions: tuple[str, ...]
    clips: int
    bucket_drawn: float
    noise_aug_log_mean: float
    noise_aug_log_std: float


@dataclass(frozen=True, slots=True)
class DenoiserConfig:
    """Denoiser training for one task (paper, section 4 and appendix D).

    Args:
        init: what it starts from (training.runs): a run beside this one, whose averaged weights are taken, or
            published weights; empty: untrained. A start of another task is given the inputs it lacks, or loses those
            that this task has not (training.initial_weights).
        vae, image_encoder: where the frozen networks come from, likewise; the second holds the text tower too.
        p_mean, p_std: of ln(sigma), drawn once a clip.
        condition_dropout: share of clips whose condition is zeroed, for guidance.
        copying_start: whether an untrained denoiser starts as a copy of its condition (see training.initial_weights).
        time_only_until: iterations that train the time embedding alone (paper, appendix D: stage I).
        window_until: iterations that train on random windows of window_height x window_width pixels, for speed.
        buckets: sizes besides height x width and num_frames.
        most_unreadable: as in VAEConfig.
    """

    preset: str
    task: str
    optim: Optim
    runtime: Runtime
    init: str
    vae: str
    image_encoder: str
    height: int
    width: int
    num_frames: int
    p_mean: float
    p_std: float
    condition_dropout: float
    copying_start: bool
    time_only_until: int
    window_until: int
    window_height: int
    window_width: int
    data: FilmData | PromptedData | EndsData | OrbitData
    buckets: Buckets = Buckets()
    most_unreadable: float = MOST_UNREADABLE


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a teacher's guided solves are distilled into single unguided evaluations (training.objectives.consistency).

    Args:
        teacher: checkpoint whose solves are learnt, named as `init` is; empty: `init` itself.
        min_guidance, max_guidance: guidance scale of the teacher's first and last frame; between them in the task's
            shape over frames.
        levels: how many noise levels the student is trained at, of the 40 that schedule `lcm` chooses from; several
            numbers are a curriculum of equal shares of the iterations.
        substeps: DPM++ 2M steps of the teacher from one level to the next.
        solve_to_end: the teacher solves down to the clean clip, and every level that it passes trains (direct
            distillation); otherwise it solves to the next level and the student answers there (consistency).
        huber: where the pseudo-Huber loss turns from square to linear, as a root mean square error of the network's
            output.
        default_steps: sampling steps of the released checkpoint.

    Raises:
        InvalidRequest: no levels, more than 40 or a number that does not divide 40, no substeps, a loss that never
            turns, or sampling steps that were not trained.
    """

    teacher: str = ""
    min_guidance: float = 1.0
    max_guidance: float = 2.0
    levels: tuple[int, ...] = (4,)
    substeps: int = 1
    solve_to_end: bool = True
    huber: float = 0.03
    default_steps: int = 4

    def __post_init__(self) -> None:
        if not self.levels or any(count < 1 or LCM_LEVELS % count for count in self.levels):
            raise InvalidRequest(f"distil.levels must divide {LCM_LEVELS}, not {self.levels}", param="set")
        if self.substeps < 1 or self.huber <= 0:
            raise InvalidRequest("distil.substeps must be at least 1, and distil.huber above 0", param="set")
        if self.default_steps < 1 or self.levels[-1] % self.default_steps:
            raise InvalidRequest(
                f"distil.default_steps must divide the {self.levels[-1]} levels trained last, not {self.default_steps}",
                param="set",
            )


@dataclass(frozen=True, slots=True)
class ConsistencyConfig(DenoiserConfig):
    """A checkpoint distilled for a few unguided steps; `init` is what the student starts as.

    The levels are drawn as ln(sigma) ~ N(p_mean, p_std), each for the stretch down to the next.

    Raises:
        InvalidRequest: condition dropout (the student is never guided), or no trained start.
    """

    distil: Distillation = Distillation()

    def __post_init__(self) -> None:
        if self.condition_dropout:
            raise InvalidRequest("a distilled denoiser is never guided: set condition_dropout=0", param="set")
        if not self.init:
            raise InvalidRequest("a distillation starts from a trained denoiser: set init=NAME", param="set")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Training of a camera-motion LoRA: adapters of the temporal attention of image-to-video (paper, section 4.3).

    The base's weights, autoencoder and image encoder are frozen; only the adapters train (training.lora).

    Args:
        name: how requests will name it.
        preset: size that the base has to have.
        base: checkpoint it is for: a run beside this run's own folder, a shipped one's name, or a folder.
        rank: r of every pair.
        alpha: the product is multiplied by alpha / rank.
        p_mean, p_std: of ln(sigma), drawn once a clip.
        condition_dropout: share of clips whose condition is zeroed, for guidance.
        window_until: iterations that train on random windows of window_height x window_width pixels, for speed.
        most_unreadable: as in VAEConfig.

    Raises:
        InvalidRequest: a rank below 1, or sharding: every process keeps the whole network.
    """

    name: str
    preset: str
    base: str
    rank: int
    alpha: float
    optim: Optim
    runtime: Runtime
    height: int
    width: int
    num_frames: int
    p_mean: float
    p_std: float
    condition_dropout: float
    window_until: int
    window_height: int
    window_width: int
    data: CameraData
    most_unreadable: float = MOST_UNREADABLE

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InvalidRequest(f"rank must be at least 1, not {self.rank}", param="set")
        if self.runtime.sharding != "none":
            raise InvalidRequest("a LoRA's run is not sharded: leave runtime.sharding at none", param="set")

    @property
    def task(self) -> str:
        """What its base does."""
        return "image-to-video"


Denoising = DenoiserConfig | LoraConfig
"""What trains on the denoising objective, or, where it is a ConsistencyConfig, on the consistency one."""
Config = VAEConfig | DecoderConfig | EquivarianceConfig | ImageEncoderConfig | Denoising


def completed(config: Any, saved: dict[str, Any]) -> dict[str, Any]:
    """A saved config with the settings that came later than it, at their defaults.

    Args:
        config: the config that it is to be compared with; the dataclasses are its.
    """
    out = dict(saved)
    for field in dataclasses.fields(config):
        own = getattr(config, field.name)
        if field.name not in saved and field.default is not dataclasses.MISSING:
            whole = dataclasses.is_dataclass(field.default) and not isinstance(field.default, type)
            out[field.name] = dataclasses.asdict(field.default) if whole else field.default
        elif dataclasses.is_dataclass(own) and isinstance(saved.get(field.name), dict):
            out[field.name] = completed(own, saved[field.name])
    return out


def with_overrides(config: Config, overrides: list[str]) -> Config:
    """The config with `key=value` settings replaced; `optim.lr=1e-4` reaches into the nested part.

    Raises:
        InvalidRequest: no such key, or a value that is not of its type.
    """
    for setting in overrides:
        key, separator, text = setting.partition("=")
        if not separator:
            raise InvalidRequest(f"--set takes key=value, not {setting!r}", param="set")
        config = _replaced(config, key.strip().split("."), text.strip(), key)
    return config


def _pair(text: str) -> tuple[float, float]:
    low, high = text.split(",")
    return float(low), float(high)


_TRUTH = {"true": True, "false": False}
_PARSERS: dict[Any, Callable[[str], Any]] = {
    tuple[float, ...]: lambda text: tuple(float(one) for one in text.split(",") if one.strip()),
    int: int,
    float: float,
    str: str,
    bool: lambda text: _TRUTH[text.lower()],
    tuple[float, float]: _pair,
    tuple[int, ...]: lambda text: tuple(int(one) for one in text.split(",")),
    tuple[str, ...]: lambda text: tuple(one.strip() for one in text.split(",")),
}


def _replaced(part: Any, path: list[str], text: str, key: str) -> Any:
    names = {field.name for field in dataclasses.fields(part)}
    if path[0] not in names:
        raise InvalidRequest(f"no setting is called {key!r}; there are: {', '.join(sorted(names))}", param="set")
    current = getattr(part, path[0])
    if len(path) > 1:
        return dataclasses.replace(part, **{path[0]: _replaced(current, path[1:], text, key)})
    kind = get_type_hints(type(part))[path[0]]
    try:
        value = _PARSERS[kind](text)
    except (KeyError, ValueError) as error:
        raise InvalidRequest(f"{key} takes a {kind}, not {text!r}", param="set") from error
    return dataclasses.replace(part, **{path[0]: value})
