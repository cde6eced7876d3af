"""Orbits around rendered objects: multi-view's training and held-out data, made from nothing but meshes and a seed.

An object is three small meshes of a published package, joined and coloured at random; an orbit is 21 views of it from
one elevation, evenly round. Rendering is in software (pybullet's TinyRenderer), so no display or GPU is needed.

    manifest.json   the seed, the package the meshes come from and its licence; hash of items.jsonl
    items.jsonl     one line an orbit: id, object, elevation in degrees, file, SHA-256 of the file, split
    orbits/ID.png   the views side by side, [128, 21 * 128]

Held out: every eighth object. It is built of other meshes than those for training. A finished orbit is not made again.

Legend: T views, H, W pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from PIL import Image

from model.errors import DataError, MissingExtra
from model.media.video import Frames
from training.config import ProgressCallback
from training.data.excluded_clips import ExcludedClips
from training.data.frames import READING_ERRORS, Clip
from training.data.sources import sha256_of
from training.data.starter import Item

NAME = "stillmotion-orbits"
"""The dataset's, in its manifest."""
VIEWS, SIDE = 21, 128
OBJECT_STRIDE = 8
PARTS = 3
HELD_OUT_MESHES = 800
"""Meshes from this number on are in held-out objects only."""
MESHES = 1000
HELD_OUT_ELEVATIONS = (5.0, 25.0)
PACKAGE, LICENCE = "pybullet", "zlib"


@dataclass(frozen=True, slots=True)
class OrbitItem:
    """One orbit: `elevation` in degrees above the object's equator; `object` is its number."""

    id: str
    object: int
    elevation: float
    file: str
    sha256: str
    split: str


@dataclass(frozen=True, slots=True)
class Orbit:
    """An orbit and its views, [T, H, W, 3]."""

    item: OrbitItem
    views: Frames

    @property
    def clip(self) -> Clip:
        """As the latent cache takes it."""
        item = self.item
        source = f"object-{item.object}"
        return Clip(Item(item.id, "orbit", item.file, source, 0, 0, len(self.views), 7.0, item.split), self.views)


def split_of(number: int) -> str:
    """`train` or `heldout`, for the object of this number."""
    return "heldout" if number % OBJECT_STRIDE == OBJECT_STRIDE - 1 else "train"


def plan_orbits(objects: int, seed: int) -> list[OrbitItem]:
    """The orbits of the first `objects` objects: two elevations each, drawn for training, fixed where held out."""
    items: list[OrbitItem] = []
    for number in range(objects):
        split = split_of(number)
        drawn = np.random.default_rng([seed, number, 1]).uniform(0, 30, 2).round(1)
        for elevation in HELD_OUT_ELEVATIONS if split == "heldout" else drawn.tolist():
            name = f"object-{number:04d}-{elevation:04.1f}"
            items.append(OrbitItem(name, number, float(elevation), f"orbits/{name}.png", "", split))
    return items


def prepare(out: Path, objects: int, seed: int = 0, report: ProgressCallback = lambda *_: None) -> list[OrbitItem]:
    """Render the orbits of `objects` objects into `out`; returns them.

    Raises:
        DataError: `out` holds orbits of another seed.
        MissingExtra: pybullet is not installed.
    """
    manifest = out / "manifest.json"
    (out / "orbits").mkdir(parents=True, exist_ok=True)
    if manifest.exists() and json.loads(manifest.read_text()).get("seed") != seed:
        raise DataError(f"{out} holds orbits of another seed; name another folder")
    items: list[OrbitItem] = []
    plan = plan_orbits(objects, seed)
    with Studio(seed) as studio:
        for done, item in enumerate(plan):
            file = out / item.file
            if not file.exists():
                partial = file.with_suffix(".partial")
                Image.fromarray(np.concatenate(list(studio.orbit(item)), axis=1)).save(partial, format="PNG")
                partial.replace(file)
            items.append(dataclasses.replace(item, sha256=sha256_of(file)))
            report("rendering orbits", done + 1, len(plan))
        source = studio.source
    lines = "".join(json.dumps(asdict(item)) + "\n" for item in items)
    _write(out / "items.jsonl", lines)
    described = {
        "name": NAME,
        "seed": seed,
        "items_sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "split": f"every {OBJECT_STRIDE}th object held out; its meshes are numbers {HELD_OUT_MESHES} to {MESHES - 1}",
        "meshes": source,
        "licence": LICENCE,
    }
    _write(manifest, json.dumps(described, indent=2) + "\n")
    return items


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def load_orbits(folder: Path, split: str, excluded: ExcludedClips | None = None, side: int = SIDE) -> list[Orbit]:
    """The orbits of a split, each checked against its hash.

    Args:
        excluded: records orbits that cannot be read, which are then passed over.
        side: of the views, pixels; they are averaged down to it.

    Raises:
        DataError: not a folder of orbits, or a file was changed and nobody is to be told; or more are than may be; or
            a side that does not divide that of the rendered views.
    """
    if side < 1 or SIDE % side:
        raise DataError(f"orbits are {SIDE} x {SIDE} pixels; they cannot be averaged down to {side}")
    manifest, lines = folder / "manifest.json", folder / "items.jsonl"
    described = json.loads(manifest.read_text()) if manifest.exists() and lines.exists() else {}
    if described.get("name") != NAME:
        raise DataError(f"{folder} holds no orbits: make them with `stillmotion data multi-view --out {folder}`")
    text = lines.read_text()
    if described["items_sha256"] != hashlib.sha256(text.encode()).hexdigest():
        raise DataError(f"{lines} was changed after the dataset was made; prepare it again")
    items = [OrbitItem(**cast(dict[str, Any], json.loads(line))) for line in text.splitlines()]
    selected = [item for item in items if item.split == split]
    if excluded is None:
        return [Orbit(item, _views(folder, item, side)) for item in selected]
    orbits: list[Orbit] = []
    for item in selected:
        try:
            orbits.append(Orbit(item, _views(folder, item, side)))
        except READING_ERRORS as error:
            excluded.cannot_read(item.id, error)
    excluded.refuse_too_many(len(selected))
    return orbits


def _views(folder: Path, item: OrbitItem, side: int) -> Frames:
    file = folder / item.file
    if not file.exists() or sha256_of(file) != item.sha256:
        raise DataError(f"{file} is missing or not the one its dataset names; prepare it again")
    with Image.open(file) as opened:
        strip = np.asarray(opened.convert("RGB").reduce(opened.height // side))
    return np.stack(np.split(strip, strip.shape[1] // strip.shape[0], axis=1))


def need_pybullet() -> Any:
    """The renderer's package.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import pybullet
    except ImportError:
        raise MissingExtra("rendering objects", "multiview") from None
    return pybullet


PART_SIZE, SPREAD = 0.62, 0.2
DISTANCE, FIELD_OF_VIEW = 2.1, 35.0
LIGHT = {
    "lightDirection": [1.0, 1.0, 2.0],
    "lightAmbientCoeff": 0.55,
    "lightDiffuseCoeff": 0.55,
    "lightSpecularCoeff": 0.05,
}


class Studio:
    """A scene of one object at a time; a context manager, for its connection to the renderer.

    Args:
        seed: of every object.
    """

    def __init__(self, seed: int) -> None:
        self._bullet: Any = need_pybullet()
        import pybullet_data

        self._meshes = Path(pybullet_data.getDataPath()) / "random_urdfs"
        self._seed = seed
        self._shown: int | None = None
        self._client = -1

    @property
    def source(self) -> str:
        """Where the meshes come from."""
        return f"{PACKAGE} (API {self._bullet.getAPIVersion(self._client)}), pybullet_data/random_urdfs"

    def __enter__(self) -> Studio:
        """Connect."""
        self._client = self._bullet.connect(self._bullet.DIRECT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self._bullet.disconnect(self._client)

    def orbit(self, item: OrbitItem) -> Iterator[Frames]:
        """The views [H, W, 3] of an orbit, evenly round, from its first on."""
        if self._shown != item.object:
            self._show(item)
            self._shown = item.object
        for view in range(VIEWS):
            yield self._picture(360.0 * view / VIEWS, item.elevation)

    def _show(self, item: OrbitItem) -> None:
        bullet, client = self._bullet, self._client
        bullet.resetSimulation(physicsClientId=client)
        draw = np.random.default_rng([self._seed, item.object])
        meshes = (HELD_OUT_MESHES, MESHES) if item.split == "heldout" else (0, HELD_OUT_MESHES)
        for _ in range(PARTS):
            file = self._mesh(int(draw.integers(*meshes)))
            corners = _corners(file)
            size = PART_SIZE / float((corners.max(0) - corners.min(0)).max())
            middle = (corners.max(0) + corners.min(0)) / 2 * size
            shape = bullet.createVisualShape(
                bullet.GEOM_MESH,
                fileName=str(file),
                meshScale=[size] * 3,
                rgbaColor=[*draw.uniform(0.1, 0.95, 3).tolist(), 1.0],
                visualFramePosition=(-middle).tolist(),
                physicsClientId=client,
            )
            place = draw.uniform(-SPREAD, SPREAD, 3).tolist()
            bullet.createMultiBody(0, -1, shape, basePosition=place, physicsClientId=client)

    def _mesh(self, number: int) -> Path:
        return self._meshes / f"{number:03d}" / f"{number:03d}.obj"

    def _picture(self, azimuth: float, elevation: float) -> Frames:
        bullet = self._bullet
        place = bullet.computeViewMatrixFromYawPitchRoll([0, 0, 0], DISTANCE, azimuth, -elevation, 0, 2)
        lens = bullet.computeProjectionMatrixFOV(FIELD_OF_VIEW, 1.0, 0.1, 10.0)
        _, _, colours, _, _ = bullet.getCameraImage(
            SIDE, SIDE, place, lens, shadow=0, renderer=bullet.ER_TINY_RENDERER, physicsClientId=self._client, **LIGHT
        )
        picture: Frames = np.asarray(colours, np.uint8).reshape(SIDE, SIDE, 4)[..., :3]
        return picture


def _corners(file: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The vertices of an OBJ file, [N, 3]."""
    lines = [line.split()[1:4] for line in file.read_text().splitlines() if line.startswith("v ")]
    return np.array(lines, np.float64)
