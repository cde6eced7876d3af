"""Frame interpolation's channels: both ends, the learned embedding between, and the mask that tells them apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.conditioning import between_ends
from model.errors import InvalidRequest


@settings(max_examples=30)
@given(frames=st.integers(2, 9), channels=st.integers(1, 16), height=st.integers(1, 5), width=st.integers(1, 5))
def test_every_frame_is_an_end_or_the_embedding(frames: int, channels: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    start, end = torch.randn(2, channels, height, width, generator=generator)
    mask = torch.randn(channels, generator=generator)
    laid_out = between_ends(start, end, mask, frames)
    assert laid_out.shape == (frames, channels + 1, height, width)
    for index, frame in enumerate(laid_out):
        given = {0: start, frames - 1: end}.get(index)
        expected = mask[:, None, None].expand_as(start) if given is None else given
        assert torch.equal(frame[:-1], expected)
        assert bool((frame[-1] == float(given is not None)).all())


def test_the_embedding_learns_from_the_frames_between_alone() -> None:
    mask = torch.zeros(3, requires_grad=True)
    laid_out = between_ends(torch.randn(3, 2, 2), torch.randn(3, 2, 2), mask, 5)
    laid_out[:, :3].sum().backward()
    assert mask.grad is not None
    assert mask.grad.tolist() == [3 * 4.0] * 3


def test_one_frame_has_no_two_ends() -> None:
    with pytest.raises(InvalidRequest) as caught:
        between_ends(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.zeros(1), 1)
    assert caught.value.param == "num_frames"
