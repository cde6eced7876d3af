"""The choice of the next group: pure, so tested on its properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.engine.policy import Candidate, choose

rows = st.lists(st.sampled_from("pqr"), max_size=8).flatmap(
    lambda keys: st.permutations([Candidate(f"job-{n}", key, n) for n, key in enumerate(keys)])
)


@given(rows, st.integers(1, 5))
def test_the_earliest_and_its_like_in_order_of_arrival(candidates: list[Candidate], largest: int) -> None:
    by_id = {candidate.job_id: candidate for candidate in candidates}
    chosen = [by_id[job_id] for job_id in choose(candidates, largest)]
    assert bool(chosen) == bool(candidates)
    if not candidates:
        return
    earliest = min(candidates, key=lambda candidate: candidate.arrival)
    alike = [candidate for candidate in candidates if candidate.key == earliest.key]
    assert chosen[0] == earliest
    assert len(chosen) == min(largest, len(alike))
    assert chosen == sorted(alike, key=lambda candidate: candidate.arrival)[: len(chosen)]


def test_rows_of_another_key_never_share_the_call() -> None:
    candidates = [Candidate("late", "p", 2), Candidate("first", "q", 0), Candidate("second", "p", 1)]
    assert choose(candidates, 4) == ("first",)
