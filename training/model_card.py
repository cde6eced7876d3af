"""The model card: data, licences, recipes, curves and measured figures, written from what the runs recorded.

What only a person can say of a checkpoint (a title, its limits, how its runs went) stands in its folder's card.toml.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from model.catalog import FIGURES, OPTIONS, ModelEntry
from model.tasks import TASKS
from training.data import sources
from training.data.orbits import LICENCE, NAME, PACKAGE
from training.data.photographs import GCOMPRIS, MVTB, ONE_IN, PHOTOGRAPHS
from training.data.shards import CURATED
from training.overrides import completed
from training.recipes import RECIPES

CURVE = "training-curve.png"
PROSE = "card.toml"

_HELD_OUT = {
    "film": "Held out from everything: every eighth shot within 0-487 s of the film, and every third photograph, by "
    "name.",
    "orbits": "Of the rendered objects every eighth is held out; it is built of meshes that no other object has.",
}


def plot_curves(runs: dict[str, Path], path: Path) -> None:
    """Loss against iteration for each run, one panel a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(runs), figsize=(4 * len(runs), 3), squeeze=False)
    for panel, (name, folder) in zip(panels[0], runs.items(), strict=True):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
        panel.plot(steps, losses, color="0.75", linewidth=0.8)
        panel.plot(steps, _smoothed(losses), color="tab:blue")
        panel.set(title=name, xlabel="iteration", ylabel="loss", yscale="log")
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _smoothed(values: list[float], keep: float = 0.9) -> list[float]:
    out: list[float] = []
    for value in values:
        out.append(value if not out else keep * out[-1] + (1 - keep) * value)
    return out


def write_card(entry: ModelEntry, figures: dict[str, Any]) -> Path:
    """Write metrics.json and README.md into the checkpoint's folder.

    Args:
        figures: what training.evaluate.evaluate returned.
    """
    (entry.path / FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
    sidecar = cast(dict[str, Any], json.loads((entry.path / "stillmotion.json").read_text()))
    prose = _prose(entry.path / PROSE)
    moved = "photographs" in map(_data, sidecar.get("runs", {}).values())
    used = (sources.FILM, sources.PHOTOS_16, sources.PHOTOS_20, *((GCOMPRIS, MVTB) if moved else ()))
    held_out = _HELD_OUT["film"] + (f" Of the other photographs, one in {ONE_IN}, by its content." if moved else "")
    orbits = entry.task.dataset == ORBITS
    parts = [
        f"# {entry.name}",
        prose.get("title", entry.task.name),
        "Weights: Apache-2.0 code, trained on the openly licensed works below; keep their attribution.",
        "## Figures",
        f"From `stillmotion eval {entry.name} --data data/{_held_out(entry)}{_limit(figures)} --card`, on held-out "
        "data only.\n"
        f"Protocol {figures['protocol_hash']}: figures with another one do not compare.",
        f"Settings: {json.dumps(figures['settings'])}. How each is taken: `protocol` in {FIGURES}.",
        _figure_table(figures["figures"]),
        *_costs(entry.path / OPTIONS),
        "## Limits",
        prose.get("limits", f"Not written down yet: {PROSE} in the checkpoint's folder is the place."),
        "## Data",
        "\n".join([f"- {p.attribution}. {p.licence}. From the package `{p.name}`." for p in used] + _rendered(orbits)),
        "\n".join([held_out, _HELD_OUT["orbits"]] if orbits else [held_out]),
        "## Training",
        f"![training curves]({CURVE})",
        "```\n" + commands(sidecar.get("runs", {})) + "\n```",
        prose.get("history", "Seed, learning rates and all else are in the recipes; as run:"),
        "```json\n" + json.dumps(sidecar.get("runs", {}), indent=1) + "\n```",
        "The image encoder is a small CLIP-style tower of our own, trained contrastively on measured attribute "
        "captions and on frames of the same shot. It is not OpenAI's CLIP.",
        "## Motion buckets",
        f"`motion_bucket_id` follows docs/motion.md with {sidecar.get('motion_map')}.",
    ]
    path = entry.path / "README.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def _prose(path: Path) -> dict[str, str]:
    """`title`, `limits` and `history`, as far as they are written."""
    return {name: str(text) for name, text in tomllib.loads(path.read_text()).items()} if path.exists() else {}


def _costs(path: Path) -> list[str]:
    """The section of options that cost quality, where `python -m benchmarks.one_video --json` measured them."""
    if not path.exists():
        return []
    fields = json.loads(path.read_text())
    rows = [
        f"| {row['option']} | {row['against']} | {row['times_faster']:.2f} | {row['worst_psnr_db']:.1f} | "
        f"{row['median_psnr_db']:.1f} |"
        for row in fields["costly"]
    ]
    head = ["| option | against | times faster | worst PSNR, dB | median |", "|---|---|---|---|---|"]
    said = (
        f"Off by default. From `python -m benchmarks.one_video --json FILE`, {fields['pictures']} pictures, on a CPU."
    )
    return ["## What options cost", said, "\n".join(head + rows)]


ORBITS = "multi-view"
"""The dataset of rendered orbits, by the name of its folder."""


def _held_out(entry: ModelEntry) -> str:
    return entry.task.dataset


def _limit(figures: dict[str, Any]) -> str:
    limit = figures["settings"]["limit"]
    return "" if limit is None else f" --limit {limit}"


def _rendered(orbits: bool) -> list[str]:
    return [f"- Rendered orbits of random objects, of meshes of the package `{PACKAGE}`. {LICENCE}."] if orbits else []


_DATA = {
    "starter": "stillmotion data starter --out data/starter",
    "photographs": "stillmotion data photographs --out data/photographs",
    "multi-view": "stillmotion data multi-view --out data/multi-view",
    "film": (
        "stillmotion data film --out data/bbb.mp4\n"
        "stillmotion curate run data/bbb.mp4 --out data/film --min-length 0.5 --max-lost 0.1"
    ),
}
"""What makes each dataset folder that the mini recipes train on, by its name."""


def _data(run: dict[str, Any]) -> str:
    name = run.get("data", {}).get("name")
    task = run["config"].get("task")
    if name == NAME or (task is not None and TASKS[task].dataset == ORBITS):
        return ORBITS
    return {CURATED: "film", PHOTOGRAPHS: "photographs"}.get(name, "starter")


def commands(runs: dict[str, Any]) -> str:
    """From nothing to the checkpoint: the data, and every run it stands on, in order."""
    folders = {run: _data(fields) for run, fields in runs.items()}
    lines = [_DATA[name] for name in dict.fromkeys(("starter", *folders.values()))]
    for run, name in folders.items():
        changed = "".join(f" --set {setting}" for setting in _settings(run, runs[run]["config"]))
        lines.append(f"stillmotion train {run} --data data/{name} --out runs{changed}")
    return "\n".join(lines)


def _settings(run: str, config: dict[str, Any]) -> list[str]:
    """What a run's config has otherwise than the recipe of its name, as `--set` takes it."""
    if run not in RECIPES or not config.keys() > {"optim"}:
        return []
    recipe = RECIPES[run]()
    ours, its = (
        dict(_leaves(json.loads(json.dumps(values))))
        for values in (dataclasses.asdict(recipe), completed(recipe, config))
    )
    return [
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in its.items()
        if key in ours and value != ours[key]
    ]


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _figure_table(figures: dict[str, Any]) -> str:
    rows = ["| figure | value |", "|---|---|"]
    rows += [f"| {name} | {text} |" for name, text in flatten(figures)]
    return "\n".join(rows)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested figures as (path, text) rows."""
    if isinstance(value, dict):
        return [
            row for key, part in value.items() for row in flatten(part, f"{prefix} / {key}" if prefix else str(key))
        ]
    if isinstance(value, float):
        return [(prefix, f"{value:.4g}")]
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value))]
    return [(prefix, str(value))]
