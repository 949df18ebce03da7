"""What an answer must look like, compiled for one vocabulary: the only file that knows llguidance.

Owns the grammars' texts (Lark, as llguidance reads it), their limits, and the constraints that the engine asks at each
token. Knows no request: what is asked for is `server.structured`'s and `server.tools`'s.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from, regex_to_lark

from engine import Constraint, ConstraintFailed
from server.json_schema import SchemaError, check_schema
from server.tokenizer import TextTokenizer

MAX_PATTERN_CHARACTERS = 4096
MAX_GRAMMAR_CHARACTERS = 1 << 18
LIMITS = {
    "max_items_in_row": 10_000,  # an object of thousands of optional properties needs so many
    "initial_lexer_fuel": 1_000_000,  # about 20 ms
    "step_lexer_fuel": 200_000,  # about 15 ms
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,  # of 1 to 2 kB
    "max_grammar_size": 500_000,
    "verbose_errors": False,  # they would quote the answer
}
WHITESPACE = r"[ \t]|\r?\n[ \t]{0,40}"
"""Between the parts of JSON: a space, or a new line and its indentation; no model goes on with spaces for ever."""
REFERENCE = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/|#[^\n]*|(?P<token><)')


class GrammarError(ValueError):
    """The grammar cannot be used; the message says why."""


def json_rule(schema: dict[str, Any]) -> str:
    """A Lark expression for JSON of a schema; raises GrammarError."""
    try:
        check_schema(schema)
    except SchemaError as error:
        raise GrammarError(str(error)) from error
    options = {"whitespace_pattern": WHITESPACE, "lenient": False, "coerce_one_of": False}
    return "%json " + json.dumps({**schema, "x-guidance": options})


def text_rule(text: str) -> str:
    """A Lark expression for exactly this text."""
    return json.dumps(text, ensure_ascii=False)


def regex_grammar(pattern: str) -> str:
    """All of the answer matches `pattern`, whether its \\d, \\w and \\s mean ASCII or Unicode; raises GrammarError."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise GrammarError(f"has {len(pattern)} characters, the limit is {MAX_PATTERN_CHARACTERS}")
    readings = {regex_to_lark(pattern, ascii_classes) for ascii_classes in ("", "dws")}
    return "start: ANSWER\nANSWER: " + " & ".join(f"/{reading}/" for reading in sorted(readings))


def choice_grammar(choices: Sequence[str]) -> str:
    """The answer is one of these texts."""
    return "start: " + " | ".join(map(text_rule, choices))


def written_grammar(text: str) -> str:
    """A grammar that a user wrote, in Lark or in GBNF; raises GrammarError."""
    try:
        lark = grammar_from("grammar", text)
    except (ValueError, RecursionError, IndexError) as error:
        raise GrammarError(f"cannot be read: {str(error)[:300] or 'it is nested too deeply'}") from error
    if any(found["token"] for found in REFERENCE.finditer(lark)):
        raise GrammarError("names a token (<...>): a grammar is about text alone")
    return lark


class Grammars:
    """Compiles grammars for a vocabulary.

    Args:
        tokenizer: the model's
        vocabulary: its number of tokens, as the model has them
        ends: tokens that end an answer
        landmark: a token that is never said
    """

    def __init__(self, tokenizer: TextTokenizer, vocabulary: int, ends: Iterable[int], landmark: int | None) -> None:
        self._vocabulary = _Vocabulary(tokenizer, vocabulary, sorted(ends), landmark)
        self._lock = threading.Lock()

    def compile(self, grammar: str) -> Callable[[], Constraint]:
        """Makes constraints that hold answers to `grammar`; raises GrammarError. Takes milliseconds, up to a second."""
        if len(grammar) > MAX_GRAMMAR_CHARACTERS:
            raise GrammarError(f"comes to {len(grammar)} characters, the limit is {MAX_GRAMMAR_CHARACTERS}")
        with self._lock:
            tokenizer = self._tokenizer
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))  # type: ignore[arg-type]
        _probe(matcher.deep_copy())
        return lambda: GrammarConstraint(matcher.deep_copy())

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        """Made when first asked for: it takes a second for a large vocabulary."""
        vocabulary = self._vocabulary
        return LLTokenizer(vocabulary, n_vocab=len(vocabulary.tokens), eos_token=vocabulary.ends)  # type: ignore[arg-type]


class GrammarConstraint:
    """One answer's place in a grammar, as `engine.Constraint` describes it."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def ended(self) -> bool:
        return self._matcher.is_stopped()

    def allowed(self) -> bytes:
        mask = self._matcher.compute_logit_bias()
        self._check()
        return mask

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if problem := _problem(self._matcher):
            raise ConstraintFailed(f"the grammar cannot be followed any further: {problem}")


class _Vocabulary:
    """The vocabulary as llguidance takes it: the bytes of each token, as they are shown in answers."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: TextTokenizer, size: int, ends: list[int], landmark: int | None) -> None:
        pieces = tokenizer.pieces
        self._tokenizer = tokenizer
        silent = pieces.hidden | {landmark}
        self.tokens = [pieces.spelled(token) for token in range(size)]
        self.ends = ends or [size]  # llguidance wants one; what is beyond the vocabulary is never drawn
        if not ends:
            self.tokens.append(b"<end>")
        self.eos_token_id = self.ends[0]
        self.special_token_ids = sorted({token for token in silent if token is not None} | set(self.ends))

    def __call__(self, text: bytes | str) -> list[int]:
        """How the tokenizer would spell `text`: what a grammar leaves no choice about is said in these tokens."""
        data = text.encode() if isinstance(text, str) else text
        tokens = self._tokenizer.encode(data.decode("utf-8", "replace"))
        return tokens if self._tokenizer.pieces.data(tokens) == data else self._spelled(data)

    def _spelled(self, data: bytes) -> list[int]:
        """Where the tokenizer adds to a text (a space before it): the longest token each time."""
        tokens = []
        while data:
            length = next(
                length for length in range(min(len(data), self._longest), 0, -1) if data[:length] in self._ids
            )
            tokens.append(self._ids[data[:length]])
            data = data[length:]
        return tokens

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        silent = set(self.special_token_ids)
        return {piece: token for token, piece in enumerate(self.tokens) if piece and token not in silent}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids))


def _probe(matcher: LLMatcher) -> None:
    """GrammarError for what shows at the first token: a mistake, nothing that matches, too many ways to go on."""
    for _ in range(2):
        if problem := _problem(matcher):
            raise GrammarError(problem)
        mask = matcher.compute_logit_bias()
        if problem := _problem(matcher):
            raise GrammarError(problem)
        if not matcher.is_stopped():
            matcher.consume_token(next(token for token, allowed in enumerate(mask) if allowed))


def _problem(matcher: LLMatcher) -> str | None:
    """What went wrong; a grammar that can neither go on nor end is wrong, too."""
    error = matcher.get_error().partition("\n<non-verbose")[0].strip()[:300]
    if error.startswith("NoExtension") or (matcher.is_stopped() and not error and not matcher.is_accepting()):
        return "nothing matches it"
    return error or None
