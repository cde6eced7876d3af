"""Assembly of a chained job's result: both stages' frames interleaved into one video with one manifest. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from model.interpolation import FACTOR, InterpolationStage, interleave, pair_seed
from model.params import OutputFormat
from serving.engine.mux import build_result
from serving.engine.protocol import Completed
from serving.interpolation.pair_store import Rendered

_OWN: Final = frozenset(
    {"task", "model", "model_version", "params", "seed", "output_format", "decode_chunks", "degraded"}
)
"""What a manifest says of one video; the rest is how its engine computes."""


def assemble_result(
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
    pair_fields = [
        {
            "seed": pair_seed(chain.params.seed, index),
            "model_version": manifest["model_version"],
            "decode_chunks": manifest["decode_chunks"],
        }
        for index, manifest in enumerate(pairs)
    ]
    how = {name: value for name, value in pairs[0].items() if name not in _OWN}
    second = {**how, **chain.as_dict(), "model_version": pair_fields[0]["model_version"], "pairs": pair_fields}
    degraded = any(manifest["degraded"] for manifest in (first, *pairs))
    return {**first, "degraded": degraded, "interpolate": second}
