"""The paper's central claim, tried on one film: does curating pay, and does it still after finetuning on the best?

    python -m benchmarks.curation_gain FILM CURATED --networks runs --out runs/curation-gain [--iterations 300] [--json]

CURATED is what `stillmotion curate run FILM --out CURATED` made. Two networks are trained from the same start, by the
same recipe (mini-image-to-video) with the same seed and as many iterations:

    as-is      the whole film in pieces of four seconds: across cuts, with titles, credits and shots where nothing moves
    curated    the clips that the filter keeps

then each goes on (mini-image-to-video-long) for a few iterations on the same few best of the curated clips. What is
held out is the starter dataset's, in both. All four are measured on it (benchmarks.curation_gain_figures). Everything
lies in --out and is not made again, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

from benchmarks.curation_gain_figures import measure, sheet, table
from benchmarks.entry import run_main
from model.media.video import encode_video
from training.curation.calibrate.subsets import held_out, item_of, write_items
from training.curation.filter import Scores, load_scores
from training.curation.records import ClipRecord
from training.curation.tables import read_table
from training.curation.write import read_tables
from training.data.sources import sha256_of
from training.data.split import clip_split
from training.data.starter import Item
from training.train import train as run_recipe

PIECE_S: Final = 4.0
SIZE: Final = (448, 256)
BEST: Final = 12
AXES: Final = ("flow_mean", "sharpness", "colourfulness")
"""The best clips are those with the highest mean rank on these: the scores of the default dataset that say how good."""
FIRST, THEN = "mini-image-to-video", "mini-image-to-video-long"
ARMS: Final = ("as-is", "curated")
FILM_ONLY: Final = ("data.moves=0", "data.still_share=0.0")
"""No photographs: what differs is the film's footage alone."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Iterations of the first training, and of the finetuning."""

    first: int
    then: int


def pieces(film: Path, seconds: float) -> Iterator[tuple[int, float, np.ndarray[Any, Any]]]:
    """The film in pieces: (first frame, frames a second, frames [T, H, W, 3]), but for what is left over at its end."""
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        fps = float(stream.average_rate or 24)
        held: list[Any] = []
        for number, frame in enumerate(container.decode(stream)):
            held.append(frame.reformat(*SIZE, format="rgb24", interpolation="AREA").to_ndarray())
            if len(held) == round(seconds * fps):
                yield number + 1 - len(held), fps, np.stack(held)
                held = []


def write_as_is(folder: Path, film: Path) -> None:
    """A dataset folder of the film's pieces; those that touch what is held out are left out."""
    if (folder / "manifest.json").exists():
        return
    (folder / "shots").mkdir(parents=True, exist_ok=True)
    source, items = sha256_of(film), list[Item]()
    for first, fps, frames in pieces(film, PIECE_S):
        start, end = first / fps, (first + len(frames)) / fps
        if clip_split(source, start, end) == "heldout":
            continue
        file = f"shots/piece-{first:05d}.mp4"
        (folder / file).write_bytes(encode_video(frames, round(fps), "mp4"))
        items.append(Item(Path(file).stem, "shot", file, source, start, end, len(frames), fps, "train"))
    write_items(folder, items, {"name": "as-is", "of": film.name})


def best(scores: Scores, selected: frozenset[str], count: int) -> list[str]:
    """The clips with the highest mean rank on AXES, of those that are kept; ties by id."""
    ids = [one for one in scores.clip_ids if one in selected]
    rows = [index for index, one in enumerate(scores.clip_ids) if one in selected]
    ranks = [np.argsort(np.argsort(scores.of(axis)[rows], kind="stable"), kind="stable") for axis in AXES]
    order = np.argsort(-np.mean(ranks, axis=0), kind="stable")
    return sorted(ids[index] for index in order[:count])


def write_curated(out: Path, curated: Path) -> dict[str, int]:
    """Dataset folders of the kept clips and of the best of them; how many clips each has."""
    clips = read_table(curated / "clips.parquet", ClipRecord)
    trainable = read_tables(curated).kept - held_out(clips)
    selections = {"curated": trainable, "best": frozenset(best(load_scores(curated), frozenset(trainable), BEST))}
    for name, ids in selections.items():
        folder = out / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        items = [item_of(clip, curated.resolve(), folder.resolve(), "train") for clip in clips if clip.clip_id in ids]
        write_items(folder, items, {"name": name, "of": curated.name})
    return {name: len(ids) for name, ids in selections.items()}


def train(out: Path, networks: Path, arm: str, recipe: str, data: Path, settings: Sequence[str]) -> Path:
    """One training, in its arm's own folder of runs; its checkpoint folder."""
    runs = out / "runs" / arm
    (out / "cache").mkdir(parents=True, exist_ok=True)
    runs.mkdir(parents=True, exist_ok=True)
    shared = {"cache": out / "cache"} | {name: networks / name for name in ("mini-vae", "mini-image-encoder")}
    for name, target in shared.items():
        if not (runs / name).exists():
            (runs / name).symlink_to(target.resolve())
    checkpoint = runs / recipe / "checkpoint"
    if not checkpoint.exists():
        run_recipe(recipe, data, runs, list(settings), (runs / recipe / "state.pt").exists(), _say)
    return checkpoint


def checkpoints(out: Path, networks: Path, budget: Budget) -> dict[str, Path]:
    """The four trainings' checkpoint folders, by name."""
    figures = {}
    for arm in ARMS:
        overrides = [*FILM_ONLY, f"optim.iterations={budget.first}", f"window_until={budget.first}"]
        figures[arm] = train(out, networks, arm, FIRST, out / "data" / arm, overrides)
        overrides = [*FILM_ONLY, f"optim.iterations={budget.then}", f"window_until={budget.then}", "optim.warmup=10"]
        figures[f"{arm}, finetuned"] = train(out, networks, arm, THEN, out / "data" / "best", overrides)
    return figures


def _say(what: str, done: int, total: int) -> None:
    if not total or done in (1, total) or done % 50 == 0:
        print(f"{what} {done}/{total}" if total else what, file=sys.stderr, flush=True)


def main() -> None:
    """Train what is missing, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path)
    parser.add_argument("curated", type=Path)
    parser.add_argument("--networks", type=Path, default=Path("runs"), help="runs with mini-vae and mini-image-encoder")
    parser.add_argument("--starter", type=Path, default=Path("data/starter"), help="its held-out clips are measured on")
    parser.add_argument("--out", type=Path, default=Path("runs/curation-gain"))
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--finetune", type=int, default=60)
    parser.add_argument("--clips", type=int, default=30, help="held-out clips that are sampled")
    parser.add_argument("--picture", type=Path, help="where a sheet of samples goes, a PNG")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    write_as_is(options.out / "data" / "as-is", options.film)
    counts = write_curated(options.out, options.curated)
    folders = checkpoints(options.out, options.networks, Budget(options.iterations, options.finetune))
    figures, shown = measure(folders, options.starter, options.out / "samples", options.clips, _say)
    counts["as-is"] = len((options.out / "data" / "as-is" / "items.jsonl").read_text().splitlines())
    figures |= {"training_clips": counts, "iterations": options.iterations, "finetuning": options.finetune}
    if options.picture:
        options.picture.write_bytes(sheet(shown))
    print(json.dumps(figures, indent=2) if options.json else table(figures))


if __name__ == "__main__":
    run_main(main)
