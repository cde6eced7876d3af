"""image_only_indicator: pictures pass the temporal layers untouched, clips beside them in the same call do not."""

from __future__ import annotations

import pytest
import torch

from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from training.joint_image_video import enable_image_rows, fill_temporal_gradients, image_rows


def test_a_picture_does_not_depend_on_its_neighbours_nor_on_temporal_layers() -> None:
    torch.manual_seed(0)
    unet = build_unet(preset("tiny"), task("text-to-video"), num_frames=3).eval()
    enable_image_rows(unet)
    x = torch.randn(2, 3, 4, 8, 8)
    told = {
        "timestep": torch.tensor([0.1, 0.4]),
        "encoder_hidden_states": torch.randn(2, 5, 32),
        "added_time_ids": torch.tensor([[5.0, 100.0], [7.0, 20.0]]),
    }

    @torch.no_grad()
    def run(sample: torch.Tensor, indicator: torch.Tensor | None) -> torch.Tensor:
        with image_rows(indicator):
            return unet(sample, **told).sample

    mixed = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    other = x.clone()
    other[:, 1] += 1
    first, second = run(x, mixed), run(other, mixed)
    assert torch.equal(first[0, 0], second[0, 0])  # a picture, whatever stands beside it
    assert not torch.allclose(first[1, 0], second[1, 0], atol=1e-4)  # a frame of a clip
    assert torch.allclose(first[1], run(x, None)[1], atol=1e-5)  # a clip is as it is without pictures
    for name, p in unet.named_parameters():
        if "temporal" in name:
            p.data.add_(0.1)
    assert torch.equal(run(x, mixed)[0], first[0])
    assert not torch.allclose(run(x, mixed)[1], first[1], atol=1e-4)


def test_temporal_layers_learn_nothing_from_pictures_and_need_not_be_computed() -> None:
    torch.manual_seed(0)
    unet = build_unet(preset("tiny"), task("text-to-video"), num_frames=1)
    enable_image_rows(unet)
    x, tokens = torch.randn(2, 1, 4, 8, 8), torch.randn(2, 5, 32)
    made: list[torch.Tensor] = []
    gradients: list[dict[str, torch.Tensor]] = []
    had: list[set[str]] = []
    for temporal in (True, False):
        unet.zero_grad(set_to_none=True)
        with image_rows(torch.ones(2, 1), temporal=temporal):
            out = unet(
                x, torch.tensor([0.1, 0.2]), encoder_hidden_states=tokens, added_time_ids=torch.ones(2, 2)
            ).sample
        out.square().mean().backward()
        if not temporal:
            assert any(p.grad is None for name, p in unet.named_parameters() if "temporal" in name)
            fill_temporal_gradients(unet)
        made.append(out.detach())
        grads = {name: p.grad for name, p in unet.named_parameters() if p.grad is not None and p.grad.any()}
        gradients.append({name: grad.clone() for name, grad in grads.items()})
        had.append({name for name, p in unet.named_parameters() if p.grad is not None})
    assert had[0] == had[1], "an optimizer sees the same parameters"
    full, skipped = gradients
    assert full and not [name for name in full if "temporal" in name]
    assert torch.equal(made[0], made[1]) and full.keys() == skipped.keys()
    assert all(torch.allclose(full[name], skipped[name], atol=1e-7) for name in full)
    with pytest.raises(AssertionError, match="clips need"), image_rows(None, temporal=False):
        pass
