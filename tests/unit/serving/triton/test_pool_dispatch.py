"""The choice of a server: pinned versions, room first, then the least work left."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from serving.triton.pool import Replica, choose_replica

PLACE = Replica("a:1", "mini", 1, "v1", left_s=0.0, in_flight=0, capacity=4)
PLACES = st.lists(
    st.builds(
        Replica,
        url=st.sampled_from(["a:1", "b:1", "c:1"]),
        name=st.just("mini"),
        number=st.integers(1, 3),
        version=st.sampled_from(["v1", "v2"]),
        left_s=st.floats(0, 100),
        in_flight=st.integers(0, 6),
        capacity=st.integers(1, 4),
    ),
    max_size=8,
    unique_by=lambda place: (place.url, place.number),
)


def test_the_least_work_left_wins() -> None:
    busy, idle = replace(PLACE, left_s=9.0), replace(PLACE, url="b:1", left_s=2.0, in_flight=3)
    assert choose_replica([busy, idle]) == idle


def test_a_full_server_comes_last() -> None:
    full, busy = replace(PLACE, in_flight=4), replace(PLACE, url="b:1", left_s=9.0)
    assert choose_replica([full, busy]) == busy
    assert choose_replica([full]) == full


def test_a_new_job_goes_to_its_server_s_newest_version() -> None:
    newer = replace(PLACE, number=2, version="v2")
    assert choose_replica([PLACE, newer]) == newer
    assert choose_replica([PLACE, newer], pinned="v1") == PLACE
    assert choose_replica([newer], pinned="v1") is None


@given(places=PLACES, pinned=st.none() | st.sampled_from(["v1", "v2"]))
def test_it_is_always_one_of_those_that_fit_and_none_is_better(places: list[Replica], pinned: str | None) -> None:
    fitting = [place for place in places if pinned in (None, place.version)]
    chosen = choose_replica(places, pinned)
    if chosen is None:
        assert not fitting
        return
    assert chosen in fitting
    assert not any(place.url == chosen.url and place.number > chosen.number for place in fitting)
    if chosen.in_flight >= chosen.capacity:
        heads = {
            url: max((p for p in fitting if p.url == url), key=lambda p: p.number)
            for url in ("a:1", "b:1", "c:1")
            if any(p.url == url for p in fitting)
        }
        assert all(head.in_flight >= head.capacity for head in heads.values())
