"""Which sequences run next: every decoding one, and prompts within the step's token budget. Plain Python.

Beside decoding sequences the budget is what their share of the time leaves (`engine.pacing`). Answers do not depend
on it: attention is a function of positions, not of the steps in which they were computed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from cache import CacheLayout
from engine.pacing import Pace
from engine.sequence import Sequence
from engine.step import Span, Step

Planned = list[tuple[Sequence, Span]]


class Plan(NamedTuple):
    """What runs next: one step, and a part of prompts that is read beside it and the steps that follow."""

    step: Planned
    beside: Planned


class Scheduler:
    """Makes steps.

    Args:
        step_tokens: text tokens of a step; decoding sequences are never left out
        decode_share: what decoding sequences keep of their speed while a prompt is read
        landmark: token id that closes each block, or None
        apart: whether prompts can be read beside decoding steps, not only in them
    """

    def __init__(
        self,
        step_tokens: int,
        decode_share: float,
        landmark: int | None,
        layout: CacheLayout,
        *,
        apart: bool = False,
    ) -> None:
        self._step_tokens, self._apart = step_tokens, apart
        self._pace = Pace(decode_share, step_tokens)
        self._landmark = landmark
        self._layout = layout
        self._decoding, self._reads = 0, 0  # sequences and prompt tokens of the last plan
        self._beside = False  # whether something is read beside it
        self._shortest_first = False

    def plan(self, running: list[Sequence], away: Collection[Sequence] = ()) -> Plan:
        """What runs next, but for sequences that are being read beside it."""
        decoding = [sequence for sequence in running if not sequence.behind and sequence not in away]
        behind = [sequence for sequence in running if sequence.behind or sequence in away]
        if decoding and behind:
            self._pace.share_out(len(decoding), len(behind))
        step, beside = [part for sequence in decoding for part in self._spans(sequence, 1)], Planned()
        if decoding and self._apart:
            beside = self._parts(behind, 0 if away else self._pace.apart())
        elif not away:
            step += self._parts(behind, self._room(len(decoding)))
        self._decoding, self._reads = len(decoding), tokens_of(step) - len(decoding)
        self._beside = bool(away or beside)
        return Plan(step, beside)

    def took(self, seconds: float) -> None:
        """The step that was planned last took so long, sampling and telling included."""
        if self._decoding and self._beside:
            self._pace.decoded_beside(seconds)
        elif self._decoding and self._reads:
            self._pace.read(self._reads, seconds)
        elif self._decoding:
            self._pace.decoded(seconds)

    def came(self, tokens: int, seconds: float) -> None:
        """A part of so many tokens that was read beside decoding took so long."""
        self._pace.read_beside(tokens, seconds)

    def _room(self, decoding: int) -> int:
        """Prompt tokens of a step."""
        room = self._step_tokens - decoding
        return min(room, self._pace.tokens()) if decoding else room

    def _parts(self, behind: list[Sequence], budget: int) -> Planned:
        """What is read within a budget: now the oldest prompts first, now those that need least.

        So the oldest moves on at least every other time, however many short ones come, and a short one waits for one
        part of a long one, not for all of it.
        """
        if budget <= 0 or not behind:
            return []
        order = sorted(behind, key=lambda sequence: sequence.remaining) if self._shortest_first else behind
        self._shortest_first = not self._shortest_first
        planned = Planned()
        for sequence in order:
            if budget > 0:
                planned += (parts := self._spans(sequence, budget))
                budget -= tokens_of(parts)
        return planned

    def _spans(self, sequence: Sequence, budget: int) -> Planned:
        return [(sequence, span) for span in sequence.spans(budget, self._landmark, self._layout)]


def tokens_of(planned: Planned) -> int:
    """Text tokens of planned spans."""
    return sum(span.end - span.start for _, span in planned)


def step_of(planned: Planned) -> tuple[Step, list[int], list[int]]:
    """The step of planned spans, the rows of the flattened batch that are looked at, and how many are each span's.

    A span's last row tells the token after it; one that scores its prompt has a row for each of its text tokens.
    """
    step = Step([span for _, span in planned])
    rows, counts, before = [], [], 0
    for sequence, span in planned:
        layout, first = span.session.layout, span.start if sequence.scores else span.end - 1
        rows += [before + layout.positions(text + 1) - span.first - 1 for text in range(first, span.end)]
        counts.append(span.end - first)
        before += len(span.token_ids)
        text = span.end - span.start
        if sequence.reading:
            step.report.prefill_tokens += text
        else:
            step.report.decode_tokens += text
    step.report.phase = "prefill" if step.report.prefill_tokens else "decode"
    return step, rows, counts
