"""Per cent: from 0 to 99 while a job runs, and never back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.jobs.runner import percent


@given(total=st.integers(1, 200), frames=st.integers(1, 128))
def test_a_whole_job_only_rises(total: int, frames: int) -> None:
    told = [percent("queued"), percent("encode"), percent("denoise")]
    told += [percent("denoise", step, total) for step in range(1, total + 1)]
    told += (
        [percent("decode")] + [percent("decode", frame, frames) for frame in range(1, frames + 1)] + [percent("mux")]
    )
    assert told == sorted(told)
    assert told[0] == 0
    assert told[-1] < 100


def test_odd_counts_stay_within_their_phase() -> None:
    assert percent("denoise", 9, 4) == percent("denoise", 4, 4)
    assert percent("denoise", -1, 4) == percent("denoise") == percent("denoise", 1, 0)
    with pytest.raises(KeyError):
        percent("lunch")


@given(total=st.integers(1, 200), pairs=st.integers(1, 127), first=st.floats(0, 1))
def test_a_chained_job_only_rises_and_fills_the_same_scale(total: int, pairs: int, first: float) -> None:
    told = [percent(phase, done, total, first) for phase in ("encode", "denoise", "decode") for done in (0, total)]
    told += [percent("interpolate", step, pairs, first) for step in range(pairs + 1)]
    told += [percent("mux", first=first)]
    assert told == sorted(told)
    assert 0 <= told[0] <= told[-1] < 100
    assert percent("interpolate", pairs, pairs, first) == percent("mux", first=first) == percent("mux")
