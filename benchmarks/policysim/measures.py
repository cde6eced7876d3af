"""What is measured of a served trace: latency, deadlines, and fairness between tenants that wait at the same time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.policysim.devices import WINDOW_S, Outcome
from benchmarks.policysim.trace import FLOOD, Request

SHORT_S, LONG_S = 4.0, 20.0
"""Requests of less and of more seconds than these on an idle device are the short and the long ones."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one trace and one scheduler. All but the last two are of the polite tenants; the arrays are by request.

    Args:
        at_s, latency_s, solo_s: arrival, latency, and latency on an idle device.
        missed: of requests with a deadline, whether it was missed.
        worst_tenant: the largest mean slowdown (latency over solo) of any tenant.
        flood_s: latency of each of the flooding tenant's requests.
        jain: Jain's index of the seconds each tenant got, where several waited for one device through a whole window.
    """

    at_s: np.ndarray
    latency_s: np.ndarray
    solo_s: np.ndarray
    missed: np.ndarray
    worst_tenant: float
    flood_s: np.ndarray
    jain: np.ndarray

    @property
    def slowdown(self) -> np.ndarray:
        """Latency over what it would be on an idle device."""
        slowdown: np.ndarray = self.latency_s / self.solo_s
        return slowdown


def measure(trace: Sequence[Request], outcome: Outcome) -> Measures:
    """The measures of one trace."""
    finished = np.array(outcome.finished_s)
    at, solo = (np.array([getattr(request, name) for request in trace]) for name in ("at_s", "solo_s"))
    tenant = np.array([request.tenant for request in trace])
    deadline = np.array([np.nan if request.deadline_s is None else request.deadline_s for request in trace])
    polite, due = tenant != FLOOD, ~np.isnan(deadline)
    latency = finished - at
    slowdown = latency / solo
    return Measures(
        at[polite],
        latency[polite],
        solo[polite],
        (finished > deadline)[polite & due],
        max(float(slowdown[tenant == name].mean()) for name in set(tenant[polite])),
        latency[~polite],
        jain(trace, outcome),
    )


def jain(trace: Sequence[Request], outcome: Outcome) -> np.ndarray:
    """Of each window of each device through which requests of at least two tenants waited: (sum x)^2 / (n sum x^2)."""
    waiting: dict[tuple[int, int], set[str]] = defaultdict(set)
    for request in trace:
        first = int(-(-request.at_s // WINDOW_S))
        for window in range(first, int(outcome.finished_s[request.number] // WINDOW_S)):
            waiting[outcome.device[request.number], window].add(request.tenant)
    indices: list[float] = []
    for site, tenants in waiting.items():
        seconds = np.array([outcome.service[site][tenant] for tenant in tenants])
        if len(tenants) > 1:
            indices.append(float(seconds.sum() ** 2 / (len(tenants) * (seconds**2).sum())) if seconds.any() else 0.0)
    return np.array(indices)


def pooled(runs: Sequence[Measures]) -> Measures:
    """Several traces as one; the worst tenant is the worst of any."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(run, name) for run in runs])

    return Measures(
        joined("at_s"),
        joined("latency_s"),
        joined("solo_s"),
        joined("missed"),
        max(run.worst_tenant for run in runs),
        joined("flood_s"),
        joined("jain"),
    )
