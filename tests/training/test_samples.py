"""Made samples: they fit, they tell what they ask, and nothing of the bench is in them."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.training.bases import plain_tokenizer
from training.names import BENCH_NAMES
from training.packing import Encoder, Rows
from training.records import Record, read_records
from training.samples import Frame, Samples, load, main
from training.tasks import ANSWER_WEIGHT


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    path = tmp_path_factory.mktemp("books") / "book.txt"
    path.write_text(text)
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "plain"])
def samples(book: Path, text: str, request: pytest.FixtureRequest) -> Samples:
    return load([book], plain_tokenizer(text, begins=True, chat=request.param), 300, without=[])


def drawn(samples: Samples, count: int = 40) -> list[Record]:
    return [Record("", tuple(samples.draw(random.Random(seed))), whole=True) for seed in range(count)]


def test_samples_fill_their_row_and_are_not_cut(samples: Samples) -> None:
    made = drawn(samples)
    rows = Rows.of(made, 300, samples._encoder)
    assert len(rows) == len(made)
    assert all(len(row) == 1 for row in rows.rows)
    assert min(end - start for row in rows.rows for start, end in row) > 270


def test_answers_were_told(samples: Samples) -> None:
    for made in drawn(samples):
        answers = [place for place, part in enumerate(made.parts) if part.weight == ANSWER_WEIGHT]
        assert answers
        for place in answers:
            said = made.parts[place - 1].text + made.parts[place].text
            name, value = re.fullmatch(r"The pass key for (.+) is (\d+)\.", said).groups()  # type: ignore[union-attr]
            told = "".join(part.text for part in made.parts[: answers[0] - 3])
            assert re.search(rf"pass key for {re.escape(name)} is {value}\.", told)


def test_no_name_of_the_bench_is_told(samples: Samples) -> None:
    for made in drawn(samples):
        words = {word for part in made.parts if "pass key" in part.text for word in re.findall(r"\w+", part.text)}
        assert not words & set(BENCH_NAMES)


def test_a_sample_follows_from_its_seed(samples: Samples) -> None:
    assert drawn(samples, 5) == drawn(samples, 5)


def test_questions_stand_in_the_chat_template(text: str) -> None:
    frame = Frame.of(plain_tokenizer(text))
    assert frame == Frame("<|user|>", "<|end|><|assistant|>", "<|end|><|user|>", "<|end|>")


def test_control_tokens_come_from_the_frame_alone(book: Path, text: str) -> None:
    tokenizer = plain_tokenizer(text)
    made = load([book], tokenizer, 300, without=[]).draw(random.Random(3))
    tokens, _ = Encoder(tokenizer).record(tuple(made))
    special = sum(len(re.findall(r"<\|\w+\|>", part.text)) for part in made if part.special)
    assert sum(token in tokenizer.all_special_ids for token in tokens.tolist()) == special > 0


def test_the_command_writes_records(book: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain_tokenizer(text).save_pretrained(tmp_path / "model")
    command = ["--data", str(book), "--tokenizer", str(tmp_path / "model"), "--output", str(tmp_path / "keys.jsonl")]
    assert main([*command, "--tokens", "200", "--count", "3"]) == 0
    assert len(list(read_records(tmp_path / "keys.jsonl"))) == 3
    assert main([*command, "--tokens", "50"]) == 2
    assert "at least 100" in capsys.readouterr().err
