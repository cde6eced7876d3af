"""The backoff's bounds, for any policy."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from stillmotion import RetryPolicy

POLICIES = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 12),
    first_s=st.floats(0.01, 2),
    longest_s=st.floats(2, 30),
    rng=st.integers().map(random.Random),
)


@given(POLICIES, st.integers(0, 20))
def test_waits_lie_between_half_and_the_whole_backoff(policy: RetryPolicy, attempt: int) -> None:
    wait = policy.delay(attempt)
    if attempt >= policy.max_retries:
        assert wait is None
    else:
        backoff = min(policy.longest_s, policy.first_s * 2**attempt)
        assert wait is not None
        assert backoff / 2 <= wait <= backoff


@given(POLICIES, st.floats(0, 60))
def test_never_sooner_than_the_service_asks(policy: RetryPolicy, asked: float) -> None:
    wait = policy.delay(0, asked)
    if policy.max_retries:
        assert wait is not None
        assert asked <= wait <= asked + policy.longest_s


def test_a_wait_beyond_patience_is_none() -> None:
    assert RetryPolicy(longest_retry_after_s=60).delay(0, 61) is None


def test_callers_who_failed_together_come_back_apart() -> None:
    waits = {RetryPolicy(rng=random.Random(seed)).delay(2) for seed in range(50)}
    assert len(waits) == 50
