"""Byte ranges against a reading of RFC 9110 written out here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.routes.content import Span, Unsatisfiable, matches, parse_range


@given(total=st.integers(0, 50), first=st.none() | st.integers(0, 60), last=st.none() | st.integers(0, 60))
def test_any_single_range(total: int, first: int | None, last: int | None) -> None:
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    data = bytes(range(total))
    if first is None and last is None:
        assert parse_range(header, total) is None
        return
    if first is not None and last is not None and last < first:
        assert parse_range(header, total) is None
        return
    expected = (
        data[max(0, total - (last or 0)) :] if first is None else data[first : None if last is None else last + 1]
    )
    if not expected:
        with pytest.raises(Unsatisfiable):
            parse_range(header, total)
        return
    span = parse_range(header, total)
    assert span is not None
    assert data[span.start : span.stop] == expected


@pytest.mark.parametrize(
    "header", [None, "", "bytes", "bytes=a-b", "bytes=1-2,3-4", "pages=1-2", "bytes=" + "9" * 40 + "-"]
)
def test_what_is_not_understood_is_ignored(header: str | None) -> None:
    assert parse_range(header, 10) is None


def test_headers() -> None:
    assert Span(2, 5).content_range(10) == "bytes 2-4/10"
    assert matches('"a", W/"b"', '"b"')
    assert not matches(None, '"a"')
    assert not matches('"c"', '"a"')
