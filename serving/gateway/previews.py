"""Which checkpoints can draw previews, told without loading them."""

from __future__ import annotations

from model.catalog import ModelEntry
from model.errors import InvalidRequest


def draws_previews(entry: ModelEntry) -> bool:
    """Whether the checkpoint brings a map from latents to colours (`model.preview`)."""
    return entry.previews


def check_previews(entry: ModelEntry, wanted: bool, able: frozenset[str]) -> None:
    """Refuse previews of a checkpoint that draws none. Raises InvalidRequest."""
    if wanted and entry.name not in able:
        can = ", ".join(sorted(able)) or "no model served here"
        raise InvalidRequest(
            f"{entry.name} draws no previews; leave previews out ({can} can)", code="no_previews", param="previews"
        )
