"""PSNR and sharpness against independent formulas and known pictures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, laplace

from model.errors import DataError
from training.metrics.image import PSNR_CEILING_DB, psnr, sharpness, sharpness_kept, shrunk_and_back


def noise(seed: int = 0) -> np.ndarray:
    grey = np.random.default_rng(seed).integers(0, 256, (48, 64), dtype=np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize(("step", "decibels"), [(1, 48.1308), (10, 28.1308), (255, 0.0)])
def test_psnr_of_a_constant_difference(step: int, decibels: float) -> None:
    dark = np.zeros((8, 8, 3), np.uint8)
    assert psnr(dark, dark + np.uint8(step)) == pytest.approx(decibels, abs=1e-3)


def test_psnr_of_equal_pictures_and_of_unequal_shapes() -> None:
    assert psnr(noise(), noise()) == PSNR_CEILING_DB
    with pytest.raises(DataError, match="one shape"):
        psnr(noise(), noise()[:-1])


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    picture = noise()
    expected = laplace(picture[..., 0].astype(float), mode="mirror").var()
    assert sharpness(picture) == pytest.approx(expected, rel=1e-6)


def test_a_clip_that_blurs_keeps_less_and_a_still_keeps_all() -> None:
    soft = gaussian_filter(noise(), (1.0, 1.0, 0))
    assert sharpness_kept(np.stack([noise(), soft])) < 0.1
    assert sharpness_kept(np.stack([noise(), noise()])) == 1.0
    assert sharpness_kept(np.zeros((2, 8, 8, 3), np.uint8)) == 1.0


def test_shrinking_keeps_soft_pictures_and_loses_detail() -> None:
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    assert psnr(ramp, shrunk_and_back(ramp)) > 35
    assert psnr(noise(), shrunk_and_back(noise())) < 15
