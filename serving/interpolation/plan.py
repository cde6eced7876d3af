"""What a request's later stages are: models and upscalers found by name, and every size checked, before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from model.catalog import ModelEntry
from model.errors import InvalidRequest
from model.interpolation import plan_interpolation
from model.media.upscale import LANCZOS, Upscalers
from model.params import Params
from model.stages import Stages, UpscaleStage, plan_extension
from model.tasks import IMAGE_TO_VIDEO

_PARAM: Final = "interpolate"
_MOST_PIXELS: Final = 4_000_000_000
"""Pixels of a whole video, all frames together: what is held in memory is three bytes for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWishes:
    """What a caller wants done to the generated clip.

    Args:
        frames: of the clip before interpolation; None for as many as the checkpoint makes at once.
        extender: the checkpoint that makes it longer; None for the clip's own, or the first that can.
        interpolate: whether, or the name of the checkpoint that does it.
        upscale: by which factor; None for not.
        upscaler: by what.
    """

    frames: int | None = None
    extender: str | None = None
    interpolate: bool | str = False
    upscale: int | None = None
    upscaler: str = LANCZOS


NO_WISHES: Final = StageWishes()


def split_frames(
    entry: ModelEntry, settings: Mapping[str, Any], wishes: StageWishes
) -> tuple[dict[str, Any], int | None]:
    """A request's settings for the generated clip, and how long it is to become; None: as long as it is.

    `num_frames` above what the checkpoint makes at once is a wish for a longer clip, which begins with the most.
    """
    clip = dict(settings)
    wished, most = clip.get("num_frames"), max(entry.num_frames)
    if wishes.frames is None and wished is not None and wished > most and entry.task.moving_scene:
        return {**clip, "num_frames": most}, int(wished)
    return clip, wishes.frames


def plan_stages(
    models: Sequence[ModelEntry],
    entry: ModelEntry,
    params: Params,
    wishes: StageWishes,
    frames: int | None,
    upscalers: Upscalers,
) -> Stages:
    """The stages behind a clip.

    Args:
        models: what is served.
        entry, params: of the clip.
        frames: how long it is to become (`split_frames`).

    Raises:
        InvalidRequest: something that is named is not there, or cannot work on the clip.
        MissingExtra, CheckpointError: the upscaler does not load.
    """
    extend = None if frames is None else plan_extension(_extender(models, entry, wishes.extender), params, frames)
    between = interpolator(models, wishes.interpolate)
    stages = Stages(
        extend=extend,
        interpolate=None if between is None else plan_interpolation(between, params),
        upscale=_upscale(wishes, upscalers),
    )
    _check_size(stages, params)
    return stages


def _upscale(wishes: StageWishes, upscalers: Upscalers) -> UpscaleStage | None:
    if wishes.upscale is None:
        return None
    found = upscalers.find(wishes.upscaler)
    if wishes.upscale not in found.factors():
        able = " or ".join(map(str, found.factors()))
        raise InvalidRequest(f"{found.name} makes frames {able} times as large, not {wishes.upscale}", param="upscale")
    return UpscaleStage(wishes.upscale, found.name, found.version)


def _check_size(stages: Stages, params: Params) -> None:
    size = stages.size(params)
    pixels = size.num_frames * size.height * size.width
    if pixels > _MOST_PIXELS:
        raise InvalidRequest(
            f"{size.num_frames} frames of {size.width}x{size.height} are {pixels / 1e9:.1f} billion pixels, more than "
            f"{_MOST_PIXELS / 1e9:g}: take fewer frames, or a smaller upscale",
            code="out_of_range",
            param="upscale" if stages.upscale is not None else "num_frames",
        )


def _extender(models: Sequence[ModelEntry], entry: ModelEntry, requested: str | None) -> ModelEntry:
    able = [one for one in models if one.task is IMAGE_TO_VIDEO]
    if requested is None and entry.task is IMAGE_TO_VIDEO:
        return entry
    found = next((one for one in able if requested in (None, one.name)), None)
    if found is None:
        served = ", ".join(one.name for one in able) or "none"
        raise InvalidRequest(
            f"{entry.name} makes {max(entry.num_frames)} frames at most, and a longer clip needs an image-to-video "
            f"model to go on; served: {served}",
            code="no_extension_model" if requested is None else "model_not_found",
            param="num_frames" if requested is None else "stages",
        )
    return found


def interpolator(models: Sequence[ModelEntry], requested: bool | str) -> ModelEntry | None:
    """The checkpoint that a request's `interpolate` means; None where it asks for none.

    Args:
        models: what is served.
        requested: True for the only one there is, or a name.

    Raises:
        InvalidRequest: none is served, none of that name, or several and no name is given.
    """
    if requested is False:
        return None
    able = [entry for entry in models if entry.task.restores_ends]
    names = ", ".join(entry.name for entry in able)
    other = next((entry for entry in models if entry.name == requested and entry not in able), None)
    if other is not None and requested not in {entry.name for entry in able}:
        raise InvalidRequest(
            f"{other.name} is a model of {other.task.name}, not frame-interpolation; served: {names or 'none'}",
            code="model_not_found",
            param=_PARAM,
        )
    if not able:
        raise InvalidRequest(
            "no frame-interpolation model is served here: leave interpolate out, or have one served as well "
            "(stillmotion serve --model ... --model mini-frame-interpolation)",
            code="no_interpolation_model",
            param=_PARAM,
        )
    if requested is True:
        if len(able) > 1:
            raise InvalidRequest(
                f"several frame-interpolation models are served: name one of {names} in interpolate",
                code="ambiguous_model",
                param=_PARAM,
            )
        return able[0]
    entry = next((entry for entry in able if entry.name == requested), None)
    if entry is None:
        raise InvalidRequest(
            f"no model {requested[:200]!r} is served for frame-interpolation; served: {names}",
            code="model_not_found",
            param=_PARAM,
        )
    return entry
