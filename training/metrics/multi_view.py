"""Multi-view's figures: views of held-out objects, against repeating the view that was given.

The folder is one that `stillmotion data multi-view` wrote (training.data.orbits); objects that are held out are shown
from two elevations, and are built of meshes no training object has.

Legend: N orbits, T views, H, W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from model.catalog import ModelEntry
from training.config import ProgressCallback
from training.data.orbits import Orbit, load_orbits
from training.metrics.baselines import still
from training.metrics.frechet import interval, resamples
from training.metrics.generate import ClipMaker, GenerationRequest
from training.metrics.image import psnr, ssim
from training.metrics.inputs import EvalSample
from training.metrics.loss import loss_figure
from training.metrics.stlpips import stlpips

Figure = dict[str, Any]

RESAMPLES = 1000
PROTOCOL = {
    "views_psnr_db": (
        "Mean PSNR of the views that were not given, model against repeating the given view; by elevation too. "
        "Interval: 95% of 1000 bootstrap resamples over objects of the mean difference."
    ),
    "views_ssim": "Mean SSIM of the same views, with the same interval; more is more alike.",
    "views_stlpips": (
        "Mean ST-LPIPS (training.metrics.stlpips; smaller is more alike) of the same views; an interval below 0 means "
        "that the model is nearer."
    ),
}


def multi_view_figures(
    entry: ModelEntry, maker: ClipMaker, data: Path, limit: int | None, report: ProgressCallback
) -> tuple[Figure, list[EvalSample]]:
    """All figures of a multi-view checkpoint, and its orbits beside the real ones.

    Raises:
        DataError: `data` holds no orbits.
    """
    orbits = load_orbits(data, "heldout")[:limit]
    fps, bucket = int(entry.defaults["fps"]), int(entry.defaults["motion_bucket_id"])
    requests = [
        GenerationRequest(
            f"orbit/{one.item.id}", one.views[0], fps, bucket, one.item.id, params={"elevation": one.item.elevation}
        )
        for one in orbits
    ]
    generated = maker.generated(requests, "sampling orbits", report)
    loss = loss_figure(maker, requests, [one.views for one in orbits], report)
    shown = [
        EvalSample(one.item.id, one.views, {"model": clip, "repeating": still(one.views[0], len(one.views))})
        for one, clip in zip(orbits, generated, strict=True)
    ]
    return views(orbits, generated) | {"validation_loss": loss}, shown


def views(orbits: list[Orbit], generated: list[Any]) -> Figure:
    """The figures of the views beside the given one."""
    repeated = [still(one.views[0], len(one.views)) for one in orbits]
    shown = {"model": generated, "repeating": repeated}
    measures = {"views_psnr_db": psnr, "views_ssim": ssim, "views_stlpips": stlpips}
    return {
        figure: _beside(
            orbits,
            {
                side: np.array([measure(one.views[1:], clip[1:]) for one, clip in zip(orbits, clips, strict=True)])
                for side, clips in shown.items()
            },
            higher_is_better=figure != "views_stlpips",
        )
        for figure, measure in measures.items()
    }


def _beside(orbits: list[Orbit], sides: dict[str, Any], *, higher_is_better: bool) -> Figure:
    figure: Figure = {side: float(values.mean()) for side, values in sides.items()}
    elevations = np.array([one.item.elevation for one in orbits])
    for elevation in np.unique(elevations):
        at_elevation = elevations == elevation
        figure |= {f"{side}_at_{elevation:g}": float(values[at_elevation].mean()) for side, values in sides.items()}
    apart = sides["model"] - sides["repeating"]
    drawn = resamples([str(one.item.object) for one in orbits], RESAMPLES, seed=0)
    figure["model_minus_repeating_interval"] = interval([float(apart[rows].mean()) for rows in drawn])
    figure["beats_repeating"] = bool((apart.mean() > 0) == higher_is_better)
    return figure | {"orbits": len(orbits), "objects": len({one.item.object for one in orbits})}
