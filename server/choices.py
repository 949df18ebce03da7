"""From tokens to the text of an answer: one `Choice` per answer, fed token by token.

Owns decoding, stop strings and log-probabilities in words. Knows no HTTP and no engine thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine import Finished, Scored, Token
from server.pieces import Pieces, TextStream
from server.stops import StopScanner

LEAST = -9999.0  # JSON has no minus infinity; OpenAI and vLLM use this too


@dataclass(frozen=True)
class Piece:
    """A token in words: its text, its exact bytes and its log-probability; the first one of a prompt has none."""

    text: str
    data: bytes
    logprob: float | None


@dataclass(frozen=True)
class ScoredToken:
    """A token of an answer, or of a prompt that is repeated, and the most likely ones at its place."""

    chosen: Piece
    top: tuple[Piece, ...]


@dataclass(frozen=True)
class Delta:
    """What one choice gained."""

    index: int
    text: str
    scored: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True)
class Ended:
    """One choice is complete; `reason` is OpenAI's finish_reason, `tokens` what was generated up to it."""

    index: int
    reason: str
    finished: Finished
    tokens: tuple[int, ...] = ()


@dataclass
class Choice:
    """One answer in the making; `index` is its number in the response."""

    index: int
    pieces: Pieces
    stops: Sequence[str] = ()
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._text = TextStream()
        self._scanner = StopScanner(self.stops)
        self._scored: list[ScoredToken] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._scanner.stopped

    def push(self, token: Token) -> Delta | None:
        """What `token` makes certain; None while everything waits for more."""
        if self.stopped:  # the engine had computed it before it learned of the stop
            return None
        self.tokens.append(token.token)
        if token.logprob is not None:
            self._scored.append(self._score(token))
        text = self._scanner.push(self._text.push(self.pieces.shown(token.token)))
        return self._delta(text) if text or self.stopped else None

    def prompted(self, event: Scored) -> Delta:
        """Tokens of the prompt, whose text is the caller's to repeat."""
        return Delta(self.index, "", tuple(self._score(token) for token in event.tokens))

    def finish(self, event: Finished) -> tuple[Delta | None, Ended]:
        """The text that waited, and the end."""
        text = self._scanner.push(self._text.finish())
        text += self._scanner.finish()
        reason = "stop" if self.stopped else event.reason
        rest = self._delta(text) if text or self._scored else None
        return rest, Ended(self.index, reason, event, tuple(self.tokens))

    def _delta(self, text: str) -> Delta:
        scored, self._scored = tuple(self._scored), []
        return Delta(self.index, text, scored)

    def _score(self, token: Token) -> ScoredToken:
        top = tuple(self._piece(other, value) for other, value in token.top_logprobs)
        return ScoredToken(self._piece(token.token, token.logprob), top)

    def _piece(self, token: int, logprob: float | None) -> Piece:
        data = self.pieces.spelled(token)
        return Piece(data.decode("utf-8", "replace"), data, None if logprob is None else max(logprob, LEAST))
