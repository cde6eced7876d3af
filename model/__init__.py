"""What is computed: shapes, tasks, networks, the sampling mathematics and its backends.

Importing this package imports no torch; the modules that need it import it themselves. Log records of transformers and
diffusers that tell users nothing are filtered here, where every use of the two begins.
"""

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


filter_notices()
