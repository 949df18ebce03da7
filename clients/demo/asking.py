"""A question in a session, and how long its answer took. Knows nothing about facts or printing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cairn_client import Cairn, Passage, Session, TextPiece


@dataclass(frozen=True)
class Told:
    """What came back for a question.

    Attributes:
        first: seconds to the first piece of text; seconds: to the end of the stream
        prompt_tokens: the whole session before the answer; cached_tokens: the part that was not computed again
    """

    text: str
    first: float
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    passages: tuple[Passage, ...]


def ask(cairn: Cairn, session: Session, question: str, heard: Callable[[str], None]) -> Told:
    """Ask in the session; `heard` gets the answer's text as it comes."""
    start = time.perf_counter()
    first: float | None = None
    asked = cairn.chat_stream(
        question, session=session, temperature=0, max_tokens=40, retrieval={"provenance": True, "passages": 3}
    )
    with asked as stream:
        for event in stream:
            if isinstance(event, TextPiece):
                first = first or time.perf_counter() - start
                heard(event.text)
    seconds = time.perf_counter() - start
    answer, usage = stream.answer, stream.answer.usage
    tokens = (usage.prompt_tokens, usage.cached_tokens) if usage else (0, 0)
    return Told(answer.text, first or seconds, seconds, *tokens, answer.passages)
