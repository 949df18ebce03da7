"""The process that reads one file: `python -m server.documents.worker OPTIONS`, the file on stdin, its text on stdout.

Limits itself before it sees the first byte. Whatever goes wrong in it is told as JSON, or by its end.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import math
import resource
import sys
from typing import Any

from server.documents.base import Extracted, Limits, Reader, Unreadable
from server.documents.kinds import HTML, MARKDOWN, PDF, PLAIN

READERS = {PLAIN: "plain", MARKDOWN: "plain", HTML: "html", PDF: "pdf"}
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename")


def main() -> None:
    """Read the file; a line of JSON, then the text in UTF-8."""
    options = json.loads(sys.argv[1])
    limits = Limits(**options["limits"])
    limit(limits)
    logging.disable()
    reader: Reader = importlib.import_module(f"server.documents.{READERS[options['kind']]}").read
    sys.addaudithook(forbid)
    told, text = read(reader, sys.stdin.buffer.read(), options["charset"], limits)
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\n" + text)


def limit(limits: Limits) -> None:
    """Bound what this process may take; the parent's clock is what usually ends one that takes too long."""
    seconds = math.ceil(limits.seconds) + 1
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        hard = resource.getrlimit(kind)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))


def forbid(event: str, arguments: tuple[Any, ...]) -> None:
    """No reader needs the network, another process or a file to write."""
    if event.startswith(FORBIDDEN):
        raise PermissionError(f"{event} is not for readers")


def read(reader: Reader, data: bytes, charset: str | None, limits: Limits) -> tuple[dict[str, Any], bytes]:
    """What to tell, and the text; whatever the reader does, there is an answer."""
    try:
        return checked(reader(data, charset, limits), limits)
    except Unreadable as error:
        return {"code": error.code, "message": str(error)}, b""
    except MemoryError:
        return {"code": "document_too_complex", "message": "reading the file needs more memory than it may take"}, b""
    except Exception as error:  # parsers of damaged files raise anything
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        return {"code": "document_damaged", "message": f"the file is damaged and cannot be read ({reason})"}, b""


def checked(extracted: Extracted, limits: Limits) -> tuple[dict[str, Any], bytes]:
    text = extracted.text.encode()
    if not text:
        raise Unreadable("document_without_text", "the file holds no text")
    if len(text) > limits.text_bytes:
        message = f"the file's text has {len(text)} bytes and the limit is {limits.text_bytes}; split it"
        raise Unreadable("document_too_large", message)
    told = dataclasses.asdict(extracted)
    del told["text"]
    return told, text


if __name__ == "__main__":
    main()
