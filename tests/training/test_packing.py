"""Texts as rows: nothing is lost or cut that must stay together, control tokens are not smuggled in, order is kept."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.bases import plain_tokenizer
from training.packing import Encoder, Feed, HeldOut, Rows, Split, pack
from training.records import InputError, Part, Record, read_records, to_json


@pytest.fixture(scope="module")
def encoder(text: str) -> Encoder:
    return Encoder(plain_tokenizer(text))


def record(text: str, title: str = "", *, whole: bool = False) -> Record:
    return Record(title, (Part(text),), whole)


# -- records -------------------------------------------------------------------------------------------------


def test_files_of_every_kind_are_read(tmp_path: Path) -> None:
    parts = [Part("<|user|>", special=True, weight=0.0), Part("Hello"), Part(" 7", weight=4.0)]
    lines = [json.dumps({"title": "A", "text": "one"}), "", json.dumps({"text": "two"}), to_json(parts)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with lzma.open(tmp_path / "b.jsonl.xz", "wt") as file:
        file.write(lines[0])
    (tmp_path / "c.txt").write_text("three")
    assert list(read_records(tmp_path / "a.jsonl")) == [
        record("one", "A"), record("two"), Record("", tuple(parts), whole=True),
    ]  # fmt: skip
    assert list(read_records(tmp_path / "b.jsonl.xz")) == [record("one", "A")]
    assert list(read_records(tmp_path / "c.txt")) == [record("three", "c")]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"text": 5}', '{"parts": [{"weight": 1}]}',
                                  '{"parts": [{"text": "a", "weight": -1}]}', '{"parts": [{"words": "a"}]}',
                                  '{"parts": [{"text": "a", "special": "no"}]}'])  # fmt: skip
def test_what_is_no_record_is_named_by_file_and_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line)
    with pytest.raises(InputError, match=r"a\.jsonl:2: not a record"):
        list(read_records(tmp_path / "a.jsonl"))


# -- tokens --------------------------------------------------------------------------------------------------


def test_only_special_parts_hold_control_tokens(encoder: Encoder) -> None:
    user = encoder.tokenizer.convert_tokens_to_ids("<|user|>")
    tokens, weights = encoder.record((Part("<|user|>"), Part("<|user|>", special=True, weight=0.5)))
    assert tokens.tolist().count(user) == 1
    assert tokens[-1] == user
    assert weights[-1] == 0.5
    assert encoder.tokenizer.decode(tokens) == "<|user|><|user|>"


def test_nothing_foretells_the_first_token(encoder: Encoder) -> None:
    _, weights = encoder.record((Part("Some words of a text."),))
    assert weights[0] == 0
    assert (weights[1:] == 1).all()


# -- rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opening", [0, 1])
def test_packing_loses_nothing_and_cuts_nothing_that_fits(opening: int) -> None:
    lengths = [3, 25, 10, 9, 1, 40, 7, 7, 2, 10, 0]
    ends = np.cumsum(lengths).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    rows = pack(spans, 10, opening)
    assert sorted(token for row in rows for start, end in row for token in range(start, end)) == list(
        range(sum(lengths))
    )
    assert all(sum(end - start + opening for start, end in row) <= 10 + opening for row in rows)
    for start, end in spans:
        if 0 < end - start <= 10:
            assert any((start, end) in row for row in rows), "it was cut"


def test_short_texts_share_rows() -> None:
    rows = pack([(i, i + 2) for i in range(0, 100, 2)], 10, 0)
    assert len(rows) == 10


def test_a_row_is_its_texts_and_padding_that_nobody_learns(encoder: Encoder) -> None:
    rows = Rows.of([record("First text.", whole=True), record("Second.")], 64, encoder)
    assert len(rows) == 1
    tokens, weights = rows.row(0)
    assert tokens.shape == weights.shape == (64,)
    text = encoder.tokenizer.decode(tokens)
    assert text.startswith("First text.Second.")
    assert set(tokens[-20:]) == {encoder.padding}
    assert not weights[-20:].any()


def test_what_a_tokenizer_puts_before_a_text_stands_before_each(text: str) -> None:
    encoder = Encoder(plain_tokenizer(text, begins=True))
    begin = encoder.tokenizer.bos_token_id
    assert encoder.opening == [begin]
    rows = Rows.of([record("A long text. " * 20), record("Another.")], 32, encoder)
    for number in range(len(rows)):
        tokens, weights = rows.row(number)
        assert tokens[0] == begin
        assert not weights[tokens == begin].any()


def test_a_sample_that_does_not_fit_is_refused(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="does not fit a row of 16; give a longer --length"):
        Rows.of([record("Many words. " * 20, whole=True)], 16, encoder)
    Rows.of([record("Many words. " * 20)], 16, encoder)


# -- what is held out ----------------------------------------------------------------------------------------


def split(encoder: Encoder, apart: HeldOut) -> Split:
    records = [record("First book. " * 60, "First"), record("Second one. " * 60, "Second")]
    return Split.of(records, 16, encoder, apart, seed=1)


def test_a_share_of_the_rows_is_held_out(encoder: Encoder) -> None:
    found = split(encoder, HeldOut(0.2, frozenset()))
    held = [number for rows, number in found.held if rows is found.rows]
    assert len(held) == len(found.held) == round(0.2 * len(found.rows))
    assert sorted(held + found.trained) == list(range(len(found.rows)))


def test_titles_are_held_out(encoder: Encoder) -> None:
    found = split(encoder, HeldOut(0.0, frozenset({"Second"})))
    assert "Second" not in encoder.tokenizer.decode(found.rows.tokens)
    assert len(found.trained) == len(found.rows)
    assert {encoder.tokenizer.decode(rows.tokens) for rows, _ in found.held} == {"Second one. " * 60}


# -- order ---------------------------------------------------------------------------------------------------


def feed(encoder: Encoder, shares: list[float], seed: int = 1) -> Feed:
    files = [Rows.of([record(word * 200)], 16, encoder) for word in ("First. ", "Other! ")]
    return Feed([(rows, list(range(len(rows)))) for rows in files], shares, seed)


def test_an_epoch_sees_each_row_once(encoder: Encoder) -> None:
    fed = feed(encoder, [1.0, 0.0])
    count = len(fed._files[0][0])
    first, second = (fed.batch(count)[0].tolist() for _ in range(2))
    assert first != second
    assert sorted(first) == sorted(second)


def test_shares_tell_how_often_a_file_is_drawn_from(encoder: Encoder) -> None:
    fed = feed(encoder, [1.0, 3.0])
    fed.batch(400)
    assert 70 < fed.drawn[0] < 130


def test_the_order_follows_from_the_seed_and_goes_on(encoder: Encoder) -> None:
    whole, parts = feed(encoder, [1.0, 1.0]), feed(encoder, [1.0, 1.0])
    expected: list[Any] = whole.batch(150)[0].tolist()
    assert expected[:70] == parts.batch(70)[0].tolist()
    later = feed(encoder, [1.0, 1.0])
    later.drawn = parts.drawn
    assert expected[70:] == later.batch(80)[0].tolist()
    assert expected != feed(encoder, [1.0, 1.0], seed=2).batch(150)[0].tolist()
