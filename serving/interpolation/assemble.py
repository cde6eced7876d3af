"""The stages' frames become one video, with one manifest for both. Imports no torch.

How long a chained request takes, and how its stages share its progress. Pure but for what the engine measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from model.interpolation import FACTOR, InterpolationStage, interleave, pair_seed, pairs_of
from model.params import OutputFormat, Params
from serving.engine.mux import build_result
from serving.engine.protocol import Completed, Engine
from serving.interpolation.pair_store import Rendered


def estimate(engine: Engine, model: str, params: Params, chain: InterpolationStage | None) -> float | None:
    """Seconds a request would take on an idle engine, both stages; None while unknown.

    Pairs count as one after another: batching them makes it less.
    """
    first = engine.estimate(model, params)
    if chain is None or first is None:
        return first
    pair = engine.estimate(chain.model, chain.params)
    return None if pair is None else first + pairs_of(params) * pair


def first_share(engine: Engine, model: str, params: Params, chain: InterpolationStage | None) -> float:
    """The first stage's part of a request's work, for its progress: by measured times, else by frames and steps."""
    if chain is None:
        return 1.0
    first, both = engine.estimate(model, params), estimate(engine, model, params, chain)
    if first is not None and both:
        return first / both
    clip = params.num_frames * params.num_inference_steps
    pairs = pairs_of(params) * chain.params.num_frames * chain.params.num_inference_steps
    return clip / (clip + pairs)


_OWN: Final = frozenset(
    {"task", "model", "model_version", "params", "seed", "output_format", "decode_chunks", "degraded"}
)
"""What a manifest says of one video; the rest is how its engine computes."""


def whole(
    first: Rendered, between: Sequence[Rendered], chain: InterpolationStage, fps: int, output_format: OutputFormat
) -> Completed:
    """The result of a chained job; the caller, who knows them, adds the timings.

    Args:
        between: what was made between each two frames of `first`, in order.
        fps: of the first stage; the video plays at four times as many (a gif at 50 at most: model.media.video).
    """
    return build_result(
        interleave(first.frames, [pair.frames for pair in between]),
        fps=FACTOR * fps,
        output_format=output_format,
        degraded=first.degraded or any(pair.degraded for pair in between),
        manifest=_manifest(first.manifest, chain, [pair.manifest for pair in between]),
    )


def _manifest(first: dict[str, Any], chain: InterpolationStage, pairs: list[dict[str, Any]]) -> dict[str, object]:
    """The first stage's manifest with, under `interpolate`, all that the second stage's pixels depend on.

    Args:
        first: the first stage's manifest.
        pairs: each pair's, in order.
    """
    told = [
        {
            "seed": pair_seed(chain.params.seed, index),
            "model_version": manifest["model_version"],
            "decode_chunks": manifest["decode_chunks"],
        }
        for index, manifest in enumerate(pairs)
    ]
    how = {name: value for name, value in pairs[0].items() if name not in _OWN}
    second = {**how, **chain.as_dict(), "model_version": told[0]["model_version"], "pairs": told}
    degraded = any(manifest["degraded"] for manifest in (first, *pairs))
    return {**first, "degraded": degraded, "interpolate": second}
