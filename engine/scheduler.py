"""Which sequences run next: every decoding one, then prompts within the step's token budget. Plain Python.

Beside decoding sequences the budget is what their share of the time leaves (`engine.pacing`). Answers do not depend
on it: attention is a function of positions, not of the steps in which they were computed.
"""

from __future__ import annotations

from cache import CacheLayout
from engine.pacing import Pace
from engine.sequence import Defaults, Sequence
from engine.step import Span, Step


class Scheduler:
    """Makes steps.

    Args:
        step_tokens: text tokens of a step; decoding sequences are never left out
        decode_share: what decoding sequences keep of their speed while a prompt is read
        defaults: how a span reads if its request does not say
        landmark: token id that closes each block, or None
    """

    def __init__(
        self, step_tokens: int, decode_share: float, defaults: Defaults, landmark: int | None, layout: CacheLayout
    ) -> None:
        self._step_tokens = step_tokens
        self._pace = Pace(decode_share, step_tokens)
        self._defaults = defaults
        self._landmark = landmark
        self._layout = layout
        self._decoding, self._reads = 0, 0  # sequences and prompt tokens of the last plan

    def plan(self, running: list[Sequence]) -> list[tuple[Sequence, Span]]:
        """The next step's spans; prompts that came first are read first, and share what budget is left."""
        decoding = [sequence for sequence in running if not sequence.behind]
        behind = [sequence for sequence in running if sequence.behind]
        budget = self._step_tokens - len(decoding)
        if decoding and behind:
            self._pace.share_out(len(decoding), len(behind))
            budget = min(budget, self._pace.tokens())
        planned = [(sequence, self._span(sequence, 1)) for sequence in decoding]
        for sequence in behind:
            if budget > 0:
                span = self._span(sequence, budget)
                budget -= span.end - span.start
                planned.append((sequence, span))
        self._decoding, self._reads = len(decoding), sum(span.end - span.start for _, span in planned) - len(decoding)
        return planned

    def took(self, seconds: float) -> None:
        """The step that was planned last took so long, sampling and telling included."""
        if self._decoding and self._reads:
            self._pace.read(self._reads, seconds)
        elif self._decoding:
            self._pace.decoded(seconds)

    def _span(self, sequence: Sequence, budget: int) -> Span:
        return sequence.span(budget, self._defaults, self._landmark, self._layout)


def step_of(planned: list[tuple[Sequence, Span]]) -> tuple[Step, list[int], list[int]]:
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
