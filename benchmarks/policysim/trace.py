"""Arrival traces: polite tenants whose requests come in bursts, and one tenant that floods. Every seed is fixed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from benchmarks.policysim.costs import LARGE, SMALL, Shape
from serving.engine.protocol import Priority

FLOOD = "flood"
TENANTS = 12
HORIZON_S = 180.0
FLOOD_AT = (0.3, 0.4)
"""When the flood arrives, as parts of the trace."""

_POLITE_LOAD, _FLOOD_LOAD = 0.65, 0.3
"""Parts of all devices' time over the trace; within a burst the polite tenants alone ask for more than there is."""

_CLASSES: tuple[Priority, ...] = ("high", "normal", "low")

_BURST, _BURSTS_EVERY_S, _BURST_S = 2.5, 60.0, 15.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace.

    Args:
        solo_s: how long it takes on an idle device.
        deadline_s: on the trace's clock, or None.
    """

    number: int
    tenant: str
    priority: Priority
    shape: Shape
    steps: int
    guided: bool
    at_s: float
    solo_s: float
    deadline_s: float | None

    @property
    def slots(self) -> int:
        """Of a denoiser call."""
        return 2 if self.guided else 1


def make_trace(devices: int, seed: int) -> list[Request]:
    """A trace for so many devices, by arrival."""
    rng = random.Random(seed)
    sample = [_draw(rng, "", 0.0).solo_s for _ in range(2000)]
    rate = devices / (sum(sample) / len(sample))
    requests = [_draw(rng, f"t{rng.randrange(TENANTS)}", at) for at in _bursty(rng, rate * _POLITE_LOAD)]
    start, end = (part * HORIZON_S for part in FLOOD_AT)
    for _ in range(round(rate * _FLOOD_LOAD * HORIZON_S)):
        requests.append(_draw(rng, FLOOD, rng.uniform(start, end)))
    requests.sort(key=lambda request: request.at_s)
    return [replace(request, number=number) for number, request in enumerate(requests)]


def _bursty(rng: random.Random, rate: float) -> list[float]:
    """Poisson arrivals at `rate` a second on average, with bursts of a higher rate, by thinning."""
    calm = rate * _BURSTS_EVERY_S / (_BURSTS_EVERY_S + (_BURST - 1) * _BURST_S)
    times: list[float] = []
    now = rng.expovariate(calm * _BURST)
    while now < HORIZON_S:
        if now % _BURSTS_EVERY_S < _BURST_S or rng.random() < 1 / _BURST:
            times.append(now)
        now += rng.expovariate(calm * _BURST)
    return times


def _draw(rng: random.Random, tenant: str, at_s: float) -> Request:
    """One request: a Pareto number of steps (4 to 100, mean about 10), half of them large, a third with a deadline."""
    shape = LARGE if rng.random() < 0.5 else SMALL
    steps = min(100, int(4 * rng.paretovariate(1.5)))
    guided = rng.random() < 0.8
    priority = rng.choices(_CLASSES, (1, 7, 2))[0]
    solo = shape.encode_s + steps * shape.call_s(2 if guided else 1) + shape.chunks * shape.chunk_s
    deadline = at_s + solo * rng.uniform(1.5, 8.0) if rng.random() < 1 / 3 else None
    return Request(0, tenant, priority, shape, steps, guided, at_s, solo, deadline)
