"""Event streams as servers send them, cut anywhere. Streams that break off are in test_trouble.py."""

from __future__ import annotations

import pytest
from cairn_client.errors import ServerFailed
from cairn_client.sse import Decoder

STREAM = (
    b': keep-alive\n\ndata: {"a": 1}\n\n: comment\n\nevent: x\r\ndata: {"b":\r\ndata: "\xc3\xa9\xe2\x80\xa8"}\r\n\r\n'
    b'data: [DONE]\n\ndata: {"never": "heard"}\n\n'
)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_stream_cut_anywhere_gives_the_same_events(size: int) -> None:
    decoder = Decoder()
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert [event for chunk in chunks for event in decoder.feed(chunk)] == [{"a": 1}, {"b": "é\u2028"}]
    assert decoder.done


def test_events_before_an_error_are_heard() -> None:
    events = Decoder().feed(b'data: {"a": 1}\n\ndata: {"error": {"message": "late"}}\n\n')
    assert next(events) == {"a": 1}
    with pytest.raises(ServerFailed, match="late"):
        next(events)
