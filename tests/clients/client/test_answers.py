"""Chats and completions by the client, in both its forms, against the real server and the official client."""

from __future__ import annotations

import openai
import pytest
from cairn_client import (
    BadRequest,
    Cairn,
    Ended,
    NotFound,
    Progress,
    Read,
    TextPiece,
    Unauthorized,
    Used,
)

from tests.clients.conftest import KEY

LONG = "The grass is green, the sky is blue, and the sun is yellow. " * 40


@pytest.fixture
def official(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def test_a_chat_is_what_the_official_client_gets(either: Cairn, official: openai.OpenAI) -> None:
    answer = either.chat("Who is there?", temperature=0, max_tokens=12)
    expected = official.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Who is there?"}], temperature=0, max_tokens=12
    )
    assert answer.text == expected.choices[0].message.content
    assert answer.finish_reason == expected.choices[0].finish_reason
    assert answer.usage is not None
    assert expected.usage is not None
    assert answer.usage.completion_tokens == expected.usage.completion_tokens == 12
    assert answer.timings is not None
    assert answer.timings.decode_ms > 0


def test_a_completion_with_choices(either: Cairn, official: openai.OpenAI) -> None:
    asked = {"temperature": 1, "seed": 5, "max_tokens": 8, "n": 2}
    answer = either.complete(["one", "two"], temperature=1, seed=5, max_tokens=8, n=2)
    expected = official.completions.create(model="tiny", prompt=["one", "two"], **asked)  # type: ignore[call-overload]
    assert [choice.text for choice in answer.choices] == [choice.text for choice in expected.choices]
    assert len(answer.choices) == 4


def test_a_stream_says_what_the_whole_answer_says(either: Cairn) -> None:
    whole = either.chat(LONG, temperature=0, max_tokens=20, retrieval={"provenance": True, "passages": 2})
    asked = either.chat_stream(LONG, temperature=0, max_tokens=20, retrieval={"provenance": True, "passages": 2})
    with asked as stream:
        events = list(stream)
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == whole.text
    assert stream.answer.text == whole.text
    assert stream.answer.choices == whole.choices
    assert {type(event) for event in events} == {Progress, TextPiece, Ended, Read, Used}
    assert isinstance(events[-1], Used)
    assert [passage.text for passage in stream.answer.passages] == [passage.text for passage in whole.passages]
    assert stream.answer.usage is not None
    assert stream.answer.usage.completion_tokens == 20


def test_passages_are_where_they_say(either: Cairn) -> None:
    session = either.sessions.create()
    either.sessions.append(session, LONG)
    answer = either.chat("Why?", session=session, max_tokens=4, retrieval={"provenance": True, "audit": True})
    held = either.sessions.text(session)
    assert answer.passages
    for passage in answer.passages:
        assert held.text[passage.start_char : passage.end_char] == passage.text
    assert answer.retrieval is not None
    shares = [answer.retrieval.fetched, answer.retrieval.sinks, answer.retrieval.local, answer.retrieval.estimated]
    assert sum(share or 0 for share in shares) == pytest.approx(1, abs=1e-3)
    assert answer.retrieval.audit is not None
    assert answer.retrieval.audit.samples > 0


def test_the_text_of_a_stream(either: Cairn) -> None:
    with either.complete_stream("Once", temperature=0, max_tokens=9) as stream:
        text = "".join(stream.text())
    assert text == either.complete("Once", temperature=0, max_tokens=9).text
    assert text == stream.answer.text


def test_leaving_a_stream_ends_its_request(either: Cairn) -> None:
    session = either.sessions.create()
    asked = either.complete_stream("x", session=session, max_tokens=12_000, ignore_eos=True)
    with asked as stream:
        for event in stream:
            if isinstance(event, TextPiece):
                break
    # Busy until the server has noticed: the next request would be refused otherwise.
    for _ in range(200):
        if not either.sessions.get(session).busy:
            break
    told = either.sessions.get(session)
    assert not told.busy
    assert 0 < told.tokens < 12_000


def test_fields_without_a_name_here_are_sent(either: Cairn) -> None:
    with pytest.raises(BadRequest, match="unheard_of") as caught:
        either.chat("Hello", extra_body={"unheard_of": 1})
    assert caught.value.param == "unheard_of"
    assert caught.value.code == "unsupported_parameter"


def test_errors_are_of_the_tree(either: Cairn, url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        either.chat("Hello", temperature=5)
    assert (caught.value.status, caught.value.param) == (400, "temperature")
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(NotFound, match="does not exist"):
        either.chat("Hello", model="another")
    with pytest.raises(NotFound), either.chat_stream("Hello", session="0" * 24):
        pass
    with Cairn(url, api_key="wrong") as stranger, pytest.raises(Unauthorized):
        stranger.chat("Hello")


def test_the_server_itself(either: Cairn) -> None:
    either.wait_until_ready(5)
    assert either.health().ok
    assert either.ready().status == "ready"
    [model] = either.models()
    assert either.model(model.id) == model
    assert model.retrieval["block_size"] > 0
    tokens = either.tokenize("The sea", special_tokens=False, strings=True)
    assert tokens.strings is not None
    assert tokens.count == len(tokens.strings)
    assert either.detokenize(tokens.ids) == "The sea"
    assert either.version()
    assert "cairn_num_requests_running" in either.metrics()
