"""/v1/completions, /tokenize and /detokenize."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

MODEL = "cairn-4m"
Events = Callable[[httpx.Response], list[dict[str, Any]]]


def complete(client: httpx.Client, **more: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={"temperature": 0, "max_tokens": 8, **more})
    assert response.status_code == 200, response.text
    answered: dict[str, Any] = response.json()
    return answered


def test_whole_and_streamed_answers_agree(ask: openai.OpenAI) -> None:
    whole = ask.completions.create(model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=8)
    assert whole.object == "text_completion"
    streamed = ask.completions.create(model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text
    assert whole.choices[0].finish_reason == "length"


def test_every_form_of_prompt(cairn: httpx.Client) -> None:
    texts = ["Once upon a time", "The sea was"]
    tokens = [cairn.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in texts]
    alone = [complete(cairn, prompt=text)["choices"][0]["text"] for text in texts]
    assert [choice["text"] for choice in complete(cairn, prompt=texts)["choices"]] == alone
    assert [choice["text"] for choice in complete(cairn, prompt=tokens)["choices"]] == alone
    assert complete(cairn, prompt=tokens[0])["choices"][0]["text"] == alone[0]
    assert complete(cairn, prompt=texts, n=2)["usage"]["prompt_tokens"] == sum(map(len, tokens))
    assert [choice["index"] for choice in complete(cairn, prompt=texts, n=2)["choices"]] == [0, 1, 2, 3]


def test_the_default_is_sixteen_tokens(cairn: httpx.Client) -> None:
    assert complete(cairn, prompt="Once", max_tokens=None, ignore_eos=True)["usage"]["completion_tokens"] == 16


def test_echo(cairn: httpx.Client, events: Events) -> None:
    answer = complete(cairn, prompt="Once upon a time")["choices"][0]["text"]
    assert complete(cairn, prompt="Once upon a time", echo=True)["choices"][0]["text"] == "Once upon a time" + answer
    asked = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 8, "echo": True, "stream": True}
    told = events(cairn.post("/v1/completions", json=asked))
    assert "".join(chunk["choices"][0]["text"] for chunk in told) == "Once upon a time" + answer


def test_logprobs_line_up(cairn: httpx.Client) -> None:
    choice = complete(cairn, prompt="Once upon a time", logprobs=2)["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 8
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset : offset + len(token)] == token
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])


def test_a_bias_forces_a_token(cairn: httpx.Client) -> None:
    [token] = cairn.post("/tokenize", json={"prompt": "7"}).json()["tokens"]
    assert complete(cairn, prompt="Once", logit_bias={str(token): 100}, max_tokens=3)["choices"][0]["text"] == "777"


def test_token_tools_agree(cairn: httpx.Client) -> None:
    text = "Hello <|landmark|> wörld 🙂"
    told = cairn.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] > 1000
    assert cairn.post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": text}
    chat = cairn.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi"}]}).json()["tokens"]
    shown = cairn.post("/detokenize", json={"tokens": chat}).json()["prompt"]
    assert shown == "<|user|>Hi<|end|><|assistant|>"


def test_models(ask: openai.OpenAI) -> None:
    [listed] = ask.models.list().data
    assert listed.id == MODEL
    assert ask.models.retrieve(MODEL).id == MODEL


def test_tokenising_a_huge_text_does_not_hold_up_others(tiny: httpx.Client) -> None:
    text = "The grass is green. The sky is blue. " * 60_000
    with ThreadPoolExecutor() as pool:
        huge = pool.submit(tiny.post, "/tokenize", json={"prompt": text})
        slowest, asked = 0.0, 0
        while not huge.done():
            begin = time.monotonic()
            assert tiny.get("/v1/sessions").status_code == 200
            slowest, asked = max(slowest, time.monotonic() - begin), asked + 1
            time.sleep(0.01)
    assert huge.result().json()["count"] > 500_000
    assert asked > 10
    assert slowest < 0.75 * huge.result().elapsed.total_seconds()


# -- a prompt that is scored ---------------------------------------------------------------------------------


def test_echo_with_logprobs_scores_the_prompt(cairn: httpx.Client) -> None:
    """What was generated has, given back as a prompt, the log-probabilities that it was generated with."""
    asked = {
        "prompt": "The pass key for Lisbon is 71432. The pass",
        "logprobs": 2,
        "max_tokens": 12,
        "ignore_eos": True,
    }
    first = complete(cairn, **asked)["choices"][0]
    again = complete(cairn, **{**asked, "prompt": asked["prompt"] + first["text"], "max_tokens": 0, "echo": True})
    [choice], logprobs = again["choices"], again["choices"][0]["logprobs"]
    assert (choice["text"], again["usage"]["completion_tokens"]) == (asked["prompt"] + first["text"], 0)
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    told = first["logprobs"]
    assert logprobs["tokens"][-12:] == told["tokens"]
    assert logprobs["token_logprobs"][-12:] == pytest.approx(told["token_logprobs"], abs=2e-3)
    for token, logprob, top in list(zip(*(logprobs[each] for each in SCORES), strict=True))[1:]:
        assert top[token] == logprob
        assert max(top.values()) >= logprob
        assert 2 <= len(top) <= 3


SCORES = ("tokens", "token_logprobs", "top_logprobs")


def test_a_harness_s_request(cairn: httpx.Client) -> None:
    """lm-evaluation-harness: several lists of tokens, one token generated and left out again."""
    texts = ["Once upon a time there was", "The sea"]
    prompts = [cairn.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in texts]
    asked = {"prompt": prompts, "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
    choices = complete(cairn, **asked)["choices"]
    for prompt, text, choice in zip(prompts, texts, choices, strict=True):
        assert choice["text"].startswith(text)
        assert all(len(choice["logprobs"][each]) == len(prompt) + 1 for each in (*SCORES, "text_offset"))
        alone = complete(cairn, prompt=text, max_tokens=0, logprobs=1, echo=True)["choices"][0]
        expected = alone["logprobs"]["token_logprobs"]
        assert choice["logprobs"]["token_logprobs"][1:-1] == pytest.approx(expected[1:], abs=2e-3)


def test_scores_are_streamed_and_count_for_each_answer(cairn: httpx.Client, events: Events) -> None:
    asked = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 2, "echo": True, "logprobs": 0, "n": 2}
    whole = complete(cairn, **asked)["choices"]
    told = [chunk["choices"][0] for chunk in events(cairn.post("/v1/completions", json={**asked, "stream": True}))]
    for choice in whole:
        mine = [each for each in told if each["index"] == choice["index"]]
        assert "".join(each["text"] for each in mine) == choice["text"]
        told_of = {name: [x for each in mine if each["logprobs"] for x in each["logprobs"][name]] for name in SCORES}
        assert told_of["tokens"] == choice["logprobs"]["tokens"]
        assert told_of["token_logprobs"][1:] == pytest.approx(choice["logprobs"]["token_logprobs"][1:], abs=2e-3)


def test_offsets_count_characters_also_where_tokens_cut_them(cairn: httpx.Client) -> None:
    prompt = "日本 🙂é!"
    choice = complete(cairn, prompt=prompt, max_tokens=0, logprobs=0, echo=True)["choices"][0]
    offsets = choice["logprobs"]["text_offset"]
    assert len(offsets) > len(prompt)
    assert (offsets[0], offsets[-1], offsets) == (0, len(prompt) - 1, sorted(offsets))


def test_a_session_s_prompt_is_not_scored(cairn: httpx.Client) -> None:
    session = cairn.post("/v1/sessions").json()["id"]
    asked = {"prompt": "x", "echo": True, "logprobs": 1, "session_id": session}
    response = cairn.post("/v1/completions", json=asked)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "echo")
    cairn.delete(f"/v1/sessions/{session}")
