"""What becomes of a clip as it is extended: second by second, and at its seams.

    python -m benchmarks.extension OUT [--pictures A.jpg B.jpg] [--model mini-image-to-video] [--seconds 8] [--steps N]
                                       [--seed 7] [--write]

Each picture becomes a clip that is extended to --seconds. OUT gets a contact sheet of each (NAME.png) and the
figures (figures.json); the tables are printed, and --write puts them into RESULTS.md. Of each second:

    still     share of the pixels that are still the clip's first frame's, by flow (training.metrics.still_itself),
              of the second's last frame
    sharp     mean gradient of its frames, as a share of the first frame's
    flicker   mean jump of the whole frame's brightness from frame to frame, in levels of 255
    moves     mean difference of neighbouring frames, in levels of 255

A seam is the step from a window's picture to its first frame. Its difference stands beside the mean of the
steps inside the generated clip, which nothing has extended, and beside that clip's largest.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.entry import run_main
from benchmarks.results import write_section
from model.interpolation import Frames
from model.media.image import fit_picture, open_picture, to_png
from model.media.video import contact_sheet_png
from model.sources.source import find
from model.stages import Stages, plan_extension
from serving.engine.settings import EngineSettings
from serving.interpolation.local import generate_stages
from training.metrics.still_itself import still_itself
from training.metrics.temporal import flicker

WEB: Final = Path(__file__).resolve().parents[1] / "serving" / "web"
PICTURES: Final = (WEB / "example.jpg", WEB / "example-mountains.jpg")
MARKS: Final = ("<!-- extension begin -->", "<!-- extension end -->")
_LUMA: Final = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, slots=True)
class Second:
    """What one second of a clip is like."""

    still: float
    sharp: float
    flicker: float
    moves: float


@dataclass(frozen=True, slots=True)
class Seams:
    """Steps between frames, in levels of 255: at each seam, and inside the clip that nothing has extended."""

    seams: list[float]
    clip_mean: float
    clip_largest: float


def sharpness(frame: Frames) -> float:
    """Mean length of the brightness gradient of a frame [H, W, 3], in levels a pixel."""
    down, right = np.gradient(frame.astype(np.float64) @ _LUMA)
    return float(np.hypot(down, right).mean())


def steps(frames: Frames) -> list[float]:
    """Mean difference of each two neighbours, in levels of 255; [T, H, W, 3]."""
    return [float(np.abs(after.astype(float) - before).mean()) for before, after in pairwise(frames)]


def by_second(frames: Frames, fps: int) -> list[Second]:
    """The seconds of a clip [T, H, W, 3], the last one perhaps not whole.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    first, seconds = frames[0], []
    for begin in range(0, len(frames), fps):
        part = frames[begin : begin + fps]
        around = frames[max(begin - 1, 0) : begin + fps]  # the step into the second counts as its own
        sharp = float(np.mean([sharpness(frame) for frame in part])) / sharpness(first)
        moved = steps(around) or [0.0]
        level = flicker(around) if len(around) > 1 else 0.0
        seconds.append(Second(still_itself(first, part[-1]).share, sharp, level, float(np.mean(moved))))
    return seconds


def at_seams(frames: Frames, begin: int, window: int) -> Seams:
    """The seams of a clip whose first `begin` frames are generated and to which each window adds `window`."""
    moved = steps(frames)
    own = moved[: begin - 1]
    return Seams([moved[index] for index in range(begin - 1, len(moved), window)], float(np.mean(own)), max(own))


def measure(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Extend one picture's clip; writes its contact sheet."""
    entry = find(arguments.model, "float32")
    fields = {} if arguments.steps is None else {"num_inference_steps": arguments.steps}
    params = entry.resolve(fields, arguments.seed)
    wanted = round(arguments.seconds * params.fps)
    stage = plan_extension(entry, params, wanted)
    picture = to_png(fit_picture(open_picture(path.read_bytes()), *params.picture_fit))
    settings = EngineSettings(warm_up=False)
    generated = generate_stages(
        entry,
        params,
        (picture,),
        Stages(extend=stage),
        {"extend": entry},
        settings={"generate": settings, "extend": settings},
    )
    frames = generated.frames
    (arguments.out / f"{path.stem}.png").write_bytes(contact_sheet_png(frames))
    windows: Any = generated.completed.manifest["extend"]
    return {
        "picture": path.name,
        "frames": len(frames),
        "begin": stage.begin,
        "fps": params.fps,
        "seconds": [asdict(one) for one in by_second(frames, params.fps)],
        "seams": asdict(at_seams(frames, stage.begin, stage.params.num_frames - 1)),
        "drift": [window["drift"] for window in windows["windows"]],
    }


def table(clips: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """The figures as Markdown."""
    lines = ["## A clip extended to eight seconds", ""]
    begin, size = clips[0]["begin"], f" --steps {arguments.steps}" if arguments.steps else ""
    lines += [
        f"`python -m benchmarks.extension OUT --seconds {arguments.seconds:g}{size} --seed {arguments.seed}`, "
        f"{arguments.model}; what the columns are stands in the program. "
        f"The first {begin} frames are the unextended clip.",
        "",
    ]
    for clip in clips:
        seams = clip["seams"]
        lines += [f"{clip['picture']}, {clip['frames']} frames at {clip['fps']} fps:", ""]
        lines += ["| second | still | sharp | flicker | moves |", "|---|---|---|---|---|"]
        for index, one in enumerate(clip["seconds"]):
            lines.append(
                f"| {index + 1} | {one['still']:.1%} | {one['sharp']:.2f} | {one['flicker']:.2f} | {one['moves']:.2f} |"
            )
        steps_text = ", ".join(f"{one:.2f}" for one in seams["seams"])
        drift = ", ".join(f"{one['found']:.1f} -> {one['left']:.1f}" for one in clip["drift"])
        lines += [
            "",
            f"Seams {steps_text}; inside the unextended clip {seams['clip_mean']:.2f} on average, "
            f"{seams['clip_largest']:.2f} at most. Drift of the colours at each window's end, found and left: {drift}.",
            "",
        ]
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=Path, nargs="+", default=list(PICTURES))
    parser.add_argument("--model", default="mini-image-to-video")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    clips = [measure(arguments, path) for path in arguments.pictures]
    (arguments.out / "figures.json").write_text(json.dumps(clips, indent=2))
    text = table(clips, arguments)
    print(text)
    if arguments.write:
        write_section(*MARKS, text)


if __name__ == "__main__":
    run_main(main)
