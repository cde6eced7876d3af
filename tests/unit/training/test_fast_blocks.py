"""Faster blocks: the same output and the same gradients as diffusers' own blocks, for every parameter."""

from __future__ import annotations

import copy
import dataclasses
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from model.errors import InvalidRequest
from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from tests.unit.training import toy_run
from training.data.config import PromptedData
from training.fast_blocks import FastResBlock, FastTransformer, speed_up
from training.objectives.denoise import DenoiseObjective


def output_and_gradients(network: nn.Module, tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    config = network.config
    seen = torch.randn(2, 4, config["in_channels"], 8, 16, generator=draw)
    context = torch.randn(2, tokens, config["cross_attention_dim"], generator=draw)
    vector = 100 * torch.rand(2, config["projection_class_embeddings_input_dim"] // 256, generator=draw)
    inputs = {"encoder_hidden_states": context, "added_time_ids": vector, "return_dict": False}
    out: Tensor = network(seen, torch.tensor([0.3, -0.6]), **inputs)[0]
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    return out.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "tokens"), [("image-to-video", 1), ("text-to-video", 5)])
def test_the_output_and_every_gradient_are_those_of_diffusers_blocks(kind: str, tokens: int) -> None:
    torch.manual_seed(0)
    plain = cast(nn.Module, build_unet(preset("tiny"), task(kind), num_frames=4))
    with torch.no_grad():
        for p in plain.parameters():  # blends and biases that start alike or at zero would hide a mistake
            p.add_(0.05 * torch.randn_like(p))
    fast = copy.deepcopy(plain)
    count = speed_up(fast)
    assert count == sum(isinstance(layer, FastResBlock | FastTransformer) for layer in fast.modules()) > 5
    assert fast.state_dict().keys() == plain.state_dict().keys()
    ours, own = output_and_gradients(fast, tokens)
    theirs, expected = output_and_gradients(plain, tokens)
    assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))
    # A query's gradient is zero where there is one token to attend to; it is then not computed.
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        if name in own:
            assert torch.allclose(own[name], gradient, atol=1e-4 * largest, rtol=1e-3), name
        else:
            assert (tokens == 1 and "attn2" in name) or "norm2" in name, name
            assert float(gradient.abs().max()) < 1e-4 * largest, name


def test_joint_pictures_are_refused() -> None:
    config = toy_run.config()
    assert isinstance(config.data, PromptedData)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_share=0.3))
    runtime = dataclasses.replace(config.runtime, fast_blocks=True)
    network = cast(nn.Module, build_unet(preset("tiny"), task(config.task), num_frames=toy_run.FRAMES))
    with pytest.raises(InvalidRequest, match=r"runtime\.fast_blocks=false"):
        DenoiseObjective(dataclasses.replace(config, runtime=runtime), network, toy_run.Waves())
    clips = dataclasses.replace(config, runtime=runtime, data=dataclasses.replace(config.data, image_share=0))
    objective = DenoiseObjective(clips, network, toy_run.Waves())
    step = next(step for step in range(50) if any(row.pictures for row in objective.rows(step)))
    with pytest.raises(InvalidRequest, match=r"runtime\.fast_blocks=false"):
        objective.backward(step)
