"""Training samples: their length, what is weighted as an answer, and which names never occur."""

from __future__ import annotations

import random
import re
from itertools import groupby

import pytest
from tokenizers import Tokenizer

from training.names import BENCH_NAMES, Names
from training.tasks import ANSWER_WEIGHT, Mix, Sample, Tasks

KINDS = {"copying": Mix(1, 0), "language": Mix(0, 1), "retrieval": Mix(0, 0), "mixed": Mix(0.3, 0.3)}
LENGTHS = [120, 240, 480]


def samples(tasks: Tasks, kind: str, length: int, count: int) -> list[Sample]:
    return [tasks.draw(random.Random(seed), length, KINDS[kind]) for seed in range(count)]


def answers(sample: Sample, tokenizer: Tokenizer) -> list[str]:
    """Texts of the runs of tokens that carry the answer's weight."""
    runs = groupby(zip(sample.weights, sample.tokens, strict=True), key=lambda pair: pair[0])
    return [tokenizer.decode([token for _, token in run]) for weight, run in runs if weight == ANSWER_WEIGHT]


@pytest.mark.parametrize("length", [*LENGTHS, 61, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_has_exactly_the_wanted_length(kind: str, length: int, tasks: Tasks) -> None:
    for sample in samples(tasks, kind, length, 60):
        assert len(sample.tokens) == len(sample.weights) == length
        assert all(0 <= weight <= ANSWER_WEIGHT for weight in sample.weights)
        assert any(sample.weights), "nothing can be learned from it"


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_follows_from_its_seed(kind: str, tasks: Tasks) -> None:
    assert samples(tasks, kind, 240, 5) == samples(tasks, kind, 240, 5)
    assert len({tuple(sample.tokens) for sample in samples(tasks, kind, 240, 5)}) == 5


def test_only_retrieval_has_answers(tasks: Tasks) -> None:
    for kind in ("copying", "language"):
        assert not any(ANSWER_WEIGHT in sample.weights for sample in samples(tasks, kind, 240, 40))
    assert all(ANSWER_WEIGHT in sample.weights for sample in samples(tasks, "retrieval", 240, 40))


@pytest.mark.parametrize("length", [120, 240, 480])
def test_answers_are_what_the_text_told_before(length: int, tasks: Tasks, tokenizer: Tokenizer) -> None:
    """Each number, variable or word of an answer stands in the text before the first question."""
    for sample in samples(tasks, "retrieval", length, 150):
        first = sample.weights.index(ANSWER_WEIGHT)
        told = tokenizer.decode(sample.tokens[:first])
        for answer in answers(sample, tokenizer):
            words = re.findall(r"[0-9A-Za-z-]+", answer)
            assert words
            assert all(word in told for word in words), (answer, told)


@pytest.mark.parametrize("length", LENGTHS)
def test_an_answer_is_weighted_from_its_first_token_to_its_full_stop(
    length: int, tasks: Tasks, tokenizer: Tokenizer
) -> None:
    numbers, words, chain = r"\d{4,7}(, \d{7})*\.", r"[a-z-]+\.", r"[A-Z]{5}( [A-Z]{5})*"
    uuid = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\."
    shape = re.compile(f" ({numbers}|{words}|{uuid}|{chain})")
    found = [answer for sample in samples(tasks, "retrieval", length, 150) for answer in answers(sample, tokenizer)]
    assert len(found) >= 150
    for answer in found:
        assert shape.fullmatch(answer), answer


def test_copies_are_learned_from_their_second_time_on(tasks: Tasks) -> None:
    for sample in samples(tasks, "copying", 120, 40):
        size = sample.weights.index(1.0)
        assert sample.weights == [0.0] * size + [1.0] * (120 - size)
        assert all(sample.tokens[i] == sample.tokens[i - size] for i in range(size, 120))


# -- names ---------------------------------------------------------------------------------------------------


def test_bench_names_never_occur(tasks: Tasks, tokenizer: Tokenizer) -> None:
    pattern = re.compile(rf"\b({'|'.join(BENCH_NAMES)})\b", re.IGNORECASE)
    for sample in samples(tasks, "retrieval", 480, 300):
        assert not pattern.search(tokenizer.decode(sample.tokens))


def test_bench_names_are_not_borrowed_from_a_text_that_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.names.SYLLABLES", ["ba"])  # so that what is made up cannot hide what is borrowed
    borrowed = " ".join(f"{name} {name.lower()} Paddington morning " * 10 for name in BENCH_NAMES)
    names, rng = Names(borrowed), random.Random(1)
    drawn = {part for _ in range(5000) for part in re.split(r"[ -]", names.one(rng))}
    assert not {part.capitalize() for part in drawn} & set(BENCH_NAMES)
    assert {"Paddington", "morning"} <= drawn


def test_bench_names_are_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syllables that can spell an excluded name do not."""
    monkeypatch.setattr("training.names.SYLLABLES", ["bu", "sa"])
    monkeypatch.setattr("training.names.ENDINGS", ["", "n"])
    names, rng = Names("Paddington morning " * 10, frozenset({"Busan"})), random.Random(1)
    made_up = {names.made_up(rng) for _ in range(2000)}
    assert "Busa" in made_up
    assert "Busan" not in made_up


def test_drawn_names_differ(tasks: Tasks, text: str) -> None:
    names = Names(text)
    for seed in range(50):
        drawn = names.draw(random.Random(seed), 8)
        assert len(set(drawn)) == 8
