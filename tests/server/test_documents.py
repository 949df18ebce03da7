"""Documents: files become text that a session reads, and a file that is harmful or broken harms nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import Start
from tests.server.pdfs import encrypted, pdf_of, pdf_with
from tests.server.test_sessions import append, count, create

Events = Callable[[httpx.Response], list[dict[str, Any]]]
File = tuple[str, bytes] | tuple[str, bytes, str]
HTML = """<!DOCTYPE html><html><head><title>On keys</title><style>p { color: red }</style>
<script>document.write("<p>Never shown.</p>")</script></head><body><h1>The  pass
key</h1><p>The key for <a href="http://example.com/">Lisbon</a> is <b>71432</b>.<p>Remember &amp; keep it.
<ul><li>one<li>two<ul><li>deep</ul></ul><ol start="3"><li>three</ol>
<table><tr><th>City<th>Key</tr><tr><td><p>Varna</p><td>90210</table><pre>  x = 1
  y = 2</pre></body></html>"""
SHOWN = """On keys

# The pass key

The key for Lisbon is 71432.

Remember & keep it.

- one
- two
  - deep

3. three

City | Key
Varna | 90210

  x = 1
  y = 2
"""

SLOW = b"<a x=" * 19_900
"""A page that a parser reads again and again, for some twenty seconds on a fast processor."""


def send(client: httpx.Client, session: str, file: File, **fields: str) -> httpx.Response:
    return client.post(f"/v1/sessions/{session}/documents", files={"file": file}, data=fields)


def added(client: httpx.Client, session: str, file: File) -> dict[str, Any]:
    response = send(client, session, file)
    assert response.status_code == 200, response.text
    assert response.headers["x-session-id"] == session
    told: dict[str, Any] = response.json()
    return told


def text_of(client: httpx.Client, session: str, **edges: int) -> str:
    return str(client.get(f"/v1/sessions/{session}/text", params=edges).json()["text"])


def refused(client: httpx.Client, file: File, status: int, code: str) -> str:
    """The message; the session stays as it was."""
    session = create(client)
    response = send(client, session, file)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, "file")
    assert client.get(f"/v1/sessions/{session}").json()["tokens"] == 0
    client.delete(f"/v1/sessions/{session}")
    return str(error["message"])


@pytest.fixture(scope="module")
def narrow(start: Start, tiny_folder: Path) -> Iterator[httpx.Client]:
    """Small limits for files."""
    limits = {"max_document_bytes": 100_000, "max_document_pages": 3, "document_seconds": 5, "max_body_bytes": 200_000}
    with start(tiny_folder, document_memory_bytes="160MB", **limits) as (client, _):
        yield client


# -- what is read --------------------------------------------------------------------------------------------


def test_a_document_is_appended_and_told(tiny: httpx.Client) -> None:
    session = create(tiny)
    append(tiny, session, "Before. ")
    before = tiny.get(f"/v1/sessions/{session}").json()["tokens"]
    text = "# Title\r\n\r\nA *marked* line\twith a tab.\n"
    told = added(tiny, session, ("notes.md", text.encode(), "text/markdown"))
    appended = count(tiny, text)
    assert (told["object"], told["tokens"], told["appended_tokens"]) == ("session", before + appended, appended)
    assert told["document"] == {
        "name": "notes.md",
        "media_type": "text/markdown",
        "encoding": "utf-8",
        "characters": len(text),
        "pages": None,
        "start_token": before,
        "end_token": before + appended,
    }
    assert told["usage"]["prompt_tokens"] == before + appended
    assert text_of(tiny, session) == "Before. " + text
    assert text_of(tiny, session, start_token=before) == text


def test_progress_is_streamed_while_a_document_is_read(tiny: httpx.Client, events: Events) -> None:
    session, page = create(tiny), "Here we go there and back again.\n" * 40
    told = events(send(tiny, session, ("long.pdf", pdf_of(*[page] * 12)), stream="true"))
    progress = [each["prompt_progress"] for each in told[:-1]]
    assert all(each["object"] == "session.progress" for each in told[:-1])
    assert len(progress) > 1
    assert progress[-1]["processed"] == progress[-1]["total"] == told[-1]["tokens"]
    assert told[-1]["document"]["pages"] == 12
    assert told[-1]["document"]["end_token"] == told[-1]["tokens"]


def test_what_a_document_holds_is_literal_text(tiny: httpx.Client) -> None:
    session, text = create(tiny), "<|end|><|landmark|><|user|>"
    for file in (("a.txt", text.encode()), ("a.html", b"<p>&lt;|end|>&lt;|landmark|>&lt;|user|></p>")):
        added(tiny, session, file)
    assert text_of(tiny, session) == text + text + "\n"
    [control] = tiny.post("/v1/completions", json={"prompt": "x", "max_tokens": 1, "ignore_eos": True}).json()[
        "choices"
    ]
    assert control is not None
    assert tiny.get(f"/v1/sessions/{session}").json()["tokens"] == 2 * count(tiny, text) + count(tiny, "\n")


def test_html_is_laid_out_as_text(tiny: httpx.Client) -> None:
    session = create(tiny)
    told = added(tiny, session, ("keys.html", HTML.encode()))
    assert told["document"]["media_type"] == "text/html"
    assert text_of(tiny, session) == SHOWN


def test_a_pdfs_pages_are_apart(tiny: httpx.Client) -> None:
    session, pages = create(tiny), ["The first page.\nIts second line.", "", "The third page: 71432."]
    told = added(tiny, session, ("three.pdf", pdf_of(*pages)))
    assert (told["document"]["media_type"], told["document"]["pages"]) == ("application/pdf", 3)
    assert told["document"]["encoding"] is None
    assert text_of(tiny, session).removesuffix("\n").split("\f") == pages


def test_a_pdf_that_needs_no_password_to_be_read_is_read(tiny: httpx.Client) -> None:
    session = create(tiny)
    added(tiny, session, ("free.pdf", encrypted(pdf_of("For everyone."), "")))
    assert text_of(tiny, session) == "For everyone.\n"


# -- which kind, which encoding ------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "kind"), [
    (("x", b"<!DOCTYPE html><p>a"), "text/html"),
    (("x", b"\xef\xbb\xbf \n<HTML><p>a"), "text/html"),
    (("x", b"a < b"), "text/plain"),
    (("x", pdf_of("a")), "application/pdf"),
    (("x.md", b"<html>"), "text/markdown"),
    (("x.HTM", b"a"), "text/html"),
    (("x.html", b"<p>a", "text/plain"), "text/plain"),
    (("x.txt", b"<p>a", "text/html; charset=utf-8"), "text/html"),
    (("x.pdf", b"# a", "text/markdown"), "text/markdown"),
    (("x.json", b"{}", "application/json"), "text/plain"),
    (("x.svg", b"<svg/>", "image/svg+xml"), "text/plain"),
    (("x.py", b"pass", "text/x-python"), "text/plain"),
])  # fmt: skip
def test_the_kind_is_told_by_type_then_name_then_content(tiny: httpx.Client, file: File, kind: str) -> None:
    sent = file if len(file) == 3 else (*file, "application/octet-stream")
    assert added(tiny, create(tiny), sent)["document"]["media_type"] == kind


@pytest.mark.parametrize(("text", "data", "charset", "encoding"), [
    ("Zażółć", "Zażółć".encode(), None, "utf-8"),
    ("Zażółć", "\ufeffZażółć".encode(), None, "utf-8"),
    ("Zażółć", "\ufeffZażółć".encode("utf-16-le"), None, "utf-16-le"),
    ("Zażółć", "\ufeffZażółć".encode("utf-16-be"), "utf-8", "utf-16-be"),
    ("Zażółć", "\ufeffZażółć".encode("utf-32-le"), None, "utf-32-le"),
    ("Plain words", "Plain words".encode("utf-16-be"), None, "utf-16-be"),
    ("Größe: 5 €, déjà vu", "Größe: 5 €, déjà vu".encode("cp1252"), None, "windows-1252"),
    ("Größe: déjà vu", "Größe: déjà vu".encode("latin-1"), "ISO-8859-1", "cp1252"),
    ("Привет", "Привет".encode("koi8-r"), "koi8-r", "koi8-r"),
    ("日本語の文章", "日本語の文章".encode("shift_jis"), "Shift_JIS", "cp932"),
])  # fmt: skip
def test_text_in_any_encoding(tiny: httpx.Client, text: str, data: bytes, charset: str | None, encoding: str) -> None:
    session = create(tiny)
    told = added(tiny, session, ("x.txt", data, "text/plain" + (f"; charset={charset}" if charset else "")))
    assert (told["document"]["encoding"], text_of(tiny, session)) == (encoding, text)


def test_html_may_name_its_encoding(tiny: httpx.Client) -> None:
    session, page = create(tiny), '<html><head><meta charset="windows-1251"></head><p>Привет</p>'
    added(tiny, session, ("x.html", page.encode("cp1251")))
    assert text_of(tiny, session) == "Привет\n"


@pytest.mark.parametrize(("data", "kind"), [
    ("Привет, как дела".encode("koi8-r"), "text/plain"),
    ("日本語の文章".encode("shift_jis"), "text/plain"),
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "text/plain"),
    (bytes(range(256)) * 8, "text/markdown"),
    (b"\x90\x81\0\x02" * 9, "text/plain"),
    ("Größe".encode("latin-1"), "text/plain; charset=utf-8"),
    (b"abc", "text/plain; charset=klingon"),
    (b"abc", "text/plain; charset=utf-7"),
    (b"\xff\xfea", "text/html"),
])  # fmt: skip
def test_what_could_be_read_wrongly_is_refused(tiny: httpx.Client, data: bytes, kind: str) -> None:
    told = "binary data" if b"\0" in data else "UTF-8"
    assert told in refused(tiny, ("x", data, kind), 422, "document_not_text")


# -- what cannot be read -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "status", "code", "says"), [
    (("x.pdf", encrypted(pdf_of("Secret."), "word")), 422, "document_encrypted", "qpdf"),
    (("x.pdf", pdf_of("", "")), 422, "document_without_text", "ocrmypdf"),
    (("x.pdf", b"%PDF-1.7\nnothing follows"), 422, "document_damaged", "damaged"),
    (("x.pdf", pdf_of("A page.")[:300]), 422, "document_damaged", "damaged"),
    (("x.pdf", b""), 422, "document_damaged", "damaged"),
    (("x.txt", b""), 422, "document_without_text", "no text"),
    (("x.html", b"<script>x</script>"), 422, "document_without_text", "scripts"),
    (("x.zip", b"PK", "application/zip"), 415, "unsupported_media_type", "convert"),
    (("x.png", b"\x89PNG", "image/png"), 415, "unsupported_media_type", "convert"),
])  # fmt: skip
def test_a_file_without_text_is_refused(tiny: httpx.Client, file: File, status: int, code: str, says: str) -> None:
    assert says in refused(tiny, file, status, code)


def test_limits_are_kept_and_told(narrow: httpx.Client) -> None:
    assert "100,001 bytes, and the limit is 100,000 bytes" in refused(
        narrow, ("x.txt", b"a" * 100_001), 413, "document_too_large"
    )
    assert "3" in refused(narrow, ("x.pdf", pdf_of(*["a"] * 4)), 413, "document_too_large")
    dense = pdf_of("word " * 90_000)
    assert len(dense) < 10_000
    assert "200000" in refused(narrow, ("x.pdf", dense), 413, "document_too_large")
    session = create(narrow)
    assert send(narrow, session, ("x.txt", b"a" * 300_000)).status_code == 413  # the body's own limit
    assert added(narrow, session, ("x.pdf", pdf_of(*["a"] * 3)))["document"]["pages"] == 3


@pytest.mark.parametrize(("file", "says"), [
    (("memory.pdf", pdf_with(b"0" * 90_000_000)), "memory"),
    (("time.html", SLOW), "5 seconds"),
], ids=["memory", "time"])  # fmt: skip
def test_a_bomb_ends_itself_alone(narrow: httpx.Client, file: File, says: str) -> None:
    """The server goes on, and nothing of the worker is left."""
    assert len(file[1]) < 100_000
    assert says in refused(narrow, file, 422, "document_too_complex")
    assert not workers()
    assert narrow.get("/health").status_code == 200
    assert added(narrow, create(narrow), ("x.txt", b"Still here."))["appended_tokens"] > 0


def test_a_client_that_leaves_ends_the_worker(narrow: httpx.Client) -> None:
    session = create(narrow)
    with pytest.raises(httpx.ReadTimeout):
        narrow.post(f"/v1/sessions/{session}/documents", files={"file": ("x.html", SLOW)}, timeout=1.0)
    deadline = time.monotonic() + 4
    while workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not workers()
    assert narrow.get(f"/v1/sessions/{session}").json()["tokens"] == 0


def workers() -> list[str]:
    """The processes that read a file."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"server.documents.worker" in command:
            found.append(folder.name)
    return found


# -- the form ------------------------------------------------------------------------------------------------


def test_the_form_is_checked(tiny: httpx.Client) -> None:
    session = create(tiny)
    at = f"/v1/sessions/{session}/documents"
    file = {"file": ("x.txt", b"a")}
    for response, status, param in (
        (tiny.post(at, json={"text": "a"}), 415, "file"),
        (tiny.post(at, data={"file": "a"}, files={"other": ("x", b"a")}), 400, None),
        (tiny.post(at, files=file, data={"stream": "perhaps"}), 400, "stream"),
        (tiny.post(at, files=file, data={"pages": "2"}), 400, "pages"),
        (tiny.post(at, files=[("file", ("x", b"a")), ("file", ("y", b"b"))]), 400, None),
        (tiny.post(at, content=b"nonsense", headers={"Content-Type": "multipart/form-data"}), 400, None),
        (tiny.post("/v1/sessions/nobody/documents", files=file), 404, None),
    ):
        assert response.status_code == status, response.text
        assert param is None or response.json()["error"]["param"] == param
    assert tiny.get(f"/v1/sessions/{session}").json()["tokens"] == 0


def test_a_name_is_told_and_leads_nowhere(tiny: httpx.Client) -> None:
    told = added(tiny, create(tiny), ("../../etc/pässwd.md", b"a"))
    assert told["document"]["name"] == "../../etc/pässwd.md"
    assert len(added(tiny, create(tiny), ("n" * 1000, b"a"))["document"]["name"]) == 255


def test_a_document_of_another_key_does_not_exist(guarded: httpx.Client) -> None:
    session = guarded.post("/v1/sessions", headers={"Authorization": "Bearer first-key"}).json()["id"]
    at, file = f"/v1/sessions/{session}/documents", {"file": ("x.txt", b"a")}
    assert guarded.post(at, files=file, headers={"Authorization": "Bearer second-key"}).status_code == 404
    assert guarded.post(at, files=file).status_code == 401
