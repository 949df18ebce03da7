"""Which passages an answer read, in text: token ranges of a session become text and character offsets.

Offsets count from the session's first token, control tokens spelled out. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine import RetrievalReport
from server.pieces import Pieces


def retrieval_body(report: RetrievalReport, tokens: Sequence[int], pieces: Pieces) -> dict[str, Any]:
    """The `retrieval` field of an answer; `tokens` are the session's text tokens."""
    edges = sorted({edge for passage in report.passages for edge in (passage.start, passage.end)})
    offsets = _character_offsets(tokens, edges, pieces)
    passages = [
        {
            "start_token": passage.start,
            "end_token": passage.end,
            "start_char": offsets[passage.start],
            "end_char": offsets[passage.end],
            "text": pieces.text(tokens[passage.start : passage.end]),
            "share": passage.share,
        }
        for passage in report.passages
    ]
    shares = {name: getattr(report, name) for name in ("fetched", "sinks", "local", "estimated")}
    return {"passages": passages, **shares}


def _character_offsets(tokens: Sequence[int], edges: Sequence[int], pieces: Pieces) -> dict[int, int]:
    """How many characters begin before each edge, in one pass over the tokens."""
    offsets, characters, before = {}, 0, 0
    for edge in edges:
        characters += pieces.characters(tokens[before:edge])
        offsets[edge], before = characters, edge
    return offsets
