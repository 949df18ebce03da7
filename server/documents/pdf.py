"""PDF: the text of each page, a form feed between two. Nothing is drawn, run or fetched; no image is looked at."""

from __future__ import annotations

import io

import pypdf
from pypdf.errors import DependencyError, LimitReachedError

from server.documents.base import PAGE_BREAK, Extracted, Limits, Unreadable

PROTECTED = "the PDF is encrypted; remove its protection first, for example by `qpdf --decrypt`"
SCANNED = "the PDF holds no text, perhaps scanned pages; recognise them first, for example by `ocrmypdf`"
CLEANED = {code: None for code in (*range(32), 127, 0xFFFE, 0xFFFF) if chr(code) not in "\t\n"}


def read(data: bytes, charset: str | None, limits: Limits) -> Extracted:
    """The pages' text; a page that cannot be read makes the file unreadable, so that none is missing unnoticed."""
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("document_encrypted", PROTECTED)
        pages = [_cleaned(page.extract_text()) for page in _pages(reader, limits.pages)]
    except DependencyError:  # of a cipher
        raise Unreadable("document_encrypted", PROTECTED) from None
    except LimitReachedError as error:
        raise Unreadable("document_too_complex", f"the PDF is not read: {error}") from None
    if not any(page.strip() for page in pages):
        raise Unreadable("document_without_text", SCANNED)
    return Extracted(PAGE_BREAK.join(pages) + "\n", pages=len(pages))


def _pages(reader: pypdf.PdfReader, most: int) -> list[pypdf.PageObject]:
    count = len(reader.pages)
    if count > most:
        raise Unreadable("document_too_large", f"the PDF has {count} pages and the limit is {most}; split it")
    return list(reader.pages)


def _cleaned(text: str) -> str:
    """No control characters, and no half surrogate pairs, which faulty fonts give."""
    whole = text.replace("\r\n", "\n").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.translate(CLEANED).strip("\n")
