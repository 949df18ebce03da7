"""Events of running generations become text: the one loop behind every answer, streamed or whole.

Owns the way from (generation, event) to outputs of numbered choices. Knows no JSON.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from engine import EngineStopped, Event, Finished, Generation, Progress, Scored, Token
from server.async_engine import EventStream
from server.choices import Choice, Delta, Ended
from server.pieces import Pieces
from server.tools import Form


@dataclass(frozen=True)
class Silence:
    """Nothing came for a while."""


Output = Delta | Ended | Progress | Silence
Choices = dict[tuple[int, int], Choice]


def choices_of(
    generations: Sequence[Generation], pieces: Pieces, stops: Sequence[str], form: Form | None = None
) -> Choices:
    """A choice for each answer, numbered through all generations as OpenAI numbers them."""
    keys = [(place, index) for place, generation in enumerate(generations) for index in range(generation.n)]
    form = form or Form()
    return {key: Choice(number, pieces, stops, form.parser(), form.revealed) for number, key in enumerate(keys)}


async def outputs(
    stream: EventStream, choices: Choices, silence: float | None = None, progress: bool = True
) -> AsyncIterator[Output]:
    """What the generations produce, until all have ended; a Silence after `silence` seconds without an output.

    Without `progress`, reading the prompt is silent: it must not hide from the client's point of view how long
    nothing has been sent.
    """
    spoke = time.monotonic()
    while not stream.ended:
        left = None if silence is None else max(0.0, spoke + silence - time.monotonic())
        item = await stream.next(left)
        made: Sequence[Output] = [Silence()] if item is None else _made(stream, choices, *item)
        for output in made:
            if progress or not isinstance(output, Progress):
                yield output
                spoke = time.monotonic()


def _made(stream: EventStream, choices: Choices, place: int, event: Event) -> Sequence[Output]:
    if isinstance(event, Progress):
        return [event]
    if isinstance(event, Scored):
        return [choice.prompted(event) for (at, _), choice in choices.items() if at == place]
    assert isinstance(event, Token | Finished)  # the stream raises what failed
    choice = choices[place, event.index]
    if isinstance(event, Finished):
        if event.reason == "cancelled" and not choice.stopped:  # not by us: who leaves reads no more events
            raise EngineStopped("the server is shutting down; the answer is not complete")
        rest, ended = choice.finish(event)
        return [rest, ended] if rest else [ended]
    already = choice.stopped
    delta = choice.push(event)
    if choice.stopped and not already:
        stream.cut(place, event.index)
    return [delta] if delta else []
