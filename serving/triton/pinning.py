"""Which checkpoint made a stored state, read from the state's own header. No torch.

A state goes on only where the same weights are served; elsewhere the job begins anew. The header is that of the
safetensors format: its length in 8 bytes, little-endian, then JSON with `__metadata__`.
"""

from __future__ import annotations

import json
from typing import Final

MADE_BY: Final = "model"
"""As model.sampling.stored writes it: NAME@VERSION."""


def made_by(state: bytes) -> str | None:
    """The version of the checkpoint that made a state; None where the state does not tell."""
    length = int.from_bytes(state[:8], "little")
    try:
        told = json.loads(state[8 : 8 + length])["__metadata__"][MADE_BY]
    except (ValueError, KeyError, TypeError):
        return None
    return str(told).rpartition("@")[2]
