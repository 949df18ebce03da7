"""Whatever bytes a file has, there is an answer: a text, or what is wrong with the file; never a failure of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server.documents import html, pdf, plain
from server.documents.base import Limits, Reader, Unreadable
from server.documents.kinds import KINDS, kind_of
from server.documents.worker import read
from tests.server.conftest import Start
from tests.server.pdfs import encrypted, pdf_of
from tests.server.test_sessions import create

LIMITS = Limits(file_bytes=1 << 20, text_bytes=100_000, pages=5, seconds=10, memory_bytes=1 << 30)
PDFS = (pdf_of("A page of text.", "Another: 71432."), encrypted(pdf_of("Secret."), "word"), pdf_of(""))
PAGE = """<!DOCTYPE html><meta charset=utf-8><h1>Größe</h1><p>A <b>b</b><ul><li>c<ol start=2><li>d</ol></ul><table>
<tr><td>e<td><pre>f\n g</pre></table><![CDATA[h]]><!-- i --><svg><p>j<script>k</script>&amp;&#x41;<br/>""".encode()
MARKUP = (
    "< > / ! - [ ] & ; # = \" ' p li ul ol td tr table h1 svg script meta <p> </p> <pre> <td> </ul> <![ <!--".split()
)
CHARSETS = st.sampled_from([None, "utf-8", "utf-16", "cp1252", "klingon", "rot13", "idna", "\0"])
fast = settings(max_examples=40, deadline=None)


@st.composite
def mutilated(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file cut off, with some bytes changed, and perhaps more behind."""
    data = bytearray(whole[: draw(st.integers(0, len(whole)))])
    for place, byte in draw(st.lists(st.tuples(st.integers(0, len(whole)), st.integers(0, 255)), max_size=8)):
        if place < len(data):
            data[place] = byte
    return bytes(data) + draw(st.binary(max_size=20))


def answered(reader: Reader, data: bytes, charset: str | None) -> str:
    """The code of a refusal; empty for a text, which is one that can be sent and read."""
    told, text = read(reader, data, charset, LIMITS)
    json.dumps(told)
    if "code" in told:
        assert told["message"]
        assert not text
        return str(told["code"])
    assert 0 < len(text) <= LIMITS.text_bytes
    assert not set(text.decode()) & {chr(code) for code in (0, 1, 8, 127, 0xFFFE)}
    assert told.keys() == {"pages", "encoding"}
    return ""


@given(st.binary(max_size=500), CHARSETS)
@fast
def test_any_bytes_as_text(data: bytes, charset: str | None) -> None:
    assert answered(plain.read, data, charset) in ("", "document_not_text", "document_without_text")


@given(
    mutilated(PAGE) | st.lists(st.sampled_from(MARKUP) | st.text(max_size=3), max_size=60).map("".join).map(str.encode)
)
@example(b"<![foo]>bar")
@example(b"<p>a" + b"<" * 100)
@settings(fast, max_examples=120)
def test_any_bytes_as_html(data: bytes) -> None:
    assert answered(html.read, data, None) in ("", "document_not_text", "document_without_text")


@given(st.sampled_from(PDFS).flatmap(mutilated) | st.binary(max_size=200).map(b"%PDF-1.7\n".__add__))
@settings(fast, max_examples=150)
def test_any_bytes_as_pdf(data: bytes) -> None:
    assert answered(pdf.read, data, None) != "unsupported_media_type"


@given(st.text(max_size=40), st.text(max_size=20), st.binary(max_size=40))
@fast
def test_every_file_has_a_kind_or_none(content_type: str, name: str, data: bytes) -> None:
    try:
        found = kind_of(content_type, name, data)
    except Unreadable as error:
        found = error.code
    assert found in {*KINDS, "unsupported_media_type"}


@pytest.fixture(scope="module")
def fuzzed(start: Start, tiny_folder: Path) -> Iterator[httpx.Client]:
    with start(tiny_folder, document_seconds=10) as (client, _):
        yield client


@pytest.mark.slow
@given(
    st.sampled_from([*PDFS, PAGE]).flatmap(mutilated) | st.binary(max_size=500),
    st.text(max_size=20),
    st.sampled_from(["", "text/plain", "text/html", "application/pdf", "text/html; charset=utf-16", "image/png"]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_server_answers_any_file(fuzzed: httpx.Client, data: bytes, name: str, content_type: str) -> None:
    session = create(fuzzed)
    part = (name or "x", data, content_type) if content_type else (name or "x", data)
    response = fuzzed.post(f"/v1/sessions/{session}/documents", files={"file": part})
    assert response.status_code in (200, 400, 413, 415, 422), response.text
    tokens = fuzzed.get(f"/v1/sessions/{session}").json()["tokens"]
    assert (tokens > 0) == (response.status_code == 200)
    fuzzed.delete(f"/v1/sessions/{session}")
