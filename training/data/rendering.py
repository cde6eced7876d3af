"""Objects put together from meshes, and pictures of them: pybullet's software renderer.

Legend: T views, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from training.data.orbits import (
    HELD_OUT_MESHES,
    MESHES,
    PACKAGE,
    PARTS,
    SIDE,
    VIEWS,
    OrbitItem,
    Pixels,
    need_pybullet,
)

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

    def orbit(self, item: OrbitItem) -> Iterator[Pixels]:
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

    def _picture(self, azimuth: float, elevation: float) -> Pixels:
        bullet = self._bullet
        place = bullet.computeViewMatrixFromYawPitchRoll([0, 0, 0], DISTANCE, azimuth, -elevation, 0, 2)
        lens = bullet.computeProjectionMatrixFOV(FIELD_OF_VIEW, 1.0, 0.1, 10.0)
        _, _, colours, _, _ = bullet.getCameraImage(
            SIDE, SIDE, place, lens, shadow=0, renderer=bullet.ER_TINY_RENDERER, physicsClientId=self._client, **LIGHT
        )
        picture: Pixels = np.asarray(colours, np.uint8).reshape(SIDE, SIDE, 4)[..., :3]
        return picture


def _corners(file: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The vertices of an OBJ file, [N, 3]."""
    lines = [line.split()[1:4] for line in file.read_text().splitlines() if line.startswith("v ")]
    return np.array(lines, np.float64)
