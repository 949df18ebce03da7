"""From tokens to the text of an answer: one `Choice` per answer, fed token by token.

Owns decoding, stop strings, calls of tools and log-probabilities in words. Knows no HTTP and no engine thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine import Finished, Scored, Token
from server.pieces import Pieces, TextStream
from server.stops import StopScanner
from server.tool_formats import CallDelta, Parsed, ToolParser, merged

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
    calls: tuple[CallDelta, ...] = ()


@dataclass(frozen=True)
class Ended:
    """One choice is complete; `reason` is OpenAI's finish_reason, `tokens` what was generated up to it."""

    index: int
    reason: str
    finished: Finished
    tokens: tuple[int, ...] = ()


@dataclass
class Choice:
    """One answer in the making.

    Attributes:
        index: its number in the response
        parser: finds calls of tools in the text; None where it is text alone
        revealed: control tokens that the parser must see
    """

    index: int
    pieces: Pieces
    stops: Sequence[str] = ()
    parser: ToolParser | None = None
    revealed: frozenset[int] = frozenset()
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
        parsed = self._parse(self._scanner.push(self._text.push(self._bytes(token.token))))
        return self._delta(parsed) if parsed.text or parsed.calls or self.stopped else None

    def prompted(self, event: Scored) -> Delta:
        """Tokens of the prompt, whose text is the caller's to repeat."""
        return Delta(self.index, "", tuple(self._score(token) for token in event.tokens))

    def finish(self, event: Finished) -> tuple[Delta | None, Ended]:
        """The text that waited, and the end."""
        text = self._scanner.push(self._text.finish())
        parsed = self._parse(text + self._scanner.finish(), last=True)
        reason = "stop" if self.stopped else event.reason
        if reason == "stop" and self.parser is not None and self.parser.called:
            reason = "tool_calls"
        rest = self._delta(parsed) if parsed.text or parsed.calls or self._scored else None
        return rest, Ended(self.index, reason, event, tuple(self.tokens))

    def _bytes(self, token: int) -> bytes:
        return self.pieces.spelled(token) if token in self.revealed else self.pieces.shown(token)

    def _parse(self, text: str, last: bool = False) -> Parsed:
        """The text without the calls in it, and these."""
        if self.parser is None:
            return Parsed(text)
        parsed = self.parser.push(text)
        if not last:
            return parsed
        rest = self.parser.finish()
        return Parsed(parsed.text + rest.text, merged((*parsed.calls, *rest.calls)))

    def _delta(self, parsed: Parsed) -> Delta:
        scored, self._scored = tuple(self._scored), []
        return Delta(self.index, parsed.text, scored, parsed.calls)

    def _score(self, token: Token) -> ScoredToken:
        top = tuple(self._piece(other, value) for other, value in token.top_logprobs)
        return ScoredToken(self._piece(token.token, token.logprob), top)

    def _piece(self, token: int, logprob: float | None) -> Piece:
        data = self.pieces.spelled(token)
        return Piece(data.decode("utf-8", "replace"), data, None if logprob is None else max(logprob, LEAST))
