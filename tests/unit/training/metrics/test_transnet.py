"""TransNet V2's parts against plain re-computations, and (full) its published weights against a cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.metrics.transnet import (
    FEATURES,
    REACH,
    TransNetV2,
    _neighbour_similarity,
    _Separable,
    clip_features,
    colour_histograms,
    load_transnet,
)


@pytest.fixture(scope="module")
def network() -> TransNetV2:
    torch.manual_seed(0)
    return TransNetV2().eval().requires_grad_(False)


def test_histograms_are_numpys() -> None:
    frames = torch.randint(0, 256, (2, 3, 6, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    counted = colour_histograms(frames)
    for b in range(2):
        for t in range(3):
            expected, _ = np.histogramdd(frames[b, t].reshape(-1, 3).numpy(), bins=8, range=[(0, 256)] * 3)
            np.testing.assert_array_equal(counted[b, t].numpy(), expected.ravel())


def test_similarity_looks_both_ways_and_sees_nothing_beyond_the_ends() -> None:
    x = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0))
    seen = _neighbour_similarity(x)[0]
    for t in range(4):
        for k in range(2 * REACH + 1):
            other = t + k - REACH
            expected = torch.cosine_similarity(x[0, t], x[0, other], dim=0) if 0 <= other < 4 else torch.tensor(0.0)
            torch.testing.assert_close(seen[t, k], expected)


@pytest.mark.parametrize("dilation", [1, 2, 8])
def test_two_dimensional_convolutions_are_the_three_dimensional_ones(dilation: int) -> None:
    torch.manual_seed(0)
    layer = _Separable(3, 4, dilation)
    x = torch.randn(2, 3, 11, 7, 9)
    expected = layer.layers[1](layer.layers[0](x))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_features_are_one_vector_a_clip_whatever_its_size(network: TransNetV2) -> None:
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, (5, 54, 96, 3), dtype=np.uint8)
    assert clip_features(large, network).shape == (FEATURES,)
    assert np.abs(clip_features(large, network) - clip_features(large[::-1], network)).max() > 0


@pytest.mark.full
def test_the_published_weights_find_a_cut() -> None:
    """Fetches the weights (33 MB). Two unlike scenes joined after frame 30: that frame, and no other, is a cut."""
    rng = np.random.default_rng(0)
    columns = np.arange(48)
    scenes = []
    for seed in range(2):
        base = rng.integers(0, 256, (27, 48, 3))
        smooth = np.stack([np.roll(base, step // 4, axis=1) for step in range(30)])
        scenes.append(((smooth * 0.2 + (columns[:, None] * 2 + seed * 110)) % 256).astype(np.uint8))
    frames = torch.from_numpy(np.concatenate(scenes))
    with torch.inference_mode():
        cut = load_transnet()(frames[None])[0].sigmoid()[0]
    assert int(cut.argmax()) == 29
    assert cut[29] > 0.5
    assert (cut > 0.5).sum() == 1
