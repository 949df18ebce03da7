"""Which passages an answer read, in text: token ranges of a session become text and character offsets.

Offsets count from the session's first token, in its text with control tokens spelled out. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from engine import RetrievalReport
from server.pieces import Pieces, TextStream


def retrieval_body(report: RetrievalReport, tokens: Sequence[int], pieces: Pieces) -> dict[str, Any]:
    """The `retrieval` field of an answer; `tokens` are the session's text tokens."""
    passages = [(passage.start, passage.end) for passage in report.passages]
    found = excerpts(tokens, passages, pieces)
    shares = {name: getattr(report, name) for name in ("fetched", "sinks", "local", "estimated")}
    told = [{**text, "share": passage.share} for text, passage in zip(found, report.passages, strict=True)]
    return {"passages": told, **shares}


def excerpts(tokens: Sequence[int], ranges: Sequence[tuple[int, int]], pieces: Pieces) -> list[dict[str, Any]]:
    """Ranges of tokens as clients see them: `text` is the whole text from `start_char` to `end_char`."""
    text, offsets = located(tokens, {edge for edges in ranges for edge in edges}, pieces)
    return [
        {
            "start_token": start,
            "end_token": end,
            "start_char": offsets[start],
            "end_char": offsets[end],
            "text": text[offsets[start] : offsets[end]],
        }
        for start, end in ranges
    ]


def located(tokens: Sequence[int], edges: Iterable[int], pieces: Pieces) -> tuple[str, dict[int, int]]:
    """The text before the last edge, and where each edge cuts it; a character is never cut, it comes after the edge."""
    stream, text, offsets, before = TextStream(), "", {}, 0
    for edge in sorted(edges):
        text += stream.push(pieces.data(tokens[before:edge]))
        if edge == len(tokens):
            text += stream.finish()
        offsets[edge], before = len(text), edge
    return text, offsets
