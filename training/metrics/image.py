"""Measures of single frames (PSNR, SSIM, sharpness, what survives the autoencoder's stride), and rank correlation.

Rank correlation (Spearman) says whether more of what was requested is more of what is measured, whatever the scale.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import rankdata

from model.errors import DataError, MissingExtra
from model.media.video import Frames
from model.shapes import VAE_STRIDE

SSIM_WINDOW = 11
PSNR_CEILING_DB = 100.0
"""What equal pictures count as, where figures are averaged."""


def psnr(one: Frames, other: Frames) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures or clips of one shape, in dB; PSNR_CEILING_DB where they are equal.

    Raises:
        DataError: the shapes differ.
    """
    if one.shape != other.shape:
        raise DataError(f"PSNR compares pictures of one shape, not {one.shape} with {other.shape}")
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    if error == 0:
        return PSNR_CEILING_DB
    return min(PSNR_CEILING_DB, float(10 * np.log10(255**2 / error)))


def ssim(one: Frames, other: Frames) -> float:
    """Mean structural similarity of 8-bit clips of one shape, frame by frame; 1 for equal ones (Wang et al. 2004).

    The paper's window: Gaussian, sigma 1.5, 11 pixels; the mean over colour channels.

    Args:
        one, other: [T, H, W, 3], H and W from 11 on.

    Raises:
        DataError: the shapes differ, or the frames are smaller than the window.
        MissingExtra: scikit-image is not installed.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        raise MissingExtra("measuring SSIM", "train") from None
    if one.shape != other.shape or min(one.shape[1:3]) < SSIM_WINDOW:
        raise DataError(f"SSIM compares clips of one shape from 11 pixels on, not {one.shape} with {other.shape}")
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "win_size": SSIM_WINDOW}
    return float(
        np.mean(
            [
                structural_similarity(a, b, data_range=255, channel_axis=-1, **settings)
                for a, b in zip(one, other, strict=True)
            ]
        )
    )


def sharpness(frame: Frames) -> float:
    """Variance of the Laplacian of a frame, [H, W, 3], in grey levels squared: less where edges are soft."""
    try:
        import cv2
    except ImportError:
        raise MissingExtra("measuring sharpness", "train") from None
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def sharpness_kept(clip: Frames) -> float:
    """Sharpness of the last frame over that of the first; 1 where the first has no detail to lose.

    Args:
        clip: [T, H, W, 3].
    """
    first, last = sharpness(clip[0]), sharpness(clip[-1])
    return last / first if first > 0 else 1.0


def shrunk_and_back(frame: Frames) -> Frames:
    """The frame shrunk by the autoencoder's stride and enlarged again: reconstruction's trivial baseline."""
    picture = Image.fromarray(frame)
    small = picture.resize((picture.width // VAE_STRIDE, picture.height // VAE_STRIDE), Image.Resampling.LANCZOS)
    return np.asarray(small.resize(picture.size, Image.Resampling.BICUBIC))


Array = np.ndarray[Any, np.dtype[Any]]


def spearman(expected: Array, measured: Array) -> float:
    """Spearman's rank correlation, over all entries, ties sharing their mean rank; 0 where one side never changes."""
    x, y = rankdata(expected.ravel()), rankdata(measured.ravel())
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt(np.sum(x**2) * np.sum(y**2)))
    return float(np.sum(x * y)) / scale if scale > 0 else 0.0
