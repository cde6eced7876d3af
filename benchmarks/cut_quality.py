"""How well cuts are found, on footage whose cuts are known to the frame: `python -m benchmarks.cut_quality`.

Precision and recall of each level of the cascade and of the whole, beside PySceneDetect's two usual detectors in a
single pass, and TransNet V2 where --transnet asks for it. A hard cut counts as found within one frame; a transition,
where what was found overlaps it.
Then: how much of the shots' time clips lose when they end on keyframes, on any frame where a copy may end, and with
their edges encoded anew.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.entry import run_main
from training.curation.clips_plan import ClipRules, loss, plan, shots, timeline
from training.curation.cuts import CASCADE, Level, SourceScan, decide_cuts, scan, small_frames
from training.curation.probe import index_packets
from training.curation.records import Cut
from training.curation.synthetic_video import Truth, random_parts, random_scene, render, write_video

HEIGHT, WIDTH, FPS, GOP = 180, 320, 24, 96
SINGLE = {
    "ContentDetector(27)": Level("single", 0, "ContentDetector", (("threshold", 27.0), ("min_scene_len", 15)), 0),
    "AdaptiveDetector(3)": Level("single", 0, "AdaptiveDetector", (("adaptive_threshold", 3.0),), 0),
}
RULES = {
    "both ends on keyframes": ClipRules(1.0, 10.0, end_on_keyframes=True),
    "end on any clean frame": ClipRules(1.0, 10.0),
    "edges encoded anew": ClipRules(1.0, 10.0, max_lost_s=0.0),
}


@dataclass(frozen=True, slots=True)
class Film:
    """One piece of footage: the truth, what detectors saw of it, and its cuts by each of them."""

    truths: list[Truth]
    found: dict[str, list[tuple[int, int]]]
    lost: dict[str, tuple[float, float]]


def spans(cuts: Sequence[Cut]) -> list[tuple[int, int]]:
    return [(round(cut.start_s * FPS), round(cut.end_s * FPS)) for cut in cuts]


def proposals(scanned: SourceScan, level: Level) -> list[tuple[int, int]]:
    """What a level alone says: a cut between the two frames it compared, taken as its later frame."""
    return [(last, last) for one, _, last, _ in scanned.proposals if one == level]


def measured(seed: int, folder: Path, transnet: bool) -> Film:
    parts = random_parts(seed, lambda k, pace: random_scene(1000 * seed + k, HEIGHT, WIDTH, pace))
    frames, truths, _ = render(parts)
    path = folder / f"{seed}.mp4"
    write_video(path, frames, gop=GOP)
    scanned = scan(small_frames(path), (*CASCADE, *SINGLE.values()))
    cascade = SourceScan(scanned.thumbs, scanned.times_s, tuple(one for one in scanned.proposals if one[0] in CASCADE))
    cuts = decide_cuts(cascade, "film")
    found = {f"{level.name}: {level.description}": proposals(scanned, level) for level in CASCADE}
    found["the cascade"] = spans(cuts)
    found |= {f"single pass: {name}": proposals(scanned, level) for name, level in SINGLE.items()}
    if transnet:
        from training.curation.cuts_transnet import find_cuts_transnet

        found["TransNet V2"] = spans(find_cuts_transnet(path, "film"))
    return Film(truths, found, _losses(path, truths))


def _losses(path: Path, truths: Sequence[Truth]) -> dict[str, tuple[float, float]]:
    """Seconds kept and lost by each way to end clips, with cuts as they really are."""
    index = index_packets(path)
    cuts = [Cut("film", 0.0, t.start / FPS, t.end / FPS, t.kind, 1.0, "truth", "") for t in truths]
    out = {}
    for name, rules in RULES.items():
        line = timeline(index, end_on_keyframes=rules.end_on_keyframes)
        parts = shots(line, cuts)
        clip_losses = loss(line, parts, plan(line, parts, rules), rules)
        out[name] = (clip_losses.kept_s, clip_losses.snapped_s)
    return out


def matched(truths: Sequence[Truth], found: Sequence[tuple[int, int]]) -> Counter[str]:
    """How many truths of each kind were found, and how many finds are of no truth; each find counts once."""
    left = list(found)
    counts: Counter[str] = Counter({"false": 0})
    for truth in truths:
        counts[truth.kind] += 1
        reach = (truth.start - 1, max(truth.start, truth.end) + 1)
        hits = [one for one in left if one[0] <= reach[1] and one[1] >= reach[0]]
        if hits:
            counts[f"{truth.kind} found"] += 1
            # A transition that a detector reports several times is one find; the others are not held against it.
            left = [one for one in left if one not in hits]
    counts["false"] = len(left)
    return counts


def rows(films: Sequence[Film]) -> Iterator[str]:
    yield "| | hard cuts found | fades found | dissolves found | precision | recall | F1 |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name in films[0].found:
        total: Counter[str] = Counter()
        for film in films:
            total += matched(film.truths, film.found[name])
        kinds = ("hard", "fade", "dissolve")
        right, there = sum(total[f"{k} found"] for k in kinds), sum(total[k] for k in kinds)
        precision, recall = right / max(1, right + total["false"]), right / there
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        cells = [f"{total[f'{k} found']} of {total[k]}" for k in kinds]
        yield f"| {name} | {' | '.join(cells)} | {precision:.3f} | {recall:.3f} | {f1:.3f} |"


def loss_rows(films: Sequence[Film]) -> Iterator[str]:
    yield "| clips | in clips, s | lost to snapping, s | lost, % |"
    yield "| --- | --- | --- | --- |"
    for name in RULES:
        kept_s, lost = (float(np.sum([film.lost[name][k] for film in films])) for k in (0, 1))
        yield f"| {name} | {kept_s:.1f} | {lost:.1f} | {100 * lost / (kept_s + lost):.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--films", type=int, default=6, help="pieces of footage, of 8 hard cuts and 10 transitions each"
    )
    parser.add_argument("--transnet", action="store_true", help="measure TransNet V2 too (slow on a CPU)")
    parser.add_argument("--first-seed", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds = range(options.first_seed, options.first_seed + options.films)
        films = [measured(seed, Path(folder), options.transnet) for seed in seeds]
    print("\n".join([*rows(films), "", *loss_rows(films)]))


if __name__ == "__main__":
    run_main(main)
