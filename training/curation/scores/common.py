"""What scorers share: records of what was scored, and of what was not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from training.curation.records import ScoreRecord


def score_records(clip_id: str, values: Mapping[str, float], tool: str, weights_sha256: str = "") -> list[ScoreRecord]:
    """A record for each named value."""
    return [ScoreRecord(clip_id, name, float(value), None, tool, weights_sha256) for name, value in values.items()]


def unscored_records(
    clip_id: str, names: Iterable[str], reason: str, tool: str, weights_sha256: str = ""
) -> list[ScoreRecord]:
    """A record for each name that says why there is no value."""
    return [ScoreRecord(clip_id, name, None, f"not scored: {reason}", tool, weights_sha256) for name in names]
