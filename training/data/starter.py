"""The starter dataset: Big Buck Bunny cut into shots, and photographs, ready to train on.

Layout of the folder (`stillmotion data starter --out DIR`):

    manifest.json   sources with hash, licence and attribution; the split's rule; hash of items.jsonl
    items.jsonl     one line an item: id, kind (shot | photo), file, source hash, time range, frames, fps, split
    shots/ID.mp4    448x256 H.264, the film's own 24 fps;  photos/ID.png, short side 512

Each file is written under another name and moved into place, so an interrupted run is simply run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from PIL import Image, ImageOps

from model.errors import DataError, MissingExtra
from training.config import ProgressCallback
from training.data import sources
from training.data.excluded_clips import ExcludedClips
from training.data.shards import Member, is_curated, members
from training.data.split import Span, photo_split, shot_split

SHOT_HEIGHT, SHOT_WIDTH = 256, 448
PHOTO_SHORT_SIDE = 512
DETECTOR_THRESHOLD, DETECTOR_MIN_FRAMES = 27.0, 15
FILM_FRAMES = 14315

Frame = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class Item:
    """One shot or photograph of a dataset folder.

    Args:
        captions: of a curated clip, by captioner.
    """

    id: str
    kind: str
    file: str
    source: str
    start_s: float
    end_s: float
    num_frames: int
    fps: float
    split: str
    captions: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)

    @property
    def span(self) -> Span:
        """Where in its source it comes from."""
        return Span(self.source, self.start_s, self.end_s)


def item_to_json(item: Item) -> dict[str, Any]:
    """An item as a line of items.jsonl tells it; captions only where there are any."""
    fields = asdict(item)
    return fields if item.captions else {name: value for name, value in fields.items() if name != "captions"}


def _film_frames(path: Path, height: int, width: int) -> Iterator[Frame]:
    """Every frame of a 16:9 film, scaled and centre-cropped to height x width RGB."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            wide = 2 * round(height * frame.width / frame.height / 2)
            small = frame.reformat(width=wide, height=height, format="rgb24", interpolation="AREA")
            left = (wide - width) // 2
            yield np.ascontiguousarray(small.to_ndarray()[:, left : left + width])


def find_cuts(path: Path, report: ProgressCallback) -> list[int]:
    """The first frame of each shot but the first, by PySceneDetect's content detector."""
    try:
        from scenedetect import ContentDetector, FrameTimecode  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise MissingExtra("cutting film into shots", "train") from None
    detector = ContentDetector(threshold=DETECTOR_THRESHOLD, min_scene_len=DETECTOR_MIN_FRAMES)
    cuts: list[int] = []
    last = FrameTimecode(0, fps=24.0)
    for index, frame in enumerate(_film_frames(path, 90, 160)):
        last = FrameTimecode(index, fps=24.0)
        cuts += [cut.frame_num for cut in detector.process_frame(last, frame[..., ::-1])]
        if index % 240 == 0:
            report("finding cuts", index, FILM_FRAMES)
    cuts += [cut.frame_num for cut in detector.post_process(last)]
    return sorted(set(cuts))


def _write_shot(frames: list[Frame], path: Path) -> None:
    partial = path.with_name(path.stem + ".partial.mp4")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(24), options={"crf": "12", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = SHOT_WIDTH, SHOT_HEIGHT, "yuv420p"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    partial.replace(path)


def _prepare_film(out: Path, report: ProgressCallback) -> list[Item]:
    film = sources.film_path()
    cuts_file = out / "cuts.json"
    if not cuts_file.exists():
        _atomic_text(cuts_file, json.dumps(find_cuts(film, report)))
    cuts = cast(list[int], json.loads(cuts_file.read_text()))
    edges = [0, *cuts, FILM_FRAMES]
    items: list[Item] = []
    for index, (first, last) in enumerate(pairwise(edges)):
        name = f"shot-{index:03d}"
        split = shot_split(index, first / 24)
        span = (first / 24, last / 24)
        items.append(Item(name, "shot", f"shots/{name}.mp4", sources.FILM_SHA256, *span, last - first, 24.0, split))
    (out / "shots").mkdir(exist_ok=True)
    missing = {edge: item for edge, item in zip(edges, items, strict=False) if not (out / item.file).exists()}
    if missing:
        _cut_film(film, edges, missing, out, report)
    return items


def _cut_film(film: Path, edges: list[int], missing: dict[int, Item], out: Path, report: ProgressCallback) -> None:
    starts = set(edges)
    current: list[Frame] = []
    first = 0
    for index, frame in enumerate(_film_frames(film, SHOT_HEIGHT, SHOT_WIDTH)):
        if index in starts and current:
            _write_shot(current, out / missing[first].file)
            current = []
        if index in starts:
            first = index
        if first in missing:
            current.append(frame)
        if index % 240 == 0:
            report("cutting shots", index, FILM_FRAMES)
    if current:
        _write_shot(current, out / missing[first].file)


def _prepare_photos(out: Path, report: ProgressCallback) -> list[Item]:
    """Photographs of the wallpaper packages; none, and a line that says so, where apt-get is missing."""
    paths: list[Path] = []
    for package in (sources.PHOTOS_16, sources.PHOTOS_20):
        try:
            paths += sources.photo_paths(package)
        except DataError as error:
            report(f"photographs left out: {error.message}", 0, 0)
    (out / "photos").mkdir(exist_ok=True)
    items: list[Item] = []
    for index, path in enumerate(sorted(paths, key=lambda one: one.name)):
        name = path.stem.lower()
        file = out / "photos" / f"{name}.png"
        if not file.exists():
            with Image.open(path) as opened:
                picture = ImageOps.exif_transpose(opened).convert("RGB")
            scale = PHOTO_SHORT_SIDE / min(picture.size)
            size = (round(picture.width * scale), round(picture.height * scale))
            partial = file.with_suffix(".partial")
            picture.resize(size, Image.Resampling.LANCZOS).save(partial, format="PNG")
            partial.replace(file)
        items.append(
            Item(name, "photo", f"photos/{name}.png", sources.sha256_of(path), 0, 0, 1, 0.0, photo_split(index))
        )
        report("photographs", index + 1, len(paths))
    return items


def _atomic_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def prepare(out: Path, report: ProgressCallback = lambda *_: None) -> list[Item]:
    """Fetch and prepare the starter dataset in `out`; a finished part is not made again.

    Args:
        report: called with (what, done, total) as it goes on.

    Raises:
        DataError: a source cannot be fetched, or is not the one pinned.
    """
    out.mkdir(parents=True, exist_ok=True)
    items = _prepare_film(out, report) + _prepare_photos(out, report)
    lines = "".join(json.dumps(item_to_json(item)) + "\n" for item in items)
    _atomic_text(out / "items.jsonl", lines)
    used = (sources.FILM, sources.PHOTOS_16, sources.PHOTOS_20)
    manifest = {
        "name": "stillmotion-starter",
        "items_sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "split": "every 8th shot within 0-487 s and every 3rd photograph held out; shots from 487 s on are credits",
        "cuts": f"PySceneDetect ContentDetector({DETECTOR_THRESHOLD}, min_scene_len={DETECTOR_MIN_FRAMES}) at 160x90",
        "sources": [asdict(package) for package in used],
    }
    _atomic_text(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return items


def load_items(folder: Path, excluded: ExcludedClips | None = None) -> list[Item]:
    """The items of a prepared dataset folder, the starter dataset's or a curated one's.

    Args:
        excluded: records a curated dataset's shards and clips that cannot be read, which are then passed over.

    Raises:
        DataError: not a dataset folder, or items.jsonl is not the one its manifest names; or a shard is not, or a clip
            cannot be read, and nobody is to be told.
    """
    if is_curated(folder):
        return [item for member in members(folder, excluded) if (item := _clip_item(member, excluded)) is not None]
    manifest, lines = folder / "manifest.json", folder / "items.jsonl"
    if not manifest.exists() or not lines.exists():
        raise DataError(f"{folder} is no dataset: make one with `stillmotion data starter --out {folder}`")
    text = lines.read_text()
    if json.loads(manifest.read_text())["items_sha256"] != hashlib.sha256(text.encode()).hexdigest():
        raise DataError(f"{lines} was changed after the dataset was made; prepare it again")
    return [Item(**json.loads(line)) for line in text.splitlines()]


def _clip_item(member: Member, excluded: ExcludedClips | None) -> Item | None:
    fields = member.fields
    try:
        span = (fields["source"], float(fields["start_s"]), float(fields["end_s"]))
        shot = (fields["clip_id"], "shot", member.file, *span, int(fields["frames"]), member.fps, fields["split"])
        return Item(*shot, dict(fields.get("captions", {})))
    except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        if excluded is None:
            raise DataError(f"{member.file} has an incomplete description ({error!r})") from error
        excluded.cannot_read(member.file, f"its JSON is incomplete: {error!r}", unseen=True)
        return None
