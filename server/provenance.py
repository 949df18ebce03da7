"""Which passages an answer read, in text: token ranges of a session become text and character offsets.

Offsets count from the session's first token, in its text with control tokens spelled out. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from engine import RetrievalReport
from server.documents.base import PAGE_BREAK
from server.library import Shelved
from server.pieces import Pieces, TextStream


def retrieval_body(
    report: RetrievalReport, tokens: Sequence[int], pieces: Pieces, documents: Sequence[Shelved] = ()
) -> dict[str, Any]:
    """The `retrieval` field of an answer; `tokens` are the session's text tokens."""
    passages = [(passage.start, passage.end) for passage in report.passages]
    found = excerpts(tokens, passages, pieces, documents)
    shares = {name: getattr(report, name) for name in ("fetched", "sinks", "local", "estimated")}
    told = [{**text, "share": passage.share} for text, passage in zip(found, report.passages, strict=True)]
    return {"passages": told, **shares}


def excerpts(
    tokens: Sequence[int], ranges: Sequence[tuple[int, int]], pieces: Pieces, documents: Sequence[Shelved] = ()
) -> list[dict[str, Any]]:
    """Ranges of tokens as clients see them: `text` is the whole text from `start_char` to `end_char`.

    A range of which most lies in one of the `documents` has its name, and the page that it begins on.
    """
    held = [each for each in documents if any(_most_in(edges, each) for edges in ranges) and each.is_in(tokens)]
    holders = [next((each for each in held if _most_in(edges, each)), None) for edges in ranges]
    starts = {holder.start for holder in holders if holder}
    text, offsets = located(tokens, {edge for edges in ranges for edge in edges} | starts, pieces)
    return [
        {
            "start_token": start,
            "end_token": end,
            "start_char": offsets[start],
            "end_char": offsets[end],
            "text": text[offsets[start] : offsets[end]],
            **_reference(holder, text, offsets, (start, end)),
        }
        for (start, end), holder in zip(ranges, holders, strict=True)
    ]


def _most_in(edges: tuple[int, int], document: Shelved) -> bool:
    start, end = edges
    return 2 * (min(end, document.end) - max(start, document.start)) > end - start


def _reference(holder: Shelved | None, text: str, offsets: dict[int, int], edges: tuple[int, int]) -> dict[str, Any]:
    """What of a range is blank may still be the page before."""
    if holder is None:
        return {}
    first, start, end = (offsets[edge] for edge in (holder.start, *edges))
    blank = len(text[start:end]) - len(text[start:end].lstrip())
    before = text.count(PAGE_BREAK, first, max(first, start + blank))
    return {"document": holder.name, "page": None if holder.pages is None else before + 1}


def located(tokens: Sequence[int], edges: Iterable[int], pieces: Pieces) -> tuple[str, dict[int, int]]:
    """The text before the last edge, and where each edge cuts it; a character is never cut, it comes after the edge."""
    stream, text, offsets, before = TextStream(), "", {}, 0
    for edge in sorted(edges):
        text += stream.push(pieces.data(tokens[before:edge]))
        if edge == len(tokens):
            text += stream.finish()
        offsets[edge], before = len(text), edge
    return text, offsets
