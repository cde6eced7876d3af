"""The figures as a table, and as a section of RESULTS.md. What was not measured says so; nothing is estimated."""

from __future__ import annotations

from typing import Any

MISSING = "not yet measured"
SYSTEMS = {
    "diffusers-eager": "diffusers, eager",
    "diffusers-compiled": "diffusers, torch.compile",
    "ours": "ours, eager",
    "ours-compiled": "ours, compiled",
    "ours-graphed": "ours, compiled, CUDA graphs",
    "ours-fp8": "ours, compiled, `--fp8`",
    "ays": "ours, Align Your Steps, 10 steps",
    "reuse": "ours, features reused every 2nd step",
}
COLUMNS = (
    "system",
    "guided step, ms",
    "VAE decode, s",
    "mp4, s",
    "end to end, s",
    "against eager",
    "against compiled",
    "peak, GiB",
    "TFLOP/s",
    "share of ceiling",
)


def table(figures: dict[str, Any]) -> str:
    """One line a system, in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join([name, *_cells(figures, part)]) + " |" for part, name in SYSTEMS.items()]
    return "\n".join(lines)


def _cells(figures: dict[str, Any], part: str) -> list[str]:
    mine = figures.get(part, {})
    step, end = _at(mine, "step", "median_s"), _at(mine, "end_to_end", "median_s")
    tflop, ceiling = _at(figures, "flops", "tflop"), _at(figures, "ceiling", "tflops")
    rate = None if step is None or tflop is None else 2 * tflop / step
    peaks = [peak for piece in ("step", "decode", "end_to_end") if (peak := _at(mine, piece, "peak_gib")) is not None]
    times = [_ratio(_at(figures, f"diffusers-{kind}", "end_to_end", "median_s"), end) for kind in ("eager", "compiled")]
    return [
        _number(None if step is None else 1000 * step, 1),
        _number(_at(mine, "decode", "median_s"), 3),
        _number(_at(mine, "encode", "median_s"), 3),
        _number(end, 2),
        *(_number(times_, 2) for times_ in times),
        _number(max(peaks, default=None), 2),
        _number(rate, 1),
        _number(None if rate is None or not ceiling else 100 * rate / ceiling, 0, " %"),
    ]


def section(figures: dict[str, Any]) -> str:
    """What stands in RESULTS.md between the markers."""
    run = figures.get("run", {})
    where = f"{run['date']}, {run['device']}, {run['software']}" if run else MISSING
    lines = [
        "",
        "## Stable Video Diffusion XT on one GPU",
        "",
        "    python -m benchmarks.svd_xt_gpu --write",
        "",
        f"Date, device, versions: {where}.",
        "",
        "Random weights at the real size, 25 frames, 576x1024, 25 guided steps unless a line says otherwise, float16;",
        "medians after a warm-up; TFLOP counted on the unmodified network, so that a rate above its ceiling would be",
        "work left out. The ceiling is a large matrix product's rate in the same run.",
        "",
        table(figures),
        "",
        *_lists(figures),
    ]
    return "\n".join(lines)


def _lists(figures: dict[str, Any]) -> list[str]:
    equal = figures.get("equality", {})
    text = MISSING
    if "equal" in equal:
        text = (
            f"{'equal' if equal['equal'] else 'NOT EQUAL'} within the tolerance: float32 {equal['float32']:.1e}, "
            f"half precision {equal['ours_half']:.1e} (diffusers' own {equal['diffusers_half']:.1e}), "
            f"of the largest magnitude after {equal['steps']} steps"
        )
    lines = [f"- Latents of diffusers and ours, in the same run: {text}."]
    for axis in ("places", "frames"):
        points = figures.get("curve", {}).get(axis, {})
        listed = ", ".join(f"{count}: {1000 * one['median_s']:.1f} ms" for count, one in points.items()) or MISSING
        lines.append(f"- A call by {axis}: {listed}.")
    kernels = {
        name: one for name, one in figures.get("attention", {}).items() if isinstance(one, dict) and "median_s" in one
    }
    listed = ", ".join(f"{name} {1000 * one['median_s']:.2f} ms" for name, one in kernels.items()) or MISSING
    lines.append(f"- Attention kernels: {listed}.")
    failed = {part: one["error"] for part, one in figures.items() if isinstance(one, dict) and "error" in one}
    lines += [f"- {part} failed: {error['type']}: {error['message'].splitlines()[0]}" for part, error in failed.items()]
    return [*lines, ""]


def _at(figures: dict[str, Any], *keys: str) -> float | None:
    for key in keys:
        if not isinstance(figures, dict) or key not in figures:
            return None
        figures = figures[key]
    return None if figures is None else float(figures)  # type: ignore[arg-type]


def _ratio(theirs: float | None, mine: float | None) -> float | None:
    return None if theirs is None or mine is None else theirs / mine


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return MISSING if value is None else f"{value:.{digits}f}{unit}"
