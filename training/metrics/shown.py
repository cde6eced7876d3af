"""What an evaluation shows: one clip of each side, to be looked at side by side.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Frames = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class Shown:
    """One input's clips.

    Args:
        name: the held-out clip, or the prompt.
        real: [T, H, W, 3], what was to be met; None where nothing is (a prompt has no one right clip).
        sides: [T, H, W, 3] each, by the name of who made it.
    """

    name: str
    real: Frames | None
    sides: Mapping[str, Frames]
