"""/v1/completions, /tokenize and /detokenize."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai

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
