"""The paper's own recipes (arXiv 2311.15127, appendix D and table values): every stage at its published size.

They name what they start from and stand on as folders beside the run: `stable-diffusion-2-1`, `svd-vae`, `openclip-h`
(training.runs says what to put there).
What the paper does not give is said here and chosen; where it contradicts itself, the choice is an argument.

- Batch, learning rate and iterations of stage I, and the schedule's form, are not given: AdamW at a constant rate.
- Image-to-video's condition dropout is not given: 0.1.
- Interpolation's latent height is given as 52 and as 72, its start as the base model and as text-to-video.
- Multi-view's noise distribution is not given: image-to-video's.
- The datasets are not public: `--data` names yours; the frame counts and motion buckets come from it.
- Of the camera LoRAs only the rank, the layers and the iterations are given. Batch, learning rate and alpha are chosen,
  the noise is image-to-video's, and the clips of each motion are rendered over the footage of `--data`.
"""

from __future__ import annotations

import dataclasses

from model.tasks import IMAGE_TO_VIDEO, TASKS
from training.config import Buckets, ConsistencyConfig, DenoiserConfig, Distillation, LoraConfig, Optim, Runtime
from training.data.config import CameraData, EndsData, FilmData, OrbitData, PromptedData

CAPTIONED = PromptedData(
    keep_every=1,
    strides=(1, 2, 4),
    camera_clips=0,
    film_share=1.0,
    image_share=0.0,
    motion_alone=0.0,
    motion_untold=1.0,
    bucket_untold=0.0,
)
PICTURED = FilmData(
    keep_every=1, strides=(1, 2, 4), still_share=0.0, moves=0, noise_aug_log_mean=-3.0, noise_aug_log_std=0.5
)


def _optim(iterations: int, batch: int, lr: float, ema: float = 0.9999) -> Optim:
    """AdamW, constant after a warm-up of 1,000 iterations (ours: not published)."""
    return Optim(iterations, batch, lr, 1000, 1.0, 0.999, 0.01, 1.0, ema, 0, 1000, 50)


def _stage(
    name: str, init: str, size: tuple[int, int, int], noise: tuple[float, float], optim: Optim
) -> DenoiserConfig:
    """A text-conditioned stage at (frames, height, width)."""
    frames, height, width = size
    return DenoiserConfig(
        preset="svd-xt" if frames == 25 else "svd",
        task=name,
        optim=optim,
        runtime=Runtime(precision="bfloat16", checkpointing=True, sharding="fsdp2"),
        init=init,
        vae="svd-vae",
        image_encoder="openclip-h",
        height=height,
        width=width,
        num_frames=frames,
        p_mean=noise[0],
        p_std=noise[1],
        condition_dropout=TASKS[name].condition_dropout,
        copying_start=False,
        time_only_until=0,
        window_until=0,
        window_height=height,
        window_width=width,
        data=CAPTIONED,
    )


def image_pretraining() -> DenoiserConfig:
    """Stage I: 512 x 512 pictures, 1,000 iterations of the time embedding alone, then 30,000 of all at 256 x 384.

    Both parts have P_mean -1.2 and P_std 1; the first part's larger size is not told apart here.
    """
    optim = _optim(31_000, 1536, 1e-4)
    config = _stage("text-to-video", "stable-diffusion-2-1", (14, 256, 384), (-1.2, 1.0), optim)
    return dataclasses.replace(
        config, time_only_until=1000, data=dataclasses.replace(CAPTIONED, image_share=1.0, motion_untold=1.0)
    )


def video_pretraining_low() -> DenoiserConfig:
    """Stage II, first part: temporal layers join, 14 frames at 256 x 384, "standard EDM" noise.

    Clips are sorted into shapes of those pixels, and short ones into 8 frames: ours, not published. To have all cropped
    to the one size: `--set buckets.largest_aspect=0 --set buckets.lengths=14`.
    """
    optim = _optim(150_000, 1536, 1e-4)
    config = _stage("text-to-video", "image-pretraining", (14, 256, 384), (-1.2, 1.2), optim)
    return dataclasses.replace(config, buckets=Buckets(largest_aspect=2.0, lengths=(8,)))


def video_pretraining_base() -> DenoiserConfig:
    """Stage II, second part: 320 x 576; the base model."""
    return _stage("text-to-video", "video-pretraining-low", (14, 320, 576), (0.0, 1.0), _optim(100_000, 768, 1e-4))


def text_to_video() -> DenoiserConfig:
    """Stage III, text-to-video at 576 x 1024."""
    return _stage("text-to-video", "video-pretraining-base", (14, 576, 1024), (0.5, 1.4), _optim(50_000, 768, 3e-5))


def image_to_video_low() -> DenoiserConfig:
    """Stage III, image-to-video, first part: 320 x 576."""
    config = _stage("image-to-video", "video-pretraining-base", (14, 320, 576), (0.7, 1.6), _optim(50_000, 768, 3e-5))
    return dataclasses.replace(config, data=PICTURED)


def image_to_video_14() -> DenoiserConfig:
    """Stage III, image-to-video, second part: 14 frames at 576 x 1024 (svd)."""
    config = _stage("image-to-video", "image-to-video-low", (14, 576, 1024), (1.0, 1.6), _optim(50_000, 768, 3e-5))
    return dataclasses.replace(config, data=PICTURED)


def image_to_video_25() -> DenoiserConfig:
    """Stage III, image-to-video, third part: 25 frames (svd-xt)."""
    config = image_to_video_14()
    return dataclasses.replace(config, preset="svd-xt", num_frames=25, init="image-to-video-14")


def image_to_video_25_fast() -> ConsistencyConfig:
    """The 25-frame model in 1 to 8 unguided evaluations, by consistency: 10, 20, then 40 levels.

    Ours; the paper distils nothing. Iterations and batch are AnimateLCM's order of size (arXiv 2402.00769), the rate is
    chosen; guidance is what diffusers samples svd-xt with.
    """
    base = image_to_video_25()
    fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    return ConsistencyConfig(
        **fields | {"optim": _optim(10_000, 64, 1e-5), "init": "image-to-video-25", "condition_dropout": 0.0},
        distil=Distillation(max_guidance=3.0, levels=(10, 20, 40), solve_to_end=False, huber=1e-3, default_steps=4),
    )


def frame_interpolation(latent_height: int = 72, init: str = "text-to-video") -> DenoiserConfig:
    """Frame interpolation: 5 frames.

    Args:
        latent_height: 72 (576 pixels, as the text has it) or 52 (as the table has it).
        init: `text-to-video`, or `video-pretraining-base`.
    """
    size = (5, latent_height * 8, 1024)
    config = _stage("frame-interpolation", init, size, (1.0, 1.2), _optim(10_000, 256, 1e-4))
    data = EndsData(strides=(1, 2, 4), still_moving=0.02, noise_aug_log_mean=-3.0, noise_aug_log_std=0.5)
    return dataclasses.replace(config, data=data)


def multi_view() -> DenoiserConfig:
    """Multi-view: 21 views at 576 x 576, from the 25-frame image-to-video model."""
    config = _stage("multi-view", "image-to-video-25", (21, 576, 576), (1.0, 1.6), _optim(12_000, 16, 1e-5))
    data = OrbitData(fps=7, motion_bucket_id=127, noise_aug_log_mean=-3.0, noise_aug_log_std=0.5)
    return dataclasses.replace(config, preset="svd-xt", data=data)


def _camera_lora(motion: str, motions: tuple[str, ...], bucket_drawn: float) -> LoraConfig:
    """A LoRA of rank 16 on the temporal attention of the 14-frame image-to-video model."""
    return LoraConfig(
        name=f"camera-{motion}",
        preset="svd",
        base="image-to-video-14",
        rank=16,
        alpha=16.0,
        optim=_optim(5000, 16, 1e-4),
        runtime=Runtime(precision="bfloat16", accumulate=16, checkpointing=True),
        height=576,
        width=1024,
        num_frames=14,
        p_mean=1.0,
        p_std=1.6,
        condition_dropout=IMAGE_TO_VIDEO.condition_dropout,
        window_until=0,
        window_height=576,
        window_width=1024,
        data=CameraData(motions, 2000, bucket_drawn, noise_aug_log_mean=-3.0, noise_aug_log_std=0.5),
    )


def camera_lora_horizontal() -> LoraConfig:
    """Camera LoRA of horizontal motion."""
    return _camera_lora("horizontal", ("pan left", "pan right"), 0.0)


def camera_lora_zoom() -> LoraConfig:
    """Camera LoRA of zooming."""
    return _camera_lora("zoom", ("zoom in", "zoom out"), 0.0)


def camera_lora_static() -> LoraConfig:
    """Camera LoRA of a static camera, whatever the motion bucket."""
    return _camera_lora("static", ("still",), 1.0)
