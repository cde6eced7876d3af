"""PSNR and sharpness against independent formulas and known pictures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, laplace

from model.errors import DataError
from training.metrics.image import PSNR_CEILING_DB, psnr, sharpness, sharpness_kept, shrunk_and_back, ssim


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


def ssim_by_its_formula(one: np.ndarray, other: np.ndarray) -> float:
    """Equation 13 of Wang et al. 2004, with scipy's Gaussian, away from the border."""
    x, y = one[..., 0].astype(float), other[..., 0].astype(float)

    def blurred(z: np.ndarray) -> np.ndarray:
        return gaussian_filter(z, 1.5, truncate=3.5)

    mx, my = blurred(x), blurred(y)
    vx, vy, vxy = blurred(x * x) - mx**2, blurred(y * y) - my**2, blurred(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    local = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(local[5:-5, 5:-5].mean())


def test_ssim_follows_its_formula() -> None:
    clean = gaussian_filter(noise(), (2.0, 2.0, 0))
    for other in (noise(1), gaussian_filter(noise(), (3.0, 3.0, 0)), np.clip(clean.astype(int) + 20, 0, 255)):
        found = ssim(clean[None], other.astype(np.uint8)[None])
        assert found == pytest.approx(ssim_by_its_formula(clean, other.astype(np.uint8)), abs=1e-6)
    assert ssim(clean[None], clean[None]) == 1.0


def test_ssim_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(DataError, match="one shape"):
        ssim(noise()[None], noise()[None, :-1])
    with pytest.raises(DataError, match="from 11 pixels"):
        ssim(noise()[None, :10], noise()[None, :10])


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
