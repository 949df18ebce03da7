"""Plain text and Markdown: kept as they are."""

from __future__ import annotations

from server.documents.base import Extracted, Limits
from server.documents.decoding import decode


def read(data: bytes, charset: str | None, limits: Limits) -> Extracted:
    """The file's characters, all of them."""
    text, encoding = decode(data, charset)
    return Extracted(text, encoding=encoding)
