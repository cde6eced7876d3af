"""How a chained job's work divides into its stages: seconds, for admission and deadlines, and parts of its progress."""

from __future__ import annotations

from typing import Final

from model.params import Params
from model.stages import Stages
from serving.engine.protocol import Engine

_LARGER_S: Final = 0.05
"""Seconds that making a frame larger is taken to last, which no profile has measured: Lanczos takes about that."""


def later_s(engine: Engine, params: Params, stages: Stages) -> dict[str, float] | None:
    """Seconds of each stage after the first on an idle engine, in order; None while unknown.

    Requests count as one after another: batching them makes it less.
    """
    seconds: dict[str, float] = {}
    if stages.extend is not None:
        window = engine.estimate(stages.extend.model, stages.extend.params)
        if window is None:
            return None
        seconds["extend"] = stages.extend.windows * window
    if stages.interpolate is not None:
        pair = engine.estimate(stages.interpolate.model, stages.interpolate.params)
        if pair is None:
            return None
        seconds["interpolate"] = (stages.frames_to_interpolate(params) - 1) * pair
    if stages.upscale is not None:
        seconds["upscale"] = stages.size(params).num_frames * _LARGER_S
    return seconds


def estimate(engine: Engine, model: str, params: Params, stages: Stages) -> float | None:
    """Seconds a request would take on an idle engine, all stages; None while unknown."""
    first = engine.estimate(model, params)
    if not stages or first is None:
        return first
    later = later_s(engine, params, stages)
    return None if later is None else first + sum(later.values())


def stage_spans(engine: Engine, model: str, params: Params, stages: Stages) -> dict[str, tuple[float, float]]:
    """The part of a request's work that each stage is, as begin and end from 0 to 1: `generate`, and those after it.

    By measured times, else by frames and steps.
    """
    if not stages:
        return {"generate": (0.0, 1.0)}
    first, later = engine.estimate(model, params), later_s(engine, params, stages)
    if first is None or later is None or not first + sum(later.values()):
        first = float(params.num_frames * params.num_inference_steps)
        later = _by_frames(params, stages)
    total, begin = first + sum(later.values()), 0.0
    spans = {}
    for name, amount in {"generate": first, **later}.items():
        spans[name] = (begin / total, (begin + amount) / total)
        begin += amount
    return spans


def _by_frames(params: Params, stages: Stages) -> dict[str, float]:
    steps = stages.steps(params)
    frames = {"upscale": 0.01}  # a frame made larger costs next to nothing beside a solver step of one
    if stages.extend is not None:
        frames["extend"] = stages.extend.params.num_frames
    if stages.interpolate is not None:
        frames["interpolate"] = stages.interpolate.params.num_frames
    return {name: count * frames[name] for name, count in steps.items()}
