"""What a denoiser is trained on, as its config says it: one dataclass for each kind of data."""

from __future__ import annotations

from dataclasses import dataclass

MOST_UNREADABLE = 0.1
"""Share of a dataset's clips that may be unreadable before training stops."""


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
