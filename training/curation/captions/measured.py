"""The captioner that needs no weights: what can be measured in the middle frame, and how the camera moves.

Its captions are in a small language of their own (training.data.attribute_captions) and stand under their own name,
`measured`, so
that nobody takes them for a captioner's. The camera's motion is the affine part of the flow at 2 fps (scores.motion),
named where it explains a good part of what moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.media.video import Frames
from training.curation.frames import SAMPLED_FPS, ClipFrames
from training.curation.protocols import MEASURED, known_options
from training.curation.records import CaptionRecord, Resources, ToolOptions, caption_record
from training.curation.scores.motion import STILL, Field, affine_part, stored_maps
from training.data.attribute_captions import attribute_caption

CAMERA_SHARE = 0.5
"""How much of the flow's energy the camera's part must hold to be named."""
SLOW, FAST = 0.03, 0.3
"""Short sides a second between which a camera's move is told without an adverb."""


def camera_phrase(frames: Frames, fps: float) -> str:
    """How the camera moves over [T, H, W, 3]: `the camera pans left quickly`, `the camera is still`, ..."""
    maps = list(stored_maps(frames, fps)) if len(frames) > 1 else []
    if not maps or max(float(np.hypot(m[..., 0], m[..., 1]).mean()) for m in maps) < STILL:
        return "nothing moves"
    flow: Field = np.mean(maps, axis=0)
    camera = affine_part(flow)
    energy = float(np.mean(flow**2))
    if float(np.mean((flow - camera) ** 2)) > (1 - CAMERA_SHARE) * energy:
        return "something moves before the camera"
    across, down = (float(camera[..., k].mean()) for k in (0, 1))
    # Growth of the picture a second, from the affine flow's slopes, in short sides: comparable with the shift.
    growth = float((camera[:, -1, 0] - camera[:, 0, 0]).mean() + (camera[-1, :, 1] - camera[0, :, 1]).mean()) / 4
    speed = max(abs(across), abs(down), abs(growth))
    if speed < STILL:
        return "the camera is still"
    adverb = " slowly" if speed < SLOW else " quickly" if speed > FAST else ""
    if abs(growth) == speed:
        return f"the camera moves {'in' if growth > 0 else 'out'}{adverb}"
    # The picture goes the other way than the camera does.
    if abs(across) == speed:
        return f"the camera pans {'left' if across > 0 else 'right'}{adverb}"
    return f"the camera tilts {'up' if down > 0 else 'down'}{adverb}"


class MeasuredCaptioner:
    """Captions from measurements alone."""

    name = MEASURED
    resources = Resources(batch=8)

    def __init__(self, options: ToolOptions) -> None:
        known_options(self.name, options, ())

    def caption(self, clips: Sequence[ClipFrames], earlier: Sequence[Sequence[CaptionRecord]]) -> list[CaptionRecord]:
        """One caption a clip; what others said is not used."""
        del earlier
        return [
            caption_record(clip.clip_id, self.name, self._text(clip), "measured attributes and flow") for clip in clips
        ]

    def _text(self, clip: ClipFrames) -> str:
        middle = clip.first_middle_last()[1]
        return f"{attribute_caption(middle, 'shot')}; {camera_phrase(clip.at_fps(SAMPLED_FPS), SAMPLED_FPS)}"
