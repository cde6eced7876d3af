"""The event parser against another project's encoder, however the stream is cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from sse_starlette import ServerSentEvent
from stillmotion._sse import EventParser, Message

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=20)
EVENTS = st.lists(st.tuples(TEXT.filter(bool), st.lists(TEXT, min_size=1, max_size=3).map("\n".join), TEXT), max_size=5)


def parse(stream: bytes, cuts: list[int]) -> list[Message]:
    parser, edges = EventParser(), sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [m for a, b in itertools.pairwise(edges) for m in parser.feed(stream[a:b])]


@given(EVENTS, st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(0, 10_000), max_size=30), st.booleans())
def test_any_cut_gives_the_events_that_were_sent(
    events: list[tuple[str, str, str]], sep: str, cuts: list[int], mark: bool
) -> None:
    stream = b"\xef\xbb\xbf" if mark else b""
    for event, data, number in events:
        stream += ServerSentEvent(data, event=event, id=number, sep=sep).encode()
        stream += f": a comment, to keep the line open{sep}{sep}".encode()
    got = parse(stream, cuts)
    # U+0085 and friends end no line here, though they do for str.splitlines.
    assert [(m.event, m.data) for m in got] == [(event, data) for event, data, _ in events]
    assert [m.id for m in got] == [number for *_, number in events]


def test_the_fields_rules() -> None:
    parser = EventParser()
    got = list(parser.feed(b"retry: 1500\ndata:no space\ndata:  two\nnonsense: 1\nid: 4\n\nevent: e\n\ndata\n\n"))
    assert got == [Message("message", "no space\n two", "4"), Message("message", "", "4")]
    assert parser.retry_s == 1.5
    assert list(parser.feed(b"retry: soon\nid: 5\0\ndata: x\n\ndata: never ended")) == [Message("message", "x", "4")]
    assert parser.retry_s == 1.5
