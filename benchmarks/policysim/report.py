"""The tables and the picture of the simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.policysim.measures import LONG_S, SHORT_S, Measures
from benchmarks.policysim.trace import FLOOD_AT, HORIZON_S

Results = Mapping[int, Mapping[str, Measures]]
"""Devices, then scheduler."""

_COLOURS = ("#1f77b4", "#d62728", "#7f7f7f")


def main_table(results: Mapping[str, Measures]) -> str:
    """Everything, for one number of devices, as Markdown."""
    head = ("", *results)
    rows = [
        ("mean latency, s", [m.latency_s.mean() for m in results.values()]),
        ("p99 latency, s", [_p99(m.latency_s) for m in results.values()]),
        (f"p99 latency, short (< {SHORT_S:g} s alone), s", [_p99(_short(m)) for m in results.values()]),
        (f"p99 latency, long (> {LONG_S:g} s alone), s", [_p99(_long(m)) for m in results.values()]),
        ("mean slowdown", [m.slowdown.mean() for m in results.values()]),
        ("p99 slowdown", [_p99(m.slowdown) for m in results.values()]),
        ("worst tenant's mean slowdown", [m.worst_tenant for m in results.values()]),
        ("deadlines missed, %", [100 * m.missed.mean() for m in results.values()]),
        ("Jain's index of shares", [m.jain.mean() for m in results.values()]),
        ("flooding tenant's mean latency, s", [m.flood_s.mean() for m in results.values()]),
        ("mean latency of everybody, s", [_everybody(m).mean() for m in results.values()]),
    ]
    return _markdown(head, [(name, *(_number(value) for value in values)) for name, values in rows])


def scale_table(results: Results) -> str:
    """The main figures by number of devices, as Markdown."""
    rows = [
        (
            f"{devices:,}",
            scheduler,
            f"{measures.latency_s.size:,}",
            _number(measures.latency_s.mean()),
            _number(_p99(measures.latency_s)),
            _number(_p99(measures.slowdown)),
            _number(100 * measures.missed.mean()),
            _number(measures.jain.mean()),
        )
        for devices, by_scheduler in results.items()
        for scheduler, measures in by_scheduler.items()
    ]
    head = ("GPUs", "scheduler", "requests", "mean, s", "p99, s", "p99 slowdown", "missed, %", "Jain")
    return _markdown(head, rows)


def draw(results: Results, path: Path) -> None:
    """Latency over time, the distribution of slowdowns, and the same over the number of devices."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    largest = max(results)
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    over_time, spread, scale = figure.subplots(1, 3)
    _over_time(over_time, results[largest])
    _spread(spread, results[largest])
    for colour, scheduler in zip(_COLOURS, results[largest], strict=True):
        p99 = [_p99(by_scheduler[scheduler].slowdown) for by_scheduler in results.values()]
        scale.plot(range(len(p99)), p99, "o-", color=colour)
    scale.set_xticks(range(len(results)), [f"{devices:,}" for devices in results])
    scale.set(xlabel="GPUs", ylabel="p99 slowdown", title="99th percentile at every scale", ylim=(0, None))
    figure.legend(*over_time.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Requests of the polite tenants, {largest:,} simulated GPUs unless said otherwise", fontsize=10)
    figure.savefig(path, dpi=110)


def _over_time(axes: Axes, results: Mapping[str, Measures]) -> None:
    edges = np.arange(0.0, HORIZON_S + 1, 6.0)
    for colour, (scheduler, measures) in zip(_COLOURS, results.items(), strict=True):
        bins = np.digitize(measures.at_s, edges) - 1
        means = [measures.slowdown[bins == number].mean() for number in range(len(edges) - 1)]
        axes.plot(edges[:-1] + 3, means, color=colour, label=scheduler)
    axes.axvspan(*(part * HORIZON_S for part in FLOOD_AT), color="#f2c14e", alpha=0.4, lw=0, label="flood arrives")
    axes.set(xlabel="arrival, s", ylabel="mean slowdown", title="Who comes during and after a flood", ylim=(0, None))


def _spread(axes: Axes, results: Mapping[str, Measures]) -> None:
    for colour, measures in zip(_COLOURS, results.values(), strict=True):
        slowdown = np.sort(measures.slowdown)
        axes.plot(slowdown, 1 - np.arange(slowdown.size) / slowdown.size, color=colour)
    axes.set(xscale="log", yscale="log", ylim=(1e-3, 1), xlabel="slowdown (latency / latency alone)")
    axes.set(ylabel="requests slower than that", title="Distribution of slowdowns")


def _p99(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.99))


def _short(measures: Measures) -> np.ndarray:
    return measures.latency_s[measures.solo_s < SHORT_S]


def _long(measures: Measures) -> np.ndarray:
    return measures.latency_s[measures.solo_s > LONG_S]


def _everybody(measures: Measures) -> np.ndarray:
    return np.concatenate([measures.latency_s, measures.flood_s])


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
