"""What captioners share: records with a text, and records that say why there is none."""

from __future__ import annotations

from training.curation.records import CaptionRecord


def caption_record(clip_id: str, captioner: str, text: str, tool: str, weights_sha256: str = "") -> CaptionRecord:
    """A caption on one line; an empty one is no caption."""
    line = " ".join(text.split())
    if not line:
        return missing_caption(clip_id, captioner, "the captioner said nothing", tool, weights_sha256)
    return CaptionRecord(clip_id, captioner, line, None, tool, weights_sha256)


def missing_caption(clip_id: str, captioner: str, reason: str, tool: str, weights_sha256: str = "") -> CaptionRecord:
    """A record that says why there is no caption."""
    return CaptionRecord(clip_id, captioner, None, f"not captioned: {reason}", tool, weights_sha256)
