"""Which checkpoint interpolates a chained request's clip."""

from __future__ import annotations

from collections.abc import Sequence

from model.catalog import ModelEntry
from model.errors import InvalidRequest
from model.tasks.frame_interpolation import FRAME_INTERPOLATION

_PARAM = "interpolate"


def interpolator(models: Sequence[ModelEntry], asked: bool | str) -> ModelEntry | None:
    """The checkpoint that a request's `interpolate` means; None where it asks for none.

    Args:
        models: what is served.
        asked: True for the only one there is, or a name.

    Raises:
        InvalidRequest: none is served, none of that name, or several and no name is given.
    """
    if asked is False:
        return None
    able = [entry for entry in models if entry.task is FRAME_INTERPOLATION]
    names = ", ".join(entry.name for entry in able)
    if not able:
        raise InvalidRequest(
            "no frame-interpolation model is served here: leave interpolate out, or have one served as well "
            "(stillmotion serve --model ... --model mini-frame-interpolation)",
            code="no_interpolation_model",
            param=_PARAM,
        )
    if asked is True:
        if len(able) > 1:
            raise InvalidRequest(
                f"several frame-interpolation models are served: name one of {names} in interpolate",
                code="ambiguous_model",
                param=_PARAM,
            )
        return able[0]
    chosen = next((entry for entry in able if entry.name == asked), None)
    if chosen is None:
        raise InvalidRequest(
            f"no model {asked[:200]!r} is served for frame-interpolation; served: {names}",
            code="model_not_found",
            param=_PARAM,
        )
    return chosen
