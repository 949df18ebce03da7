"""Which sequences run next: every decoding one, then prompts within the step's token budget. Plain Python."""

from __future__ import annotations

from cache import CacheLayout
from engine.sequence import Defaults, Sequence
from engine.step import Span, Step


class Scheduler:
    """Makes steps.

    Args:
        step_tokens: text tokens of a step; decoding sequences are never left out
        defaults: how a span reads if its request does not say
        landmark: token id that closes each block, or None
    """

    def __init__(self, step_tokens: int, defaults: Defaults, landmark: int | None, layout: CacheLayout) -> None:
        self._step_tokens = step_tokens
        self._defaults = defaults
        self._landmark = landmark
        self._layout = layout

    def plan(self, running: list[Sequence]) -> list[tuple[Sequence, Span]]:
        """The next step's spans; prompts that came first are read first, and share what budget is left."""
        planned = [(sequence, self._span(sequence, 1)) for sequence in running if not sequence.behind]
        budget = self._step_tokens - len(planned)
        for sequence in running:
            if sequence.behind and budget > 0:
                span = self._span(sequence, budget)
                budget -= span.end - span.start
                planned.append((sequence, span))
        return planned

    def _span(self, sequence: Sequence, budget: int) -> Span:
        return sequence.span(budget, self._defaults, self._landmark, self._layout)


def step_of(planned: list[tuple[Sequence, Span]]) -> tuple[Step, list[int]]:
    """The step of planned spans, and each span's last row in the flattened batch."""
    step = Step([span for _, span in planned])
    rows, row = [], -1
    for sequence, span in planned:
        row += len(span.token_ids)
        rows.append(row)
        text = span.end - span.start
        if sequence.reading:
            step.report.prefill_tokens += text
        else:
            step.report.decode_tokens += text
    step.report.phase = "prefill" if step.report.prefill_tokens else "decode"
    return step, rows
