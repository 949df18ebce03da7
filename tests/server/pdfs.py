"""Small PDFs, written by hand."""

from __future__ import annotations

import io
import zlib

import pypdf


def pdf_of(*pages: str) -> bytes:
    """A PDF whose pages have these lines of text."""
    return pdf_with(*(_content(page.splitlines()) for page in pages))


def pdf_with(*contents: bytes) -> bytes:
    """A PDF whose pages are drawn by these operators."""
    kids = " ".join(f"{3 + 2 * number} 0 R" for number in range(len(contents)))
    catalogue = b"<< /Type /Catalog /Pages 2 0 R >>"
    objects = [catalogue, f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>".encode()]
    font = b"<< /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    for number, content in enumerate(contents):
        box = b"/MediaBox [0 0 612 792] /Resources " + font
        objects.append(b"<< /Type /Page /Parent 2 0 R %s /Contents %d 0 R >>" % (box, 4 + 2 * number))
        objects.append(stream(content))
    return assembled(objects)


def assembled(objects: list[bytes]) -> bytes:
    """A PDF of these objects, of which the first is the catalogue."""
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start, size = len(data), len(objects) + 1
    data += b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
    return data + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, start)


def stream(content: bytes) -> bytes:
    packed = zlib.compress(content)
    return b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(packed), packed)


def encrypted(plain: bytes, password: str) -> bytes:
    """The same, to be opened with a password; none is needed if it is empty."""
    writer, packed = pypdf.PdfWriter(io.BytesIO(plain)), io.BytesIO()
    writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    writer.write(packed)
    return packed.getvalue()


def _content(lines: list[str]) -> bytes:
    shown = " ".join(f"({line}) Tj T*" for line in lines)
    return f"BT /F 12 Tf 72 720 Td 14 TL {shown} ET".encode("latin-1")
