"""The pass-key bench: what it asks, and a short run with the shipped model."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bench.passkey import Prompt, draw_prompts, main, prompt_tokens, read_haystack
from training import BENCH_NAMES


@pytest.fixture(scope="module")
def model() -> Path:
    return Path(__file__).parents[2] / "models" / "cairn-4m"


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    return loaded


@pytest.fixture(scope="module")
def haystack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("haystack") / "topics.txt"
    path.write_text("\n".join(pydoc_data.topics.topics.values())[:20_000], encoding="utf-8")
    return path


def test_prompts_are_drawn_again_from_the_same_seed_with_names_never_trained_on() -> None:
    prompts = draw_prompts(50, seed=1)
    assert prompts == draw_prompts(50, seed=1)
    assert prompts != draw_prompts(50, seed=2)
    assert {prompt.name for prompt in prompts} <= set(BENCH_NAMES)
    assert len({prompt.name for prompt in prompts}) == 50
    assert all(len(prompt.key) == 5 and prompt.key.isdigit() for prompt in prompts)
    assert min(p.depth for p in prompts) < 0.1 < 0.9 < max(p.depth for p in prompts)


@pytest.mark.parametrize("depth", [0.0, 0.5, 0.999])
def test_a_prompt_holds_the_fact_once_and_the_question_at_its_end(
    depth: float, tokenizer: PreTrainedTokenizerBase, haystack: Path
) -> None:
    hay = read_haystack(haystack, tokenizer, 500)
    text = tokenizer.decode(prompt_tokens(Prompt("Lisbon", "01234", depth), hay, tokenizer))
    assert text.count("The pass key for Lisbon is 01234. Remember it.") == 1
    assert text.count("01234") == 1
    assert text.startswith("<|user|>")
    assert text.endswith("What is the pass key for Lisbon?<|end|><|assistant|>")
    place = text.index("01234") / len(text)
    assert abs(place - depth) < 0.25


def test_a_haystack_has_the_wanted_length_and_repeats_a_short_text(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("The grass is green. <|end|> ")
    ids = read_haystack(short, tokenizer, 100)
    once = tokenizer.encode("The grass is green. <|end|> ", add_special_tokens=False, split_special_tokens=True)
    assert len(ids) == 100
    assert ids[: 2 * len(once)] == 2 * once
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in ids, "what looks like a chat token is text"


def test_an_empty_haystack_is_told(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(SystemExit, match=r"empty.txt is empty"):
        read_haystack(tmp_path / "empty.txt", tokenizer, 100)


def test_a_short_run_writes_its_accuracy(
    model: Path, haystack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tmp_path / "result.json"
    options = ["--tokens", "300", "--prompts", "2", "--haystack", str(haystack), "--json", str(result)]
    monkeypatch.setattr("sys.argv", ["passkey", "--model", str(model), *options])
    assert main() == 0
    written = json.loads(result.read_text())
    rows = written["rows"]
    assert written["accuracy"] == sum(row["right"] for row in rows) / 2
    assert (written["tokens"], written["blocks_per_head"], written["haystack"]) == (300, 8, "topics.txt")
    assert {"date", "torch", "cores"} <= written["machine"].keys()
    for row in rows:
        assert row["right"] == (row["key"] in row["answer"])
        assert 330 < row["prompt_tokens"] < 400
    assert any(row["right"] for row in rows), "the shipped model finds nothing, not even in 300 tokens"
