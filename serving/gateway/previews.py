"""Which checkpoints can draw previews, told from their folders without loading them."""

from __future__ import annotations

import json

from model.catalog import SIDECAR, ModelEntry
from model.errors import InvalidRequest


def draws_previews(entry: ModelEntry) -> bool:
    """Whether the checkpoint brings a map from latents to colours (`model.preview`); published weights do not."""
    path = entry.path / SIDECAR
    return path.exists() and bool(json.loads(path.read_text()).get("latent_colours"))


def check_previews(entry: ModelEntry, wanted: bool, able: frozenset[str]) -> None:
    """Refuse previews of a checkpoint that draws none. Raises InvalidRequest."""
    if wanted and entry.name not in able:
        can = ", ".join(sorted(able)) or "no model served here"
        raise InvalidRequest(
            f"{entry.name} draws no previews; leave previews out ({can} can)", code="no_previews", param="previews"
        )
