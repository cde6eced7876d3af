"""Checkpoints without weights, and a manifest with every kind of bad row that we know of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from model.catalog import ModelEntry
from model.tasks import TASKS
from serving.offline.rows import RowContext
from tests.support.fakes import model_entry

FRAMES = {"image-to-video": 4, "text-to-video": 4, "frame-interpolation": 5, "multi-view": 21}


def entry(task: str = "image-to-video", name: str | None = None, version: str = "0123456789ab") -> ModelEntry:
    """A checkpoint's description, of the task's own clip length."""
    return model_entry(task, name=name or task, version=version, num_frames=(FRAMES[task],))


def reading(base: str = "", **defaults: Any) -> RowContext:
    """With a checkpoint for every task."""
    return RowContext(tuple(entry(task) for task in TASKS), defaults, base)


def stills(folder: Path) -> None:
    """Two good pictures and what is none: a.jpg, b.png, half.jpg, text.jpg, empty.png, two.gif, small.png, line.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 40).convert("RGB")
    picture.save(folder / "a.jpg", quality=95)
    picture.rotate(180).save(folder / "b.png")
    whole = (folder / "a.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no picture at all")
    (folder / "empty.png").write_bytes(b"")
    picture.save(folder / "two.gif", save_all=True, append_images=[picture.rotate(90)])
    picture.resize((4, 4)).save(folder / "small.png")
    (folder / "line.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'></svg>")


GOOD: dict[str, Any] = {"image": "a.jpg", "num_inference_steps": 2}

BAD_ROWS: list[tuple[str, str]] = [
    ("{not json", ""),
    ("[1, 2]", ""),
    (json.dumps({**GOOD, "colour": "red"}), "colour"),
    (json.dumps({**GOOD, "fps": "seven"}), "fps"),
    (json.dumps({**GOOD, "fps": 1000}), "fps"),
    (json.dumps({**GOOD, "motion_bucket_id": 0}), "motion_bucket_id"),
    (json.dumps({**GOOD, "width": 33}), "width"),
    (json.dumps({**GOOD, "num_frames": 3}), "num_frames"),
    (json.dumps({**GOOD, "seed": -1}), "seed"),
    (json.dumps({**GOOD, "solver": "magic"}), "solver"),
    (json.dumps({**GOOD, "model": "unheard-of"}), "model"),
    (json.dumps({**GOOD, "task": "telepathy"}), "task"),
    (json.dumps({"num_inference_steps": 2}), "image"),
    (json.dumps({**GOOD, "image": "none.jpg"}), "image"),
    (json.dumps({**GOOD, "image": "half.jpg"}), "image"),
    (json.dumps({**GOOD, "image": "text.jpg"}), "image"),
    (json.dumps({**GOOD, "image": "two.gif"}), "image"),
    (json.dumps({**GOOD, "prompt": "not of this task"}), "prompt"),
    (json.dumps({"task": "text-to-video", "prompt": "  "}), "prompt"),
    (json.dumps({"task": "frame-interpolation", "image": "a.jpg", "last_image": "small.png"}), "last_image"),
    (json.dumps({**GOOD, "output_format": "avi"}), "output_format"),
    (json.dumps({**GOOD, "priority": "high"}), "priority"),
    (json.dumps({**GOOD, "reuse": True}), "reuse"),
    (json.dumps({**GOOD, "image": {"upload": f"upload_{'0' * 64}"}}), "image.upload"),
    (json.dumps({**GOOD, "id": "../up"}), "id"),
    (json.dumps({**GOOD, "id": "twice", "seed": 2}), "id"),
    (json.dumps({**GOOD, "metadata": {"a": 1}}), "metadata.a"),
    (json.dumps({**GOOD, "max_guidance_scale": 1e9}), "max_guidance_scale"),
    (json.dumps({**GOOD, "webhook": {"url": "https://example.com"}}), "webhook"),
]
"""A line, and the column that is at fault. Before them a good row called `twice` comes."""


def write_bad_manifest(path: Path) -> int:
    """A good row, every bad one, and a good row; how many rows."""
    first, last = json.dumps({**GOOD, "id": "twice", "seed": 1}), json.dumps({**GOOD, "id": "last", "seed": 3})
    path.write_text("\n".join([first, *(line for line, _ in BAD_ROWS), last]) + "\n")
    return len(BAD_ROWS) + 2
