"""An autoencoder's weights in two files: the late layers that a fitted decoder has of its own, and the rest.

Checkpoints of one encoder then hold the rest in identical files, which a store that knows contents keeps once. The two
are shards as diffusers and transformers know them, with an index, so `from_pretrained` reads the folder as ever.
"""

from __future__ import annotations

import json
from pathlib import Path

from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor

LATE = ("decoder.up_blocks.", "decoder.conv_norm_out.", "decoder.conv_out.", "decoder.time_conv_out.")
"""How the names begin of the decoder's late layers, which a fitted decoder has of its own."""


def split(vae: Path) -> None:
    """Turn the one weight file of an autoencoder's folder into two, the shared one first."""
    whole = vae / SAFETENSORS_WEIGHTS_NAME
    weights = load_file(whole)
    parts = (
        {name: value for name, value in weights.items() if not name.startswith(LATE)},
        {name: value for name, value in weights.items() if name.startswith(LATE)},
    )
    stem = whole.stem
    files = {f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors": part for number, part in enumerate(parts, 1)}
    for file, part in files.items():
        save_file(part, vae / file, metadata={"format": "pt"})
        (vae / file).chmod(whole.stat().st_mode)
    index = {
        "metadata": {"total_size": sum(map(_bytes, weights.values()))},
        "weight_map": {name: file for file, part in files.items() for name in part},
    }
    (vae / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    whole.unlink()


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
