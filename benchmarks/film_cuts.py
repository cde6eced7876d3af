"""A curated film's cuts beside TransNet V2's: `python -m benchmarks.film_cuts FILM DATASET [--sheet FILE.png]`.

FILM is the file that `stillmotion curate run FILM --out DATASET` read. Hard cuts match one to one within a frame;
TransNet V2's are taken as the reference, which they are not: look at what differs. The picture has the frames on both
sides of each cut that only one of the two names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from benchmarks.entry import run_main
from model.media.video import contact_sheet_png
from training.curation.cuts_transnet import find_cuts_transnet
from training.curation.records import Cut
from training.curation.tables import read_table
from training.data.sources import sha256_of

SIZE = (288, 162)
MOST_SHOWN = 24


def hard_cuts(cuts: Sequence[Cut], fps: float) -> list[int]:
    """The first new frame of each."""
    return sorted(round(cut.time_s * fps) for cut in cuts if cut.kind == "hard")


def matched(mine: Sequence[int], theirs: Sequence[int], within: int = 1) -> list[tuple[int, int]]:
    """Pairs, each cut in one at most: both lists in order, so the earliest that fits is the best choice."""
    pairs, left = [], list(theirs)
    for one in mine:
        fits = next((other for other in left if abs(other - one) <= within), None)
        if fits is not None:
            left.remove(fits)
            pairs.append((one, fits))
    return pairs


def in_transitions(frames: Sequence[int], cuts: Sequence[Cut], fps: float) -> int:
    """How many lie in what the other calls a fade or dissolve (a frame of slack)."""
    spans = [(cut.start_s * fps - 1, cut.end_s * fps + 1) for cut in cuts if cut.kind != "hard"]
    return sum(any(start <= frame <= end for start, end in spans) for frame in frames)


def frames_at(film: Path, numbers: Sequence[int]) -> dict[int, np.ndarray]:
    """Small RGB frames by number."""
    missing, frames = set(numbers), {}
    with av.open(str(film)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in missing:
                frames[number] = frame.reformat(*SIZE, format="rgb24").to_ndarray()
            if len(frames) == len(missing):
                break
    return frames


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--sheet", type=Path, help="a picture of what differs")
    options = parser.parse_args()
    source = sha256_of(options.film)
    with av.open(str(options.film)) as container:
        fps = float(container.streams.video[0].average_rate or 24)
    ours = [cut for cut in read_table(options.dataset / "cuts.parquet", Cut) if cut.source == source]
    reference = find_cuts_transnet(options.film, source)
    mine, theirs = hard_cuts(ours, fps), hard_cuts(reference, fps)
    pairs = matched(mine, theirs)
    precision, recall = len(pairs) / max(1, len(mine)), len(pairs) / max(1, len(theirs))
    only = {
        "ours": sorted(set(mine) - {pair[0] for pair in pairs}),
        "theirs": sorted(set(theirs) - {pair[1] for pair in pairs}),
    }
    print(f"hard cuts: {len(mine)} of the cascade, {len(theirs)} of TransNet V2, {len(pairs)} within one frame")
    print(f"precision {precision:.3f}, recall {recall:.3f}, F1 {2 * len(pairs) / max(1, len(mine) + len(theirs)):.4f}")
    print(f"transitions: {len(ours) - len(mine)} of the cascade, {len(reference) - len(theirs)} of TransNet V2")
    print(
        f"only the cascade's: {only['ours']}; of those in TransNet's transitions: "
        f"{in_transitions(only['ours'], reference, fps)}"
    )
    print(
        f"only TransNet's: {only['theirs']}; of those in the cascade's transitions: "
        f"{in_transitions(only['theirs'], ours, fps)}"
    )
    if options.sheet:
        shown = [(frame, name) for name, frames in only.items() for frame in frames][:MOST_SHOWN]
        labels = [f"{frame + step} {name}" for frame, name in shown for step in (-1, 0)]
        pictures = frames_at(options.film, [frame + step for frame, _ in shown for step in (-1, 0)])
        stack = np.stack([pictures[frame + step] for frame, _ in shown for step in (-1, 0)])
        options.sheet.write_bytes(contact_sheet_png(stack, columns=4, labels=labels))


if __name__ == "__main__":
    run_main(main)
