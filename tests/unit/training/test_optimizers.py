"""Muon: orthogonal steps on matrices, AdamW's own on all else, and state that is saved and read."""

from __future__ import annotations

import dataclasses
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from model.errors import InvalidRequest
from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from tests.unit.training.test_trainer import OPTIM
from training.optimizers import RMS, Muon, build_optimizer, count_moments, matrix_weights, orthogonalize

MUON = dataclasses.replace(OPTIM, method="muon", weight_decay=0.0)


class Net(nn.Module):
    """A first convolution, a hidden layer and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv_in = nn.Conv2d(2, 8, 3, padding=1)
        self.hidden = nn.Conv2d(8, 6, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.hidden(self.conv_in(x).relu())))


def descend(net: Net, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        x = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x) - x.mean()).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 33), (1, 7)])
def test_orthogonal_keeps_the_directions_and_evens_out_their_strengths(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    seen = u.T @ orthogonalize(matrix) @ v.T
    strengths = seen.diagonal()
    assert (seen - torch.diag(strengths)).abs().max() < 1e-4
    assert strengths.min() > 0.65 and strengths.max() < 1.25


def test_a_matrix_moves_by_an_orthogonal_step_and_nothing_else_does() -> None:
    net, plain = Net(), Net()
    before = net.hidden.weight.detach().clone()
    descend(net, build_optimizer(net, MUON), 1)
    descend(plain, build_optimizer(plain, dataclasses.replace(MUON, method="adamw")), 1)
    moved = (before - net.hidden.weight.detach()).flatten(1) / (MUON.lr * RMS * (8 * 9) ** 0.5)
    strengths = torch.linalg.svdvals(moved)
    assert strengths.min() > 0.6 and strengths.max() < 1.25
    ours, theirs = dict(net.named_parameters()), dict(plain.named_parameters())
    for name in ours.keys() - {"hidden.weight"}:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_state_that_is_read_goes_on_as_it_would_have() -> None:
    whole, parts = Net(), Net()
    optimizer = build_optimizer(whole, MUON)
    descend(whole, optimizer, 7)
    first = build_optimizer(parts, MUON)
    descend(parts, first, 4)
    second = build_optimizer(parts, MUON)
    second.load_state_dict(first.state_dict())
    descend(parts, second, 3, first=4)
    for ours, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_has_no_gradient_stays() -> None:
    net = Net()
    net.hidden.weight.requires_grad_(False)
    before = net.hidden.weight.detach().clone()
    descend(net, build_optimizer(net, MUON), 2)
    assert torch.equal(net.hidden.weight, before)


def test_a_denoisers_matrices_are_nearly_all_of_it_and_its_moments_are_counted() -> None:
    size = preset("tiny")
    unet = cast(nn.Module, build_unet(size, task("image-to-video"), num_frames=3))
    inside = {id(p) for p in matrix_weights(unet)}
    told = {name for name, p in unet.named_parameters() if id(p) in inside}
    assert all(name.endswith(".weight") for name in told)
    assert not told & {"conv_in.weight", "conv_out.weight"} and not any("norm" in name for name in told)
    assert {name for name, p in unet.named_parameters() if p.ndim > 1} - told == {"conv_in.weight", "conv_out.weight"}
    optimizer = build_optimizer(unet, MUON)
    assert isinstance(optimizer, Muon)
    for p in unet.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kept = [value for one in optimizer.state.values() for name, value in one.items() if name != "step"]
    assert sum(value.numel() for value in kept) == count_moments(unet, MUON)


def test_another_method_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="there are: adamw, muon"):
        dataclasses.replace(OPTIM, method="sgd")
