"""Random streams that depend on a key alone, so that data and noise are functions of (seed, step)."""

from __future__ import annotations

import torch


def generator(*key: int) -> torch.Generator:
    """A generator whose stream depends on the key alone: (seed, step), (seed, clip, step), ..."""
    mixed = 0x9E3779B97F4A7C15
    for part in key:
        mixed = (mixed ^ (part + 0x7F4A7C15)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed % 2**63)
