"""Text to tokens: what users write is encoded literally, so that no text of theirs can become a control token.

Owns the loaded tokenizer, and that a text which no session could hold costs little to refuse. Knows no HTTP; how a
conversation is laid out is `server.chat`'s.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from engine import ModelError, SessionTooLong
from server.pieces import Pieces

LEAST_BOUND = 1 << 20
"""Texts of so many tokens are made tokens even where sessions are shorter: who counts wants to know the number."""
PIECE = 1 << 16
"""Characters of a long text that are counted at once."""
CUT = 64
"""Tokens that a piece may have more because it was cut out of its text."""


class TextTooLong(SessionTooLong):
    """A text of at least `wanted` tokens, too many to even make them all: they would take the memory of a session."""

    def __init__(self, wanted: int, limit: int) -> None:
        super().__init__(wanted, limit)
        self.args = (f"the text has more than {wanted} tokens, and a session holds {limit}",)


@dataclass(frozen=True)
class Segment:
    """A part of a prompt: `control` text may hold control tokens, other text is taken literally."""

    text: str
    control: bool = False


class TextTokenizer:
    """The model's tokenizer, twice: one that knows control tokens and one that reads their names as plain text.

    Args:
        longest: tokens that a session may hold; None bounds no text
    """

    def __init__(
        self, control: Tokenizer, landmark: int | None = None, ends: Iterable[int] = (), longest: int | None = None
    ) -> None:
        self._longest = longest
        self._control = control
        self._literal = Tokenizer.from_str(control.to_str())
        self._literal.encode_special_tokens = True
        self._landmark = landmark
        self._landmark_text = None if landmark is None else control.id_to_token(landmark)
        self.pieces = Pieces(control, ends)
        added = control.get_added_tokens_decoder().values()
        names = {token.content for token in added if token.special} | {self._landmark_text}
        self._control_names = tuple(name for name in names if name)

    def encode(self, text: str, *, begin: bool = False) -> list[int]:
        """Tokens of a user's text; `begin` adds what the model wants at the start of a sequence. Raises TextTooLong."""
        self._check(text)
        tokens = _ids(self._literal, text, begin)
        return tokens if self._landmark not in tokens else self._around_landmark(text, begin)

    def encode_segments(self, segments: Sequence[Segment]) -> list[int]:
        """Tokens of a prompt whose control parts may hold control tokens, but never a landmark."""
        tokens: list[int] = []
        for segment in segments:
            self._refuse(len(tokens))
            tokens += self._encode_control(segment.text) if segment.control else self.encode(segment.text)
        return tokens

    @cached_property
    def vocabulary(self) -> str:
        """A hash of what each token number stands for: where it is equal, tokens are the same text."""
        digest = hashlib.blake2b(digest_size=16)
        for token, number in sorted(self._control.get_vocab().items(), key=lambda pair: (pair[1], pair[0])):
            digest.update(f"{number} {token}\n".encode())
        return digest.hexdigest()

    def names_control(self, text: str) -> bool:
        """Whether `text` holds the name of a control token."""
        return any(name in text for name in self._control_names)

    def control_token(self, name: str) -> int | None:
        """The control token of this name; None if it is plain text to this tokenizer."""
        token: int | None = self._control.token_to_id(name)
        return token if token in self.pieces.hidden else None

    def _check(self, text: str) -> None:
        """Count piece by piece while it may be too long; what is counted is thrown away at once."""
        counted = 0
        for start in range(0, len(text) if len(text) > self._bound else 0, PIECE):
            counted += len(_ids(self._literal, text[start : start + PIECE])) - CUT
            self._refuse(counted)

    def _refuse(self, counted: int) -> None:
        if counted > self._bound:
            raise TextTooLong(counted, self._longest or 0)

    @cached_property
    def _bound(self) -> float:
        return math.inf if self._longest is None else max(self._longest, LEAST_BOUND)

    def _encode_control(self, text: str) -> list[int]:
        self._check(text)
        return [token for token in _ids(self._control, text) if token != self._landmark]

    def _around_landmark(self, text: str, begin: bool) -> list[int]:
        """A landmark that is no special token is matched even in literal text: cut its name in two."""
        assert self._landmark_text is not None
        head, *rest = text.split(self._landmark_text)
        half = len(self._landmark_text) // 2
        tokens = _ids(self._literal, head + self._landmark_text[:half], begin)
        for number, part in enumerate(rest, 1):
            again = self._landmark_text[:half] if number < len(rest) else ""
            tokens += _ids(self._literal, self._landmark_text[half:] + part + again)
        return tokens


def load_tokenizer(
    model: str, landmark: int | None, ends: Iterable[int], longest: int | None = None
) -> tuple[TextTokenizer, Any]:
    """The tokenizer of a model folder, and transformers' own object for it (which renders chat templates)."""
    from transformers import AutoTokenizer  # seconds of import, needed only here

    try:
        loaded = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model} has no tokenizer that can be read: {error}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{model} has no fast tokenizer (tokenizer.json)")
    control = Tokenizer.from_str(backend.to_str())
    control.no_truncation()
    control.no_padding()
    return TextTokenizer(control, landmark, ends, longest), loaded


def _ids(tokenizer: Tokenizer, text: str, begin: bool = False) -> list[int]:
    """Token ids; the fast way keeps no offsets, and lets other threads run."""
    ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=begin)[0].ids
    return ids
