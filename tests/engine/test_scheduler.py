"""Who is read when, by plain prompts that only count: nobody starves, and a short one does not wait for a long one."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.scheduler import Scheduler, tokens_of

BUDGET = 512


@dataclass(eq=False)
class Prompt:
    """What the scheduler sees of a sequence that reads."""

    remaining: int
    behind: bool = True
    began: int = 0
    turns: list[int] = field(default_factory=list)
    """Steps in which something of it was read."""

    def spans(self, budget: int, *_: Any) -> Any:
        return [SimpleNamespace(start=0, end=min(budget, self.remaining))]


def scheduler(*, apart: bool = False) -> Scheduler:
    return Scheduler(BUDGET, 0.75, None, cast(Any, None), apart=apart)


def read(made: Scheduler, prompts: list[Prompt], step: int) -> int:
    """One step; how much it read."""
    planned = made.plan(cast(Any, [prompt for prompt in prompts if prompt.remaining])).step
    for prompt, span in cast(Any, planned):
        prompt.remaining -= span.end
        prompt.turns.append(step)
    return tokens_of(planned)


@pytest.mark.parametrize("late", [0, 1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 40, BUDGET])
def test_a_short_prompt_waits_for_one_part_of_a_long_one(tokens: int, late: int) -> None:
    made, long = scheduler(), Prompt(200_000)
    for step in range(late):
        read(made, [long], step)
    short = Prompt(tokens)
    for step in range(2):
        read(made, [long, short], step)
    assert not short.remaining


def test_a_long_prompt_moves_on_however_many_short_ones_come() -> None:
    made, long = scheduler(), Prompt(100 * BUDGET)
    shorts = [Prompt(BUDGET) for _ in range(1000)]
    step = 0
    while long.remaining:
        read(made, [long, *shorts[: step + 1]], step)  # another one comes at every step
        step += 1
    assert step <= 2 * 100


@pytest.mark.parametrize("seed", range(20))
def test_nobody_waits_for_more_than_the_shorter_ones_and_as_much_again(seed: int) -> None:
    """The bound is counted here in plain numbers: every other step at least goes to the shortest."""
    rng, made, step = random.Random(seed), scheduler(), 0
    prompts = [Prompt(rng.choice((5, 300, 2_000, 50_000))) for _ in range(12)]
    sizes = [prompt.remaining for prompt in prompts]
    while any(prompt.remaining for prompt in prompts):
        left = sum(prompt.remaining for prompt in prompts)
        assert read(made, prompts, step) == min(left, BUDGET), "a step has room that somebody wanted"
        step += 1
    for prompt, size in zip(prompts, sizes, strict=True):
        shorter = sum(other for other in sizes if other <= size)
        assert prompt.turns[-1] < 2 * -(-shorter // BUDGET)
    last = max(prompt.turns[-1] for prompt in prompts)
    assert last == -(-sum(sizes) // BUDGET) - 1, "together they take no longer than one after the other"


def test_what_is_read_beside_is_planned_once() -> None:
    made, decoding, reading, late = scheduler(apart=True), Prompt(1, behind=False), Prompt(1000), Prompt(10)
    everybody: Any = [decoding, reading]
    assert not made.plan(everybody).beside, "first it has to be known how long decoding takes"
    made.took(0.01)
    plan: Any = made.plan(everybody)
    assert [who for who, _ in plan.step] == [decoding]
    assert [who for who, _ in plan.beside] == [reading]
    more: Any = [*everybody, late]
    meanwhile: Any = made.plan(more, cast(Any, {reading}))
    assert ([who for who, _ in meanwhile.step], meanwhile.beside) == ([decoding], [])
    alone = made.plan(cast(Any, [reading, late]), cast(Any, {reading}))
    assert alone == ([], []), "what is on its way is left alone, and the rest waits for its end"


def test_without_decoding_prompts_are_read_in_steps() -> None:
    plan: Any = scheduler(apart=True).plan(cast(Any, [Prompt(1000)]))
    assert (tokens_of(plan.step), plan.beside) == (BUDGET, [])
