"""How long a chained request takes, and how its stages share its progress. Pure but for what the engine measured."""

from __future__ import annotations

from model.chain import Interpolation, pairs_of
from model.params import Params
from serving.engine.protocol import Engine


def estimate(engine: Engine, model: str, params: Params, chain: Interpolation | None) -> float | None:
    """Seconds a request would take on an idle engine, both stages; None while unknown.

    Pairs count as one after another: batching them makes it less.
    """
    first = engine.estimate(model, params)
    if chain is None or first is None:
        return first
    pair = engine.estimate(chain.model, chain.params)
    return None if pair is None else first + pairs_of(params) * pair


def first_share(engine: Engine, model: str, params: Params, chain: Interpolation | None) -> float:
    """The first stage's part of a request's work, for its progress: by measured times, else by frames and steps."""
    if chain is None:
        return 1.0
    first, both = engine.estimate(model, params), estimate(engine, model, params, chain)
    if first is not None and both:
        return first / both
    clip = params.num_frames * params.num_inference_steps
    pairs = pairs_of(params) * chain.params.num_frames * chain.params.num_inference_steps
    return clip / (clip + pairs)
