"""/v1/responses through the official client: what is told, what goes on from what, and what is kept for whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import BaseModel

from tests.engine.durable import eventually
from tests.server.test_durability import served
from tests.server.test_sessions import append, chat, create

URL, MODEL = "/v1/responses", "cairn-4m"
FACT = "The grass is green. The sky is blue. The pass key for Lisbon is 71432. Remember it. " * 3
ASK, AGAIN = "What is the pass key for Lisbon?", "What is green, and what is blue?"


def respond(client: httpx.Client, text: Any = ASK, **more: Any) -> dict[str, Any]:
    asked = {"input": text, "temperature": 0, "max_output_tokens": 20, **more}
    response = client.post(URL, json=asked)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


def text_of(told: dict[str, Any]) -> str:
    [item] = told["output"]
    return "".join(part["text"] for part in item["content"])


def texts_of(items: Iterable[BaseModel]) -> list[str]:
    return ["".join(part["text"] for part in item.model_dump()["content"]) for item in items]


def by_chat(client: httpx.Client, *contents: str, system: str | None = None) -> str:
    """What chat answers to the same conversation, told from its beginning."""
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    first = [{"role": "system", "content": system}] if system else []
    asked = {"messages": [*first, *messages], "temperature": 0, "max_tokens": 20}
    return str(client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"])


def sessions(client: httpx.Client) -> set[str]:
    return {each["id"] for each in client.get("/v1/sessions", params={"limit": 100}).json()["data"]}


@pytest.fixture
def clean(cairn: httpx.Client) -> Iterator[httpx.Client]:
    """The shipped model; sessions that a test made are gone afterwards."""
    before = sessions(cairn)
    yield cairn
    for session in sessions(cairn) - before:
        cairn.delete(f"/v1/sessions/{session}")


# -- what is told --------------------------------------------------------------------------------------------


def test_a_response_s_shape(clean: httpx.Client, ask: openai.OpenAI) -> None:
    told = ask.responses.create(model=MODEL, input=FACT + ASK, temperature=0, metadata={"a": "b"}, max_output_tokens=20)
    assert told.output_text == by_chat(clean, FACT + ASK)
    assert (told.status, told.object, told.metadata) == ("completed", "response", {"a": "b"})
    assert told.usage is not None
    assert told.usage.total_tokens == told.usage.input_tokens + told.usage.output_tokens
    assert ask.responses.retrieve(told.id) == told


def test_a_stream_s_events(clean: httpx.Client, ask: openai.OpenAI) -> None:
    whole = respond(clean, FACT + ASK)
    with ask.responses.stream(model=MODEL, input=FACT + ASK, temperature=0, max_output_tokens=20) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(deltas) == final.output_text == text_of(whole)
    assert clean.get(f"{URL}/{final.id}").json()["output"] == [
        item.model_dump(exclude_none=True) for item in final.output
    ]


def test_a_stream_s_frames(clean: httpx.Client) -> None:
    """Each event by its name, and nothing after the last one."""
    asked = {"input": ASK, "max_output_tokens": 2, "ignore_eos": True, "stream": True, "return_progress": True}
    frames = clean.post(URL, json=asked).text.split("\n\n")
    assert frames.pop() == ""
    names = [frame.split("\n")[0] for frame in frames]
    assert names[-1] == "event: response.incomplete"
    assert "event: response.prompt_progress" in names
    assert all(frame.split("\n")[1].startswith('data: {"type":"response.') for frame in frames)


def test_an_answer_that_is_cut_is_incomplete(clean: httpx.Client) -> None:
    told = respond(clean, max_output_tokens=3, ignore_eos=True)
    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (told["output"][0]["status"], told["usage"]["output_tokens"]) == ("incomplete", 3)


def test_logprobs(clean: httpx.Client) -> None:
    [part] = respond(clean, include=["message.output_text.logprobs"], top_logprobs=2)["output"][0]["content"]
    shown = b"".join(bytes(token["bytes"]) for token in part["logprobs"] if token["token"] != "<|end|>")
    assert shown.decode() == part["text"]
    assert all(len(token["top_logprobs"]) == 2 for token in part["logprobs"])
    [plain] = respond(clean)["output"][0]["content"]
    assert plain["logprobs"] == []


def test_input_may_come_in_items_and_parts(clean: httpx.Client) -> None:
    first = respond(clean, FACT + ASK)
    parts = [{"type": "input_text", "text": FACT}, {"type": "input_text", "text": ASK}]
    assert text_of(respond(clean, [{"role": "user", "content": parts}])) == text_of(first)
    items = [{"role": "user", "content": FACT + ASK}, *first["output"], {"role": "user", "content": AGAIN}]
    assert text_of(respond(clean, items)) == by_chat(clean, FACT + ASK, text_of(first), AGAIN)


def test_provenance_and_progress_are_told(clean: httpx.Client) -> None:
    told = respond(clean, FACT * 4 + ASK, retrieval={"provenance": True, "audit": True})
    assert told["retrieval"]["audit"]["samples"] > 0
    held = clean.get(f"/v1/sessions/{told['session_id']}/text").json()["text"]
    for passage in told["retrieval"]["passages"]:
        assert held[passage["start_char"] : passage["end_char"]] == passage["text"]


# -- what goes on from what ----------------------------------------------------------------------------------


def test_only_what_is_new_is_computed(clean: httpx.Client) -> None:
    first = respond(clean, FACT + ASK)
    second = respond(clean, AGAIN, previous_response_id=first["id"])
    assert text_of(second) == by_chat(clean, FACT + ASK, text_of(first), AGAIN)
    held = first["usage"]["total_tokens"]
    assert held - 16 <= second["usage"]["input_tokens_details"]["cached_tokens"] < held
    third = respond(clean, ASK, previous_response_id=second["id"])
    assert text_of(third) == by_chat(clean, FACT + ASK, text_of(first), AGAIN, text_of(second), ASK)
    assert third["usage"]["input_tokens_details"]["cached_tokens"] >= second["usage"]["total_tokens"] - 16


def test_a_response_goes_on_as_often_as_one_likes(clean: httpx.Client) -> None:
    """One after the other, at once, and after one of them has gone on itself."""
    first = respond(clean, FACT + ASK)
    questions = [AGAIN, ASK, "What is to be remembered?", "What is the sky?"]
    expected = [by_chat(clean, FACT + ASK, text_of(first), question) for question in questions]
    with ThreadPoolExecutor() as pool:
        told = list(pool.map(lambda each: respond(clean, each, previous_response_id=first["id"]), questions))
    assert [text_of(each) for each in told] == expected
    deeper = respond(clean, ASK, previous_response_id=told[0]["id"])
    assert text_of(deeper) == by_chat(clean, FACT + ASK, text_of(first), AGAIN, expected[0], ASK)
    late = respond(clean, AGAIN, previous_response_id=first["id"])
    assert text_of(late) == expected[0]
    assert late["usage"]["input_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"] - 16


def test_a_conversation_keeps_one_session(clean: httpx.Client) -> None:
    before = sessions(clean)
    first = respond(clean, FACT + ASK)
    second = respond(clean, AGAIN, previous_response_id=first["id"])
    assert sessions(clean) - before == {second["session_id"]}
    assert clean.get(f"{URL}/{first['id']}").json()["session_id"] == second["session_id"]
    respond(clean, ASK, previous_response_id=first["id"])
    assert len(sessions(clean) - before) == 2, "one for each end"


def test_instructions_hold_for_one_response(clean: httpx.Client) -> None:
    first = respond(clean, FACT + ASK, instructions="Be brief.")
    assert text_of(first) == by_chat(clean, FACT + ASK, system="Be brief.")
    past = (FACT + ASK, text_of(first), AGAIN)
    same = respond(clean, AGAIN, previous_response_id=first["id"], instructions="Be brief.")
    assert text_of(same) == by_chat(clean, *past, system="Be brief.")
    assert same["usage"]["input_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"] - 16
    others = respond(clean, AGAIN, previous_response_id=first["id"], instructions="Answer in verse.")
    assert text_of(others) == by_chat(clean, *past, system="Answer in verse.")
    without = respond(clean, AGAIN, previous_response_id=first["id"])
    assert text_of(without) == by_chat(clean, *past)
    held = clean.get(f"/v1/sessions/{without['session_id']}/text").json()["text"]
    assert "Be brief." not in held


def test_a_session_of_one_s_own_goes_on(clean: httpx.Client) -> None:
    session = create(clean)
    append(clean, session, FACT)
    first = respond(clean, session_id=session)
    assert first["session_id"] == session
    assert "71432" in text_of(first)
    second = respond(clean, AGAIN, previous_response_id=first["id"])
    assert second["session_id"] != session
    assert session in sessions(clean), "a session of the caller's own is never deleted"
    fork = clean.post(f"/v1/sessions/{session}/fork").json()["id"]
    assert text_of(second) == chat(clean, fork, AGAIN, max_tokens=20)["choices"][0]["message"]["content"]


def test_what_the_caller_does_in_the_session_is_no_part_of_the_response(clean: httpx.Client) -> None:
    first = respond(clean, FACT + ASK)
    append(clean, first["session_id"], " And the pass key for Lisbon is 99999 now.")
    second = respond(clean, AGAIN, previous_response_id=first["id"])
    assert text_of(second) == by_chat(clean, FACT + ASK, text_of(first), AGAIN)
    assert first["session_id"] in sessions(clean), "it holds what the caller wrote there"


def test_a_session_that_holds_another_text_by_now_is_not_gone_on_from(clean: httpx.Client) -> None:
    """Rewound and as long as before: what the response was made from is not there any more."""
    mine, other = create(clean), "The grass is red. The sky is grey. The pass key for Lisbon is 99999. Forget it. " * 6
    append(clean, mine, FACT)
    ours, own = respond(clean, FACT + ASK), respond(clean, session_id=mine)
    for told in (ours, own):
        place = f"/v1/sessions/{told['session_id']}"
        assert clean.post(f"{place}/rewind", json={"tokens": 5}).status_code == 200
        append(clean, told["session_id"], other)
    again = respond(clean, AGAIN, previous_response_id=ours["id"])
    assert text_of(again) == by_chat(clean, FACT + ASK, text_of(ours), AGAIN)
    missed = clean.post(URL, json={"input": AGAIN, "previous_response_id": own["id"]})
    assert (missed.status_code, missed.json()["error"]["param"]) == (404, "previous_response_id")


def test_passages_name_the_document_also_in_what_goes_on(clean: httpx.Client) -> None:
    session = create(clean)
    file = {"file": ("keys.txt", (FACT * 8).encode(), "text/plain")}
    assert clean.post(f"/v1/sessions/{session}/documents", files=file).status_code == 200
    asked = {"retrieval": {"provenance": True, "passages": 20}}
    first = respond(clean, session_id=session, **asked)
    second = respond(clean, AGAIN, previous_response_id=first["id"], **asked)
    for told in (first, second):
        assert "keys.txt" in str(told["retrieval"]["passages"])


def test_a_deleted_session_is_read_again(clean: httpx.Client) -> None:
    first = respond(clean, FACT + ASK)
    clean.delete(f"/v1/sessions/{first['session_id']}")
    second = respond(clean, AGAIN, previous_response_id=first["id"])
    assert text_of(second) == by_chat(clean, FACT + ASK, text_of(first), AGAIN)


def test_a_session_of_one_s_own_that_is_gone_is_missed(clean: httpx.Client) -> None:
    session = create(clean)
    append(clean, session, FACT)
    first = respond(clean, session_id=session)
    clean.delete(f"/v1/sessions/{session}")
    response = clean.post(URL, json={"input": AGAIN, "previous_response_id": first["id"]})
    assert (response.status_code, response.json()["error"]["param"]) == (404, "previous_response_id")


# -- what is kept --------------------------------------------------------------------------------------------


def test_nothing_is_kept_of_what_is_not_stored(clean: httpx.Client) -> None:
    first, before = respond(clean, FACT + ASK), sessions(clean)
    for previous in (None, first["id"]):
        told = respond(clean, AGAIN, store=False, previous_response_id=previous)
        assert (told["store"], told["session_id"]) == (False, None)
        assert clean.get(f"{URL}/{told['id']}").status_code == 404
        asked = {"input": AGAIN, "previous_response_id": told["id"]}
        assert clean.post(URL, json=asked).json()["error"]["code"] == "previous_response_not_found"
    assert sessions(clean) == before


def test_who_leaves_leaves_nothing(clean: httpx.Client) -> None:
    before = sessions(clean)
    asked = {"input": ASK, "max_output_tokens": 4000, "ignore_eos": True, "stream": True}
    with clean.stream("POST", URL, json=asked) as stream:
        lines = stream.iter_lines()  # leaving goes by it: who drops it closes the stream
        next(lines)
        assert len(sessions(clean)) == len(before) + 1
    eventually(lambda: sessions(clean) == before)


def test_what_is_refused_leaves_nothing(clean: httpx.Client) -> None:
    before = sessions(clean)
    assert clean.post(URL, json={"input": ASK, "max_output_tokens": 1 << 30}).status_code == 413
    assert clean.post(URL, json={"input": ASK, "logit_bias": {"99999": 1}}).status_code == 400
    assert sessions(clean) == before


def test_deleting(clean: httpx.Client, ask: openai.OpenAI) -> None:
    before = sessions(clean)
    first = respond(clean, FACT + ASK)
    second = respond(clean, AGAIN, previous_response_id=first["id"])
    ask.responses.delete(first["id"])
    assert clean.get(f"{URL}/{first['id']}").status_code == 404
    assert clean.delete(f"{URL}/{first['id']}").status_code == 404
    listed = ask.responses.input_items.list(second["id"], order="asc").data
    assert texts_of(listed) == [FACT + ASK, text_of(first), AGAIN]
    assert clean.delete(f"{URL}/{second['id']}").json() == {"id": second["id"], "object": "response", "deleted": True}
    assert sessions(clean) == before


def test_input_items_come_in_pages(clean: httpx.Client, ask: openai.OpenAI) -> None:
    texts = [f"Number {number}." for number in range(5)]
    told = respond(clean, [{"role": "user", "content": text} for text in texts], max_output_tokens=1)
    items = list(ask.responses.input_items.list(told["id"], limit=2))
    assert texts_of(items) == texts[::-1]
    page = clean.get(f"{URL}/{told['id']}/input_items", params={"order": "asc", "limit": 2}).json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, items[-1].id, items[-2].id)
    wrong = clean.get(f"{URL}/{told['id']}/input_items", params={"after": "nothing"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "after")


def test_a_finished_response_cannot_be_cancelled(clean: httpx.Client) -> None:
    told = respond(clean, max_output_tokens=1)
    assert clean.post(f"{URL}/{told['id']}/cancel").status_code == 400
    assert clean.post(f"{URL}/resp_nobody/cancel").status_code == 404


def test_another_key_s_response_is_not_there(guarded: httpx.Client) -> None:
    mine, other = ({"Authorization": f"Bearer {key}-key"} for key in ("first", "second"))
    told = guarded.post(URL, json={"input": ASK, "max_output_tokens": 1}, headers=mine).json()
    place = f"{URL}/{told['id']}"
    for method, path in (
        ("GET", place),
        ("DELETE", place),
        ("GET", place + "/input_items"),
        ("POST", place + "/cancel"),
    ):
        assert guarded.request(method, path, headers=other).status_code == 404
    asked = {"input": ASK, "max_output_tokens": 1, "previous_response_id": told["id"]}
    assert guarded.post(URL, json=asked, headers=other).status_code == 400
    assert guarded.delete(place, headers=mine).status_code == 200


def test_a_restart_keeps_responses(tiny_folder: Path, tmp_path: Path) -> None:
    kept = {"disk_kv_path": str(tmp_path), "disk_kv_bytes": 64 << 20, "kv_bytes": 64 << 20, "max_responses": 2}
    with served(tiny_folder, **kept) as client:
        first = respond(client, FACT + ASK)
        second = respond(client, AGAIN, previous_response_id=first["id"])
        on = respond(client, ASK, previous_response_id=second["id"], store=False)
    assert (tmp_path / "responses.sqlite").stat().st_mode & 0o777 == 0o600
    with served(tiny_folder, **kept) as client:
        assert client.get(f"{URL}/{second['id']}").json() == second
        again = respond(client, ASK, previous_response_id=second["id"], store=False)
        assert text_of(again) == text_of(on)
        assert again["usage"]["input_tokens_details"]["cached_tokens"] >= second["usage"]["total_tokens"] - 16
        assert len(sessions(client)) == 1
        respond(client, AGAIN)
        third = respond(client, ASK, previous_response_id=second["id"])
        assert client.get(f"{URL}/{first['id']}").status_code == 404, "two are kept"
        assert len(client.get(f"{URL}/{third['id']}/input_items").json()["data"]) == 5
        respond(client, AGAIN)
        respond(client, ASK)
        assert len(sessions(client)) == 2, "what nobody can ask for is gone"
