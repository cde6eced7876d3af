"""Many seeds of one still: what the cache of encodings saves, in one run.

    python -m benchmarks.many_seeds [--seeds 50] [--write]

The encode phase of the same request with --seeds seeds, as the engine runs it: with its cache of encodings
(model.encoding_cache) and with a cache of no bytes, in turn seed by seed. "computed" counts calls of networks with the
cache. An image latent is encoded for each seed where the seed draws noise into the pixels (image-to-video).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.entry import run_main
from benchmarks.results import write_section
from model.catalog import zoo
from model.encoding_cache import EncodingCache
from serving.engine.job import encode_request, fitted_pictures
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.protocol import EngineRequest
from serving.engine.settings import EngineSettings

STILL: Final = Path(__file__).resolve().parents[1] / "docs" / "assets" / "still.jpg"
_BEGIN: Final = "<!-- many_seeds: written by python -m benchmarks.many_seeds --write -->"
_END: Final = "<!-- end of many_seeds -->"


@dataclass(frozen=True, slots=True)
class Figures:
    """The encode phases of one checkpoint.

    Args:
        computed: network calls with the cache, by kind of encoding.
        seconds: of all seeds, with the cache and without.
    """

    model: str
    computed: Mapping[str, int]
    seconds: tuple[float, float]


def measure(model: LoadedModel, seeds: int) -> Figures:
    """Encode one request with every seed, with the cache and without in turn."""
    sides = {size: replace(model, checkpoint=replace(model.checkpoint, encodings=EncodingCache(size)))
             for size in (2**26, 0)}  # fmt: skip
    spec = model.entry.task
    stills = (STILL.read_bytes(),) * len(spec.pictures)
    took = dict.fromkeys(sides, 0.0)
    with torch.inference_mode():
        for seed in range(-1, seeds):  # the first warms both up, by another cache
            params = model.entry.resolve(dict(spec.sample_request), max(seed, 0))
            request = EngineRequest("local", model.entry.name, params, stills, "mp4")
            pictures = fitted_pictures(request)
            if seed < 0:
                encode_request(model, request, pictures)
                continue
            for size, side in sides.items():
                began = time.perf_counter()
                encode_request(side, request, pictures)
                took[size] += time.perf_counter() - began
    cache = sides[2**26].checkpoint.encodings
    assert cache is not None
    computed = {key.removesuffix(" computed"): n for key, n in cache.counts().items() if key.endswith(" computed")}
    return Figures(model.entry.name, computed, (took[2**26], took[0]))


def table(figures: Sequence[Figures], seeds: int) -> str:
    """The figures as Markdown."""
    lines = [f"| model | computed for {seeds} seeds | with the cache | without | saved |", "|---|---|---|---|---|"]
    for one in figures:
        computed = ", ".join(f"{kind} {count}" for kind, count in one.computed.items())
        mine, other = one.seconds
        lines.append(f"| {one.model} | {computed} | {mine:.2f} s | {other:.2f} s | {1 - mine / other:.0%} |")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--write", action="store_true", help="the table into benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    figures: list[Figures] = []
    for entry in zoo():
        figures.append(measure(load_model(entry, EngineSettings()), arguments.seeds))
        print(json.dumps(_plain(figures[-1])), flush=True)
    text = table(figures, arguments.seeds)
    print(text)
    if arguments.write:
        title = (
            f"## Many seeds of one still\n\n`python -m benchmarks.many_seeds --seeds {arguments.seeds}`, encode phases"
        )
        write_section(_BEGIN, _END, f"{title}.\n\n{text}")


def _plain(figures: Figures) -> dict[str, Any]:
    return {"model": figures.model, "computed": dict(figures.computed), "seconds": figures.seconds}


if __name__ == "__main__":
    run_main(main)
