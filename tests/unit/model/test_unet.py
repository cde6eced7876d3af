"""Surgery: the grown network computes what it did, whatever its new inputs hold, and learns from them."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.errors import CheckpointError
from model.optimized.rewrites import relative_difference
from model.presets import preset
from model.tasks import TASKS, TaskSpec, task
from model.unet import build_unet, grow_inputs

C, T, SIDE, WIDTH = 4, 3, 4, 32
GROWTHS = [
    ("text-to-video", "image-to-video"),
    pytest.param("text-to-video", "frame-interpolation", marks=pytest.mark.slow),
    pytest.param("image-to-video", "multi-view", marks=pytest.mark.slow),
]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(unet: UNetSpatioTemporalConditionModel, sample: Tensor, vector: Tensor) -> Tensor:
    context = draw(sample.shape[0], 2, WIDTH, seed=7)
    output: Tensor = unet(sample, torch.tensor(0.3), context, added_time_ids=vector, return_dict=False)[0]
    return output


def inputs(spec: TaskSpec, seed: int) -> tuple[Tensor, Tensor]:
    """A sample whose first channels, and a vector whose named scalars, are the same for every task."""
    extra = spec.concat_channels(C)
    sample = torch.cat([draw(1, T, C, SIDE, SIDE, seed=1), draw(1, T, extra, SIDE, SIDE, seed=seed)], dim=2)
    scalars = {"fps": 6.0, "motion_bucket_id": 127.0, "noise_aug_strength": 0.02 * seed, "elevation": 3.0 * seed}
    return sample, torch.tensor([[scalars[name] for name in spec.vector]])


@pytest.mark.parametrize(("before", "after"), GROWTHS)
def test_the_grown_network_gives_the_old_output_whatever_the_new_inputs(before: str, after: str) -> None:
    torch.manual_seed(0)
    was, becomes = task(before), task(after)
    unet = build_unet(preset("tiny"), was).eval()
    with torch.no_grad():
        # Both share the old inputs; those that `was` has beyond the noisy latents are the same in both.
        sample, vector = inputs(was, seed=2)
        old = run(unet, sample, vector)
        grow_inputs(unet, was, becomes)
        for seed in (2, 5):
            wider, longer = inputs(becomes, seed)
            wider[:, :, : sample.shape[2]] = sample
            longer[:, [becomes.vector.index(name) for name in was.vector]] = vector
            assert relative_difference(run(unet, wider, longer), old) < 1e-6


@pytest.mark.parametrize(("before", "after"), GROWTHS)
def test_the_grown_network_is_one_of_the_new_task_and_is_saved_as_such(
    before: str, after: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    unet = grow_inputs(build_unet(preset("tiny"), task(before)), task(before), task(after), num_frames=5)
    fresh = build_unet(preset("tiny"), task(after), num_frames=5)
    assert {k: v.shape for k, v in unet.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}
    folder = tmp_path_factory.mktemp("grown")
    unet.save_pretrained(folder)
    again = UNetSpatioTemporalConditionModel.from_pretrained(folder)
    assert again.config["in_channels"] == task(after).unet_in_channels(C)
    assert again.config["num_frames"] == 5
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in unet.state_dict().items())


def test_the_new_weights_are_zero_and_learn() -> None:
    was, becomes = task("text-to-video"), task("frame-interpolation")
    unet = grow_inputs(build_unet(preset("tiny"), was), was, becomes)
    new = (unet.conv_in.weight[:, C:], unet.add_embedding.linear_1.weight[:, was.vector_size :])
    assert not any(bool(part.any()) for part in new)
    run(unet, *inputs(becomes, seed=3)).square().mean().backward()
    assert bool(unet.conv_in.weight.grad[:, C:].any())
    assert bool(unet.add_embedding.linear_1.weight.grad[:, was.vector_size :].any())


@pytest.mark.slow
@settings(max_examples=20)
@given(pair=st.tuples(st.sampled_from(sorted(TASKS)), st.sampled_from(sorted(TASKS))))
def test_growth_never_drops_an_input(pair: tuple[str, str]) -> None:
    was, becomes = (task(name) for name in pair)
    unet = build_unet(preset("tiny"), was, device="meta")
    fits = set(was.vector) <= set(becomes.vector) and becomes.concat_masks >= was.concat_masks
    fits = fits and becomes.concat_latents >= was.concat_latents
    if fits:
        grow_inputs(unet, was, becomes)
        assert unet.conv_in.in_channels == becomes.unet_in_channels(C)
    else:
        with pytest.raises(CheckpointError):
            grow_inputs(unet, was, becomes)


def test_a_network_of_another_task_is_refused() -> None:
    unet = build_unet(preset("tiny"), task("image-to-video"), device="meta")
    with pytest.raises(CheckpointError, match="text-to-video needs 4 and 512: it is a checkpoint of another task"):
        grow_inputs(unet, task("text-to-video"), task("frame-interpolation"))
