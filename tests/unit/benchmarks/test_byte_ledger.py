"""Bytes moved at svd-xt's size, counted on the meta device: what the kernels are for, as figures that cannot flake."""

from __future__ import annotations

import torch

from benchmarks.byte_ledger import GB, decode_ledger, distinct_bytes, moved_by, networks, step_ledger
from model.presets import preset

SIZE = preset("svd-xt")


def test_a_guided_step_and_a_decoded_chunk_move_what_was_promised_and_copy_nothing() -> None:
    unet, vae = networks("ours", SIZE)
    step, decode = step_ledger(unet, SIZE), decode_ledger(vae, SIZE)
    assert step.total / GB <= 450
    assert decode.total / GB <= 200
    # From conv_in to conv_out one layout: nothing is copied but to join a skip connection.
    assert (step.copied - step.moved["cat"]) / GB < 0.02
    assert (decode.copied - decode.moved["cat"]) / GB < 0.01
    assert step.moved["native_group_norm"] == decode.moved["native_group_norm"] == 0


def test_operations_are_counted_by_hand() -> None:
    with torch.device("meta"):
        a, b = torch.empty(4, 8), torch.empty(8, 2)
        row = torch.empty(8).expand(4, 8)
    assert distinct_bytes(row) == 32
    assert moved_by(lambda: a @ b).total == 4 * (32 + 16 + 8)
    assert moved_by(lambda: a + row).total == 4 * (32 + 8 + 32)
    assert moved_by(lambda: a.transpose(0, 1)).total == 0
    assert moved_by(lambda: a.transpose(0, 1).contiguous()).copied == 2 * a.nbytes
    assert moved_by(lambda: a.mul_(2)).total == 2 * a.nbytes


def test_a_convolution_of_the_other_layout_is_counted_with_its_copy() -> None:
    with torch.device("meta"):
        x, conv = torch.empty(2, 4, 8, 8), torch.nn.Conv2d(4, 4, 1, bias=False)
    plain = moved_by(lambda: conv(x)).total
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    assert moved_by(lambda: conv(x)).total == plain  # a kernel of one pixel lies both ways
    conv = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False, device="meta")
    plain = moved_by(lambda: conv(x)).total
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    assert moved_by(lambda: conv(x)).total == plain + 2 * x.nbytes
