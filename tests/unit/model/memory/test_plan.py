"""The memory plan: the most convenient way that fits; and the rehearsal it rests on, against what a run allocates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.errors import InvalidRequest
from model.memory.plan import (
    GIB,
    MemoryNeeds,
    decoder_bytes,
    denoiser_bytes,
    group_bytes,
    needs_of,
    parameter_bytes,
    peak_bytes,
    plan,
    tiled_decoder_bytes,
)
from model.presets import preset
from model.shapes import LatentShape
from model.tasks import task
from model.testing import on_meta
from model.unet import build_unet
from model.vae import build_vae

NEEDS = MemoryNeeds(
    unet=3 * GIB,
    vae=GIB // 4,
    conditioners=GIB,
    denoise=lambda places: places * GIB,
    decode=lambda chunk: chunk * GIB // 2,
    encode=GIB // 2,
)


def test_more_memory_is_more_convenience() -> None:
    plans = [plan(NEEDS, gib * GIB, 14, requested_chunk=8, overlap=True) for gib in (80, 12, 10, 8, 7)]
    assert [one.max_batch_size for one in plans] == sorted((one.max_batch_size for one in plans), reverse=True)
    assert plans[0].max_batch_size == 8 and not plans[0].offload and plans[0].decode_chunk == 7
    assert plans[-1].offload and plans[-1].decode_chunk < 7
    assert all(one.peak_bytes <= gib * GIB for one, gib in zip(plans, (80, 12, 10, 8, 7), strict=True))


def test_the_same_video_comes_before_a_smaller_chunk() -> None:
    needs = replace(NEEDS, decode_tiled=lambda chunk: chunk * GIB // 8, unet_group=GIB)
    plans = [plan(needs, int(gib * GIB), 14, requested_chunk=8, overlap=True) for gib in (10, 8.5, 6.5, 4.5, 4)]
    assert [(one.max_batch_size, one.tiled_decode, one.group_offload) for one in plans] == [
        (2, True, False),
        (2, True, False),
        (1, True, False),
        (1, True, True),
        (1, True, True),
    ]
    assert [one.decode_chunk for one in plans] == [7, 7, 7, 7, 4]


def test_too_little_is_told_with_what_it_takes() -> None:
    with pytest.raises(InvalidRequest, match=r"4\.0 GiB are too little.*--dtype float16") as caught:
        plan(NEEDS, 4 * GIB, 14, requested_chunk=8, overlap=False)
    assert caught.value.param == "vram_budget"


def test_the_ledger_keeps_what_is_alive() -> None:
    def work() -> None:
        a = torch.empty(1000, device="meta")  # 4,000 bytes
        b = a + 1
        del a
        c = b * 2
        del b
        c.add_(1)

    assert peak_bytes(work) == 8000


@pytest.mark.slow
def test_a_rehearsal_grows_with_what_is_rehearsed() -> None:
    unet, vae = build_unet(preset("tiny"), task("image-to-video")), build_vae(preset("tiny"))
    latent = LatentShape(6, 4, 8, 8)
    one, two = (denoiser_bytes(unet, latent, places) for places in (1, 2))
    assert 1.7 * one < two < 2.1 * one
    assert decoder_bytes(vae, latent, 3) < decoder_bytes(vae, latent, 6)
    assert parameter_bytes(unet) == 4 * sum(weight.numel() for weight in unet.parameters())


@pytest.mark.slow
def test_strips_and_groups_need_less_on_the_device() -> None:
    vae = build_vae(preset("svd"), device="meta")
    unet = build_unet(preset("svd"), task("image-to-video"), device="meta")
    vae.to("meta", torch.float16)
    unet.to("meta", torch.float16)
    latent = LatentShape(14, 4, 72, 128)
    assert tiled_decoder_bytes(vae, latent, 7) < 0.5 * decoder_bytes(vae, latent, 7)
    assert group_bytes(unet) < 0.5 * parameter_bytes(unet)


@pytest.mark.slow
def test_fourteen_published_frames_fit_eight_gib() -> None:
    """The plan for an 8 GB card at 14 x 576 x 1024, counted on the meta device."""
    checkpoint = on_meta(preset("svd"), task("image-to-video"), torch.float16)
    needs = needs_of(checkpoint, LatentShape(14, 4, 72, 128), can_group=True)
    fitted = plan(needs, 8 * GIB, 14, requested_chunk=8, overlap=True)
    assert fitted.peak_bytes <= 8 * GIB
    assert fitted.decode_chunk == 7  # as requested: the video is not degraded
