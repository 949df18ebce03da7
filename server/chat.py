"""A conversation as tokens: the model's chat template, or a plain one for base models.

Owns rendering, continuing a session (only what is new is rendered), and whether the model must still be told of its
tools. How texts stay literal is `server.literal`'s. Knows no HTTP and no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from server.literal import RewrittenError, StandIns
from server.tokenizer import Segment, TextTokenizer
from server.tool_formats import format_of
from server.tool_prompt import Message, for_template, in_words, instructions, to_system, to_user

Tool = Mapping[str, Any]

PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
)
PLAIN_STOP = "\nUser:"

TELLING = 8
"""Characters of a line that tells something; shorter ones (a brace) stand in any text."""

# A short exchange that stands for everything that the session already holds.
EARLIER: tuple[Message, ...] = ({"role": "user", "content": "earlier"}, {"role": "assistant", "content": "earlyanswer"})


class ConversationError(ValueError):
    """The chat template refuses these messages, for example an assistant's before any user's."""


@dataclass(frozen=True)
class Continuation:
    """What a session already holds: nothing (`empty`), or `tokens`, of which the last is `last_token`."""

    empty: bool
    last_token: int | None = None
    tokens: Sequence[int] = ()


class Conversations:
    """Turns messages into tokens with one model's template.

    Args:
        tokenizer: the model's
        renderer: transformers' tokenizer, which renders the template
        end_tokens: what ends a turn
        tool_format: how the model writes calls; `auto` asks the template
    """

    def __init__(
        self, tokenizer: TextTokenizer, renderer: Any, end_tokens: frozenset[int], tool_format: str = "auto"
    ) -> None:
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._ends = {token: tokenizer.pieces.spelled(token).decode("utf-8", "replace") for token in end_tokens}
        self.plain = not getattr(renderer, "chat_template", None)
        self.tool_format, self._knows_tools = format_of(_template_text(renderer), tool_format)

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings that the template needs: a base model would go on with the user's part."""
        return (PLAIN_STOP,) if self.plain else ()

    def tokens(
        self, messages: Sequence[Message], after: Continuation | None = None, tools: Sequence[Tool] = ()
    ) -> list[int]:
        """The tokens of `messages` and of the beginning of an answer, to follow what `after` describes.

        The model is told of `tools` by its template, or in words; not again where the session holds that already.
        """
        if self._knows_tools:
            told = [for_template(message, self.tool_format) for message in messages]
            return self._encoded(self._segments(told, after, tools), after)
        told = in_words(messages, self.tool_format)
        text = instructions(tools, self.tool_format) if tools else ""
        if not text or self._holds(text.splitlines(), after):
            return self._encoded(self._segments(told, after), after)
        return self._encoded(self._introduced(told, after, text), after)

    def _encoded(self, segments: list[Segment], after: Continuation | None) -> list[int]:
        if self.plain:  # holds no control token, so the whole is literal
            text = "".join(segment.text for segment in segments)
            return self._tokenizer.encode(text, begin=after is None or after.empty)
        return self._tokenizer.encode_segments(segments)

    def _introduced(self, messages: Sequence[Message], after: Continuation | None, text: str) -> list[Segment]:
        """With `text` told by the system, or by the user where the template has no place for a system."""
        try:
            segments = self._segments(to_system(messages, text), after)
        except ConversationError:
            segments = []
        if any(text.splitlines()[0] in segment.text for segment in segments):
            return segments
        return self._segments(to_user(messages, text), after)

    def _segments(
        self, messages: Sequence[Message], after: Continuation | None, tools: Sequence[Tool] = ()
    ) -> list[Segment]:
        """The rendered text; nearly always one segment, whose tokens are exactly those of the template's whole text."""
        hidden = StandIns(self._tokenizer.names_control)
        told = [_hidden(message, hidden) for message in messages]
        known = bool(tools) and self._holds(self._telling(tools), after)
        rendered = self._render(told, after, hidden.value(tools), known)
        try:
            return hidden.split(rendered)
        except RewrittenError:
            raise ConversationError(
                "the message holds the name of a control token, and the chat template rewrites contents"
            ) from None

    def _render(
        self, messages: Sequence[Message], after: Continuation | None, tools: Sequence[Tool], known: bool
    ) -> str:
        if after is None or after.empty:
            return self._template(messages, tools, answer=True)
        tail = self._tail(messages, after, tools)
        if not tools or known or all(line in tail for line in self._telling(tools)):
            return tail
        whole = self._template(messages, tools, answer=True)  # as if it began here: that tells the tools
        return whole.removeprefix(getattr(self._renderer, "bos_token", None) or "")

    def _tail(self, messages: Sequence[Message], after: Continuation, tools: Sequence[Tool]) -> str:
        """What is new behind an exchange that stands for the session."""
        whole = self._template([*EARLIER, *messages], tools, answer=True)
        earlier = EARLIER[-1]["content"]
        tail = whole.partition(earlier)[2]
        end = self._ends.get(after.last_token) if after.last_token is not None else None
        if end and tail.lstrip().startswith(end):
            return tail.lstrip()[len(end) :]  # the session ends with this end token already
        prefixes = (self._template(EARLIER, told, answer=False) for told in (tools, ()))  # told at the end, by some
        prefix = next((prefix for prefix in prefixes if whole.startswith(prefix)), None)
        if prefix is None:
            raise ConversationError("this model's chat template cannot continue a session with these messages")
        return whole[len(prefix) :]

    def _telling(self, tools: Sequence[Tool]) -> list[str]:
        """The lines by which the template tells of tools."""
        having, lacking = (self._template(EARLIER, each, answer=False) for each in (tools, ()))
        begin = _common(having, lacking)
        end = _common(having[begin:][::-1], lacking[begin:][::-1])
        lines = [line.strip() for line in having[begin : len(having) - end].splitlines()]
        return [line for line in lines if len(line) >= TELLING]

    def _holds(self, lines: Sequence[str], after: Continuation | None) -> bool:
        """Whether the session holds each of these lines."""
        if after is None or not after.tokens:
            return False
        text = self._tokenizer.pieces.data(after.tokens)
        return all(line.strip().encode() in text for line in lines)

    def _template(self, messages: Sequence[Message], tools: Sequence[Tool], answer: bool) -> str:
        template = {"chat_template": PLAIN_TEMPLATE} if self.plain else {}
        given = {"tools": list(tools)} if tools else {}
        try:
            rendered = self._renderer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=answer, **template, **given
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise ConversationError(f"the chat template refuses these messages: {error}") from error
        return str(rendered)


def _common(one: str, other: str) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _hidden(message: Message, hidden: StandIns) -> Message:
    """A message whose texts are stood in for where they need it."""
    if message["role"] == "tool":  # some templates write what a tool returned as JSON
        return {name: hidden.value(value) for name, value in message.items()}
    rest = {name: hidden.value(value) for name, value in message.items() if name != "content"}
    return {**rest, "content": hidden.text(message["content"])}


def _template_text(renderer: Any) -> str:
    """The template, or the one for tools among several."""
    template = getattr(renderer, "chat_template", None) or ""
    return str(template.get("tool_use", template.get("default", ""))) if isinstance(template, dict) else str(template)
