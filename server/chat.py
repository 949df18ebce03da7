"""A conversation as tokens: the model's chat template, or a plain one for base models.

Owns rendering, continuing a session (only what is new is rendered), and keeping message contents literal.
Knows no HTTP and no engine.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from server.tokenizer import Segment, TextTokenizer

Message = Mapping[str, str]

PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
)
PLAIN_STOP = "\nUser:"

# A short exchange that stands for everything that the session already holds.
EARLIER: tuple[Message, ...] = ({"role": "user", "content": "earlier"}, {"role": "assistant", "content": "earlyanswer"})


class ConversationError(ValueError):
    """The chat template refuses these messages, for example an assistant's before any user's."""


@dataclass(frozen=True)
class Continuation:
    """What a session already holds: nothing (`empty`), or a text whose last token is `last_token`."""

    empty: bool
    last_token: int | None = None


class Conversations:
    """Turns messages into tokens with one model's template."""

    def __init__(self, tokenizer: TextTokenizer, renderer: Any, end_tokens: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._ends = {token: tokenizer.pieces.spelled(token).decode("utf-8", "replace") for token in end_tokens}
        self.plain = not getattr(renderer, "chat_template", None)

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings that the template needs: a base model would go on with the user's part."""
        return (PLAIN_STOP,) if self.plain else ()

    def tokens(self, messages: Sequence[Message], after: Continuation | None = None) -> list[int]:
        """The tokens of `messages` and of the beginning of an answer, to follow what `after` describes."""
        if self.plain:  # holds no control token, so the whole is literal
            return self._tokenizer.encode(self._render(messages, after), begin=after is None or after.empty)
        return self._tokenizer.encode_segments(self._segments(messages, after))

    def _segments(self, messages: Sequence[Message], after: Continuation | None) -> list[Segment]:
        if not any(self._tokenizer.names_control(message["content"]) for message in messages):
            # The usual case: tokens are exactly those of the template's whole text.
            return [Segment(self._render(messages, after), control=True)]
        marks = [f"mark{secrets.token_hex(12)}end" for _ in messages]
        marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
        contents = {mark: message["content"] for mark, message in zip(marks, messages, strict=True)}
        return _split(self._render(marked, after), contents)

    def _render(self, messages: Sequence[Message], after: Continuation | None) -> str:
        if after is None or after.empty:
            return self._template(messages, answer=True)
        whole = self._template([*EARLIER, *messages], answer=True)
        earlier = EARLIER[-1]["content"]
        tail = whole.partition(earlier)[2]
        end = self._ends.get(after.last_token) if after.last_token is not None else None
        if end and tail.lstrip().startswith(end):
            return tail.lstrip()[len(end) :]  # the session ends with this end token already
        prefix = self._template(EARLIER, answer=False)
        if not whole.startswith(prefix):
            raise ConversationError("this model's chat template cannot continue a session with these messages")
        return whole[len(prefix) :]

    def _template(self, messages: Sequence[Message], answer: bool) -> str:
        template = {"chat_template": PLAIN_TEMPLATE} if self.plain else {}
        try:
            rendered = self._renderer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=answer, **template
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise ConversationError(f"the chat template refuses these messages: {error}") from error
        return str(rendered)


def _split(rendered: str, contents: Mapping[str, str]) -> list[Segment]:
    """The rendered text with each mark replaced by its literal content.

    A template that drops a message drops its mark; one that rewrites contents (say, to upper case) would lose
    it and is refused, since its text could not be kept literal.
    """
    pattern = re.compile("|".join(map(re.escape, contents)))
    if re.search("mark[0-9a-f]{24}end", pattern.sub("", rendered), re.IGNORECASE):
        raise ConversationError(
            "the message holds the name of a control token, and the chat template rewrites contents"
        )
    parts, place = [], 0
    for found in pattern.finditer(rendered):
        parts += [Segment(rendered[place : found.start()], control=True), Segment(contents[found[0]])]
        place = found.end()
    return [part for part in [*parts, Segment(rendered[place:], control=True)] if part.text]
