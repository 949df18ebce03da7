"""Which format a file has: by the content type that its sender names, else by its name, else by its first bytes."""

from __future__ import annotations

from pathlib import PurePath

from server.documents.base import Unreadable

PLAIN, MARKDOWN, HTML, PDF = KINDS = ("text/plain", "text/markdown", "text/html", "application/pdf")
TYPES = {"text/x-markdown": MARKDOWN, "application/xhtml+xml": HTML, "application/x-pdf": PDF, **{k: k for k in KINDS}}
TEXTUAL = ("json", "xml", "yaml", "javascript", "toml", "sql", "x-sh", "x-tex", "x-ndjson")
UNTOLD = ("", "application/octet-stream", "binary/octet-stream", "application/x-unknown")
ENDINGS = {
    ".md": MARKDOWN, ".markdown": MARKDOWN, ".html": HTML, ".htm": HTML, ".xhtml": HTML, ".pdf": PDF, ".txt": PLAIN,
}  # fmt: skip
FIRST = 1024
OPENINGS = (b"<!doctype html", b"<html", b"<head", b"<body")


def kind_of(content_type: str, name: str, data: bytes) -> str:
    """One of KINDS; raises Unreadable for a content type of another kind."""
    told = content_type.partition(";")[0].strip().lower()
    if told not in UNTOLD:
        return _of_type(told)
    return ENDINGS.get(PurePath(name).suffix.lower()) or _of_content(data[:FIRST])


def charset_of(content_type: str) -> str | None:
    """The encoding that a content type names."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"') or None
    return None


def _of_type(told: str) -> str:
    main, _, sub = told.partition("/")
    if told in TYPES:
        return TYPES[told]
    if main == "text" or sub.rpartition("+")[2] in TEXTUAL:
        return PLAIN
    advice = "send plain text, Markdown, HTML or PDF; convert other files first"
    raise Unreadable("unsupported_media_type", f"{told[:100]} cannot be read: {advice}")


def _of_content(first: bytes) -> str:
    if b"%PDF-" in first:
        return PDF
    start = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    is_html = start.startswith(OPENINGS) or (start.startswith(b"<?xml") and b"<html" in start)
    return HTML if is_html else PLAIN
