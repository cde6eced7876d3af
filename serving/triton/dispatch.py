"""Which server gets a job: the one that should be done with all it has first. Pure, and no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A version of a model on a server that takes work.

    Args:
        url: the server's.
        name, number: the model, and the version's folder in the repository.
        version: of the checkpoint, as manifests name it.
        left_s: seconds of work the server still has, everybody's.
        in_flight, capacity: requests it has of us, and takes at once.
    """

    url: str
    name: str
    number: int
    version: str
    left_s: float
    in_flight: int
    capacity: int


def choose(places: Iterable[Place], pinned: str | None = None) -> Place | None:
    """The place for a new job; None where there is none.

    A job that goes on from a stored state is `pinned` to the checkpoint's version that made it. Any other goes to the
    newest version of its server. Of the servers with room the one with the least work left comes first, then the one
    with the fewest requests; only where none has room, one of the full.
    """
    fitting = [place for place in places if pinned in (None, place.version)]
    newest = {url: max(place.number for place in fitting if place.url == url) for url in {one.url for one in fitting}}
    able = [place for place in fitting if place.number == newest[place.url]]
    return min(
        able,
        key=lambda place: (place.in_flight >= place.capacity, place.left_s, place.in_flight, place.url),
        default=None,
    )
