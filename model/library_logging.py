"""Log records and progress bars of transformers and diffusers that tell users nothing: filtered where they arise.

Imports neither library, so that `import model` stays free of torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

_NOTICES: Final[Mapping[str, str]] = {
    # transformers has two image processors and takes the one for Pillow, which is the one we mean.
    "transformers.utils.import_utils": "falling back to",
    # diffusers warns of an empty list of modules when a network is cast before it is saved.
    "diffusers.models.modeling_utils": "should be kept in float32: []",
}
"""Logger -> what its superfluous record says."""


def filter_notices() -> None:
    """Drop those records, and no others of the same loggers."""
    for name, text in _NOTICES.items():
        logging.getLogger(name).addFilter(lambda record, text=text: text not in record.getMessage())  # type: ignore[misc]


def disable_progress_bars() -> None:
    """No "Loading checkpoint shards" bars: a checkpoint's networks load within seconds. Imports both libraries."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
