"""The demo's long text: loading, cutting, repeating, and where a line can be put."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.demo.errors import TextError
from clients.demo.text import boundaries, fit, load, long_text, pieces, reference, source


def words(text: str) -> int:
    """A stand-in for the server's tokenizer."""
    return len(text.split())


def test_the_reference_is_a_long_text() -> None:
    assert len(reference()) > 400_000


@pytest.mark.parametrize("wanted", [50, 5_000, 150_000])
def test_a_text_is_cut_or_repeated_to_a_little_more_than_wanted(wanted: int) -> None:
    assert wanted - 5 <= words(fit(reference(), wanted, words)) < wanted + 1000


def test_a_text_without_tokens_can_not_be_fitted() -> None:
    with pytest.raises(TextError, match="no tokens"):
        fit("...", 10, lambda _: 0)


@pytest.mark.parametrize("text", [reference()[:30_000], "x" * 9_999, "one word " * 3000, "short", "A line.\r\n" * 2000])
def test_pieces_joined_give_the_text_back(text: str) -> None:
    parts = list(pieces(text))
    assert "".join(parts) == text
    assert all(parts)
    assert all(len(part) <= 4000 for part in parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\n\ntwo\n\nthree", ["one\n\n", "two\n\n"]),
        ("one\ntwo\nthree", ["one\n", "two\n"]),
        ("One. Two! Three", ["One. ", "Two! "]),
        ("one two", ["one "]),
        ("one", []),
    ],
)
def test_lines_are_put_at_the_coarsest_border(text: str, expected: list[str]) -> None:
    ends = boundaries(text)
    assert [text[start:end] for start, end in zip([0, *ends], ends, strict=False)] == expected


def test_a_book_with_few_lines_is_split_at_sentences() -> None:
    chapter = "It rained. " * 1000
    assert len(boundaries(f"{chapter}\n\n{chapter}")) > 1000


def test_a_file_keeps_its_length(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\ufeffOnce upon a time.\n", encoding="utf-8")
    assert long_text(source(path), None, words) == "Once upon a time.\n"
    assert source(path).title == "book.txt"


def test_a_file_is_repeated_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("Once upon a time.\n", encoding="utf-8")
    assert long_text(source(path), 10, words).count("Once") == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"caf\xe9", "not UTF-8 text: byte 3"), (b" \n ", "no text"), (None, "No such file")],
)
def test_a_file_that_holds_no_text_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "book.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TextError, match=message):
        load(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="can not be read"):
        load(tmp_path)
