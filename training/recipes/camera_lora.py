"""The mini camera LoRAs: how the camera moves, learned by the temporal attention of the shipped image-to-video model.

Their clips are rendered (training.data.camera) over the starter dataset's footage.
"""

import dataclasses

from model.tasks import IMAGE_TO_VIDEO
from training.config import LoraConfig, Runtime
from training.data.config import CameraData
from training.recipes.image_to_video import MINI_OPTIM


def _mini(name: str, motions: tuple[str, ...], bucket_drawn: float, seed: int) -> LoraConfig:
    """Rank 16, as the paper has it; batches of 2 whole clips."""
    return LoraConfig(
        name=name,
        preset="mini",
        base="mini-image-to-video",
        rank=16,
        alpha=16.0,
        optim=dataclasses.replace(MINI_OPTIM, iterations=600, warmup=30, ema_decay=0.99, weight_decay=0.0, seed=seed),
        runtime=Runtime(),
        height=128,
        width=224,
        num_frames=14,
        p_mean=1.0,
        p_std=1.6,
        condition_dropout=IMAGE_TO_VIDEO.condition_dropout,
        window_until=0,
        window_height=128,
        window_width=224,
        data=CameraData(
            motions=motions,
            clips=120,
            bucket_drawn=bucket_drawn,
            noise_aug_log_mean=-3.0,
            noise_aug_log_std=0.5,
        ),
    )


def mini_camera_lora_horizontal() -> LoraConfig:
    """The camera pans to the left or to the right; how fast is the motion bucket's."""
    return _mini("camera-horizontal", ("pan left", "pan right"), 0.0, 40)


def mini_camera_lora_zoom() -> LoraConfig:
    """The camera zooms in or out; how fast is the motion bucket's."""
    return _mini("camera-zoom", ("zoom in", "zoom out"), 0.0, 41)


def mini_camera_lora_static() -> LoraConfig:
    """The camera stands still, whatever the motion bucket."""
    return _mini("camera-static", ("still",), 1.0, 42)
