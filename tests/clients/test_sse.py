"""Event streams as servers send them, cut anywhere."""

from __future__ import annotations

import pytest

from clients.demo.errors import RequestError
from clients.demo.sse import events

STREAM = (
    b': keep-alive\n\ndata: {"a": 1}\n\n: comment\n\nevent: x\r\ndata: {"b":\r\ndata: "\xc3\xa9\xe2\x80\xa8"}\r\n\r\n'
    b"data: [DONE]\n\n"
)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_stream_cut_anywhere_gives_the_same_events(size: int) -> None:
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert list(events(chunks)) == [{"a": 1}, {"b": "é\u2028"}]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b'data: {"a": 1}\n\n', "before it was complete"),
        (b"", "before it was complete"),
        (b'data: {"error": {"message": "no room", "code": 5}}\n\ndata: [DONE]\n\n', "broke off: no room"),
        (b'data: {"error": "odd"}\n\n', "broke off: odd"),
        (b"data: {oops\n\n", "not JSON"),
        (b"data: [1]\n\n", "else than an object"),
    ],
)
def test_a_broken_stream_is_an_error(stream: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        list(events([stream]))


def test_events_before_an_error_are_heard() -> None:
    stream = events([b'data: {"a": 1}\n\ndata: {"error": {"message": "late"}}\n\n'])
    assert next(stream) == {"a": 1}
    with pytest.raises(RequestError, match="late"):
        next(stream)
