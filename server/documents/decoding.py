"""Bytes become characters, by a rule that can be told in a line; nothing is guessed that could be wrong unnoticed.

In this order: a byte order mark; the encoding that the file's sender, or the file, names; UTF-8; UTF-16 without a mark,
which shows in its zero bytes; Windows-1252, if that gives Western text. What is left is refused: its sender must name
the encoding. The names of encodings mean what browsers take them for.
"""

from __future__ import annotations

import codecs

from server.documents.base import Unreadable

MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
         (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))  # fmt: skip
WIDER = {"iso8859-1": "cp1252", "ascii": "cp1252", "shift_jis": "cp932", "gb2312": "gb18030", "gbk": "gb18030",
         "euc_kr": "cp949", "big5": "big5hkscs", "iso8859-9": "cp1254"}  # fmt: skip
REFUSED = ("utf-7", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "unicode-escape")
FOREIGN = 0.5
"""Above this share of non-ASCII letters, what decodes as Windows-1252 is most likely something else."""
CONTROLS = {*range(32), *range(127, 160)} - {*b"\t\n\v\f\r\x1b\x85"}
BINARY_BYTES = CONTROLS & {*range(32)}
BINARY = "the file holds binary data; send plain text, Markdown, HTML or PDF"
ADVICE = "name its encoding in the content type (text/plain; charset=...), or save it as UTF-8"


def decode(data: bytes, charset: str | None) -> tuple[str, str]:
    """The text, and the encoding; raises Unreadable.

    Args:
        charset: the encoding that is named for the file
    """
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], encoding), encoding
    if charset is not None:
        encoding = _known(charset)
        return _decoded(data, encoding), encoding
    return _unnamed(data)


def _unnamed(data: bytes) -> tuple[str, str]:
    try:
        text, encoding = data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        encoding = _wide(data) or "windows-1252"
        if encoding == "windows-1252" and BINARY_BYTES & {*data}:
            raise Unreadable("document_not_text", BINARY) from None
        text = _decoded(data, encoding)
        if encoding == "windows-1252" and _foreign(text):
            raise Unreadable("document_not_text", f"the file is not in UTF-8; {ADVICE}") from None
    if "\0" in text and (wide := _wide(data)):
        text, encoding = _decoded(data, wide), wide
    return _checked(text), encoding


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return _checked(data.decode(encoding))
    except UnicodeDecodeError as error:
        message = f"the file is not text in {encoding}: byte {error.start} does not fit; {ADVICE}"
        raise Unreadable("document_not_text", message) from None


def _checked(text: str) -> str:
    """No text has these characters; binary data have."""
    if not text.isprintable() and any(ord(each) in CONTROLS for each in set(text)):
        raise Unreadable("document_not_text", BINARY)
    return text


def _known(charset: str) -> str:
    try:
        found = codecs.lookup(charset)
        if found.name not in REFUSED and found._is_text_encoding:
            return WIDER.get(found.name, found.name)
    except (LookupError, ValueError):
        pass
    raise Unreadable("document_not_text", f"the encoding {charset[:40]!r} is not known; save the file as UTF-8")


def _wide(data: bytes) -> str | None:
    """UTF-16 of mostly Western text has zeros at every other place."""
    first = data[:1024]
    even, odd = first[0::2].count(0), first[1::2].count(0)
    if max(even, odd) * 4 < len(first) or min(even, odd) * 8 > max(even, odd) or len(data) % 2:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _foreign(text: str) -> bool:
    letters = [each for each in text if each.isalpha()]
    return sum(not each.isascii() for each in letters) > FOREIGN * len(letters)
