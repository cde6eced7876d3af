"""Typed configs: a recipe is a function that returns one of these, complete.

Nothing is left to defaults of the moment: what a run does is what its config says, and the config is saved beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from model.errors import InvalidRequest
from model.params import LCM_LEVELS
from training.data.config import MOST_UNREADABLE, CameraData, EndsData, FilmData, OrbitData, PromptedData

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
