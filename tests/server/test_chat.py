"""/v1/chat/completions through the official client, and the exact shape of its stream."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

MESSAGES: list[Any] = [{"role": "user", "content": "The pass key for Lisbon is 71432. What is the pass key?"}]
MODEL = "cairn-4m"
Events = Callable[[httpx.Response], list[dict[str, Any]]]


def body(**more: Any) -> dict[str, Any]:
    return {"messages": MESSAGES, "temperature": 0, "max_tokens": 12, **more}


def answer(client: httpx.Client, **more: Any) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json=body(**more))
    assert response.status_code == 200, response.text
    answered: dict[str, Any] = response.json()
    return answered


def text_of(answered: dict[str, Any], index: int = 0) -> str:
    return str(answered["choices"][index]["message"]["content"])


def test_whole_and_streamed_answers_agree(ask: openai.OpenAI) -> None:
    whole = ask.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=12)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(
        ask.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            temperature=0,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_stream_s_shape(cairn: httpx.Client, events: Events) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
    told = events(cairn.post("/v1/chat/completions", json=body(**options)))
    assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {chunk["object"] for chunk in told} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in told}) == 1
    progress = [chunk["prompt_progress"] for chunk in told if "prompt_progress" in chunk]
    assert progress[-1]["processed"] == progress[-1]["total"] > 0
    assert progress[-1].keys() == {"total", "cached", "processed", "time_ms"}
    assert told[-2]["choices"][0]["finish_reason"] in ("stop", "length")
    assert told[-2]["timings"].keys() == {"queue_ms", "prefill_ms", "decode_ms"}
    assert told[-1]["choices"] == []
    assert all(chunk["usage"] is None for chunk in told[:-1])
    assert told[-1]["usage"]["prompt_tokens"] == progress[-1]["total"]


def test_the_same_prompt_is_cached(cairn: httpx.Client) -> None:
    messages = [{"role": "user", "content": "A prompt that no other test sends. " * 8}]
    first, second = (answer(cairn, messages=messages, max_tokens=2) for _ in range(2))
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < second["usage"]["prompt_tokens"]
    assert text_of(first) == text_of(second)


def test_a_stop_string_cuts_across_tokens(cairn: httpx.Client, events: Events) -> None:
    full = text_of(answer(cairn, max_tokens=20, ignore_eos=True))
    stop = full[6:11]  # begins and ends within tokens
    expected = full[: full.index(stop)]
    cut = answer(cairn, max_tokens=20, ignore_eos=True, stop=[stop, "never said"])
    assert text_of(cut) == expected
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] < 20
    streamed = events(cairn.post("/v1/chat/completions", json=body(max_tokens=20, stop=stop, stream=True)))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == expected
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"


def test_logprobs(cairn: httpx.Client) -> None:
    choice = answer(cairn, logprobs=True, top_logprobs=3)["choices"][0]
    content = choice["logprobs"]["content"]
    shown = b"".join(bytes(token["bytes"]) for token in content if token["token"] != "<|end|>")
    assert shown.decode() == choice["message"]["content"]
    for token in content:
        assert token["logprob"] <= 0
        assert len(token["top_logprobs"]) == 3
        assert token["top_logprobs"][0]["logprob"] == token["logprob"], "greedy takes the most likely"


def test_several_choices(cairn: httpx.Client, events: Events) -> None:
    sampled = answer(cairn, n=3, temperature=1.5, seed=7, max_tokens=8)
    assert [choice["index"] for choice in sampled["choices"]] == [0, 1, 2]
    assert len({text_of(sampled, index) for index in range(3)}) > 1
    assert sampled["usage"]["prompt_tokens"] == answer(cairn)["usage"]["prompt_tokens"]
    streamed = events(cairn.post("/v1/chat/completions", json=body(n=2, stream=True)))
    ends = {c["index"] for chunk in streamed for c in chunk["choices"] if c["finish_reason"]}
    assert ends == {0, 1}


def test_a_seed_repeats_the_answer(cairn: httpx.Client) -> None:
    texts = {text_of(answer(cairn, temperature=1.2, seed=11)) for _ in range(2)}
    assert len(texts) == 1
    assert text_of(answer(cairn, temperature=1.2, seed=12)) not in texts


def test_a_seed_repeats_the_answer_in_a_batch(cairn: httpx.Client) -> None:
    """Whatever else is running, each choice draws from its own seed."""
    drawn = {"temperature": 1.0, "seed": 11, "n": 2, "max_tokens": 16, "ignore_eos": True}
    alone = answer(cairn, **drawn)
    asked = [drawn if turn % 2 else {**drawn, "seed": turn, "n": 3} for turn in range(6)]
    with ThreadPoolExecutor() as pool:
        together = list(pool.map(lambda each: answer(cairn, **each), asked))
    for told in together[1::2]:
        assert [text_of(told, index) for index in range(2)] == [text_of(alone, index) for index in range(2)]


def test_streams_at_once_give_what_each_gives_alone(cairn: httpx.Client) -> None:
    prompts = [f"The pass key for {name} is {key}. What is it?" for name, key in (("Ann", 1234), ("Bob", 98765))]
    asked: list[Any] = [[{"role": "user", "content": prompt}] for prompt in prompts]
    alone = [text_of(answer(cairn, messages=each)) for each in asked]
    with ThreadPoolExecutor() as pool:
        together = list(pool.map(lambda each: text_of(answer(cairn, messages=each)), asked * 2))
    assert together == alone * 2


def test_provenance_quotes_the_prompt(cairn: httpx.Client) -> None:
    filler = "The grass is green. The sky is blue. Here we go. There and back again. "
    text = filler * 12 + "The pass key for Lisbon is 71432. Remember it. " + filler * 12
    messages = [{"role": "user", "content": text + "What is the pass key for Lisbon?"}]
    retrieval = answer(cairn, messages=messages, retrieval={"provenance": True, "passages": 3})["retrieval"]
    assert retrieval["fetched"] + retrieval["sinks"] + retrieval["local"] == pytest.approx(1, abs=1e-3)
    assert 1 <= len(retrieval["passages"]) <= 3
    rendered = f"<|user|>{messages[0]['content']}<|end|><|assistant|>"
    for passage in retrieval["passages"]:
        assert rendered[passage["start_char"] : passage["end_char"]] == passage["text"]
        assert passage["start_token"] < passage["end_token"]
        assert 0 < passage["share"] <= 1


def test_a_keep_alive_comment_comes_while_nothing_is_sent(tiny: httpx.Client) -> None:
    messages = [{"role": "user", "content": "word " * 4000}]
    response = tiny.post("/v1/chat/completions", json=body(messages=messages, stream=True, max_tokens=1))
    frames = response.text.split("\n\n")
    assert frames[1].startswith(":"), "after the role, before the first token"


def test_sampled_bytes_never_break_a_character(tiny: httpx.Client, events: Events) -> None:
    asked = body(stream=True, max_tokens=200, temperature=2, seed=3, ignore_eos=True, logprobs=True)
    told = events(tiny.post("/v1/chat/completions", json=asked))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in told)
    scored = [token for chunk in told for token in (chunk["choices"][0]["logprobs"] or {}).get("content", ())]
    assert len(scored) == 200
    control = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|landmark|>")
    data = b"".join(bytes(token["bytes"]) for token in scored if token["token"] not in control)
    assert text == data.decode("utf-8", "replace")


def test_harmless_fields_are_accepted(cairn: httpx.Client) -> None:
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": False, "tools": [], "response_format": {"type": "text"}}
    assert text_of(answer(cairn, **harmless, seed=None, stop=None, n=None, model=MODEL))


def test_a_bias_bans_a_token(cairn: httpx.Client) -> None:
    """Greedily it would come, at the most negative bias it does not."""
    [token] = cairn.post("/tokenize", json={"prompt": "7"}).json()["tokens"]
    assert "7" in text_of(answer(cairn, max_tokens=16))
    assert "7" not in text_of(answer(cairn, max_tokens=16, logit_bias={str(token): -100}))


def test_a_developer_is_a_system(cairn: httpx.Client) -> None:
    first = [{"role": role, "content": "The pass key for Rome is 5."} for role in ("developer", "system", "user")]
    developer, system, user = (cairn.post("/tokenize", json={"messages": [each, *MESSAGES]}).json() for each in first)
    assert developer == system != user


def test_content_may_come_in_parts(cairn: httpx.Client) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": part} for part in ("The pass ", "key?")]}]
    whole = [{"role": "user", "content": "The pass key?"}]
    assert text_of(answer(cairn, messages=parts)) == text_of(answer(cairn, messages=whole))
