"""The recall bench: full attention measures as such, reading less is further away, texts hide what is asked."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench import recall_plot
from bench.passkey import draw_prompts, read_haystack
from bench.recall import Job, Quiz, measure, quiz, texts
from bench.recall_rules import WAYS, Way

MODEL = str(Path(__file__).parents[2] / "models" / "books-plain")
LENGTH = 512
BY_NAME = {way.name: way for way in WAYS}


@pytest.fixture(scope="module")
def haystack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hay") / "text.txt"
    path.write_text("".join(f"On day {i} the ship saw {i * 37 % 101} whales and no land. " for i in range(400)))
    return path


def job(haystack: Path, way: Way, budget: float = 0.2) -> Job:
    return Job(MODEL, (haystack,), LENGTH, "absolute", way, budget, 1)


def test_full_attention_measures_as_full_attention(haystack: Path) -> None:
    row = measure(job(haystack, BY_NAME["full attention"]))
    assert row.mass == 1.0
    assert row.error < 1e-5
    assert row.kl < 1e-5


def test_reading_more_is_nearer(haystack: Path) -> None:
    little, more = (measure(job(haystack, BY_NAME["box"], budget)) for budget in (0.0, 0.5))
    assert more.mass > little.mass
    assert more.error < little.error
    assert more.kl < little.kl
    assert more.bytes > little.bytes


@pytest.mark.parametrize("name", ["box", "copies by moments, rest", "moments, rest"])
def test_a_budget_of_bytes_is_spent_and_not_passed(name: str, haystack: Path) -> None:
    row = measure(replace(job(haystack, BY_NAME[name], 0.3), by="bytes"))
    assert 0.25 < row.bytes <= 0.3


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_way_can_be_measured(way: Way, haystack: Path) -> None:
    row = measure(job(haystack, way))
    assert 0 <= row.mass <= 1 + 1e-6
    assert row.kl >= -1e-6
    assert 0 < row.bytes <= 1


def test_a_quiz_tells_all_its_keys_and_asks_for_each(haystack: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    stretch = read_haystack(haystack, tokenizer, 600)
    facts = draw_prompts(8, seed=3)
    asked: Quiz = quiz(stretch, facts, tokenizer)
    told = tokenizer.decode(asked.tokens)
    for fact, (question, answer) in zip(facts, asked.questions, strict=True):
        assert f"The pass key for {fact.name} is {fact.key}." in told
        assert fact.name in tokenizer.decode(question)
        assert tokenizer.decode(answer).strip() == fact.key
        assert len(asked.tokens) + len(question) + len(answer) <= 600


def test_all_ways_read_the_same_texts(haystack: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert texts(job(haystack, WAYS[0]), tokenizer) == texts(job(haystack, WAYS[5], 0.1), tokenizer)


def test_the_table_and_the_plot_show_every_way(
    haystack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [asdict(measure(job(haystack, BY_NAME[name]))) for name in ("box", "mean")]
    table = recall_plot.table(rows, LENGTH, 0.2)
    assert "box (Quest)" in table
    assert "mean (MoBA)" in table
    recall_plot.plot(rows, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().count("<path") > 10
