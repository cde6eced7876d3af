"""Which of a clip's captions a training step reads: CoCa's half of the time, the other two a quarter each (appendix C).

`vision`, which the paper does not have, is read as often as `video`: both describe the whole clip. What a clip lacks
leaves the draw, and the rest keep their proportions; `measured` is read where no captioner said anything at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from training.curation.protocols import MEASURED

SHARES = {"coca": 0.5, "video": 0.25, "vision": 0.25, "merge": 0.25}


def choose_caption(texts: Mapping[str, str], draw: float) -> str | None:
    """One of a clip's captions.

    Args:
        texts: the clip's, by captioner.
        draw: uniform in [0, 1); the same draw gives the same caption, whatever the order of the captions.

    Returns:
        The text; None where the clip has no caption.
    """
    available = {name: share for name, share in SHARES.items() if texts.get(name)}
    remaining = draw * sum(available.values())
    for name, share in available.items():
        if remaining < share:
            return texts[name]
        remaining -= share
    return texts.get(MEASURED)
