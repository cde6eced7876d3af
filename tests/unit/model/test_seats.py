"""Seats: never more at once than there are, in the order of arrival, and given back by an error too."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.seats import Seats, seats


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 8))
def test_never_more_than_there_are_and_in_order(count: int, callers: int) -> None:
    places, lock = Seats(count), threading.Lock()
    inside, most, order = 0, 0, []

    def come(number: int) -> None:
        nonlocal inside, most
        with places.one():
            with lock:
                inside += 1
                most = max(most, inside)
                order.append(number)
            time.sleep(0.002)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=come, args=(number,)) for number in range(callers)]
    for number, thread in enumerate(threads):
        thread.start()
        while places._came <= number:
            time.sleep(0.0001)
    for thread in threads:
        thread.join()
    assert most <= count
    assert sorted(order) == list(range(callers))
    # Those let in together may be noted in any order; nobody overtakes more than they.
    assert all(abs(place - number) < count for place, number in enumerate(order))


def test_an_error_gives_the_seat_back() -> None:
    places = Seats(1)
    with pytest.raises(ValueError, match="inside"), places.one():
        raise ValueError("inside")
    with places.one():
        pass
    assert seats(2) is seats(2)
