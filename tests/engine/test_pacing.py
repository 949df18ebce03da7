"""How prompts and decoding sequences share the time, with a simulated clock; and that answers do not depend on it."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import pytest

from engine.pacing import FIRST, LEAST, PART_SECONDS, STRETCH, Pace
from tests.engine.running import Running, running
from tests.models import random_tokens

Told = list[tuple[int, float]]


def simulate(
    pace: Pace,
    steps: int,
    decoding: float = 0.05,
    token: float = 0.0005,
    span: float = 0.01,
    noise: float = 0.0,
    sequences: tuple[int, int] = (8, 1),
) -> Told:
    """Prompt tokens and seconds of each step, where a step costs so many seconds by decoding, token and part."""
    rng, told = random.Random(0), []
    for _ in range(steps):
        pace.share_out(*sequences)
        tokens = pace.tokens()
        seconds = (decoding + (span + token * tokens if tokens else 0.0)) * rng.uniform(1, 1 + noise)
        told.append((tokens, seconds))
        if tokens:
            pace.read(tokens, seconds)
        else:
            pace.decoded(seconds)
    return told


def keeps(told: Told, decoding: float = 0.05) -> float:
    """What decoding sequences keep of their tokens per second."""
    return decoding * len(told) / sum(seconds for _, seconds in told)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("token", [0.0001, 0.0005, 0.002])
def test_decoding_keeps_its_share_and_no_more(share: float, token: float) -> None:
    told = simulate(Pace(share, 100_000), 2000, token=token)[200:]
    assert keeps(told) == pytest.approx(share, abs=0.04)


def test_the_share_holds_with_noisy_steps() -> None:
    told = simulate(Pace(0.75, 512), 2000, noise=0.6)[200:]
    assert keeps(told, 0.05 * 1.3) == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("token", [0.0001, 0.0005, 0.002])
def test_no_step_takes_much_longer_than_it_may(token: float) -> None:
    told = simulate(Pace(0.75, 100_000), 500, token=token)
    assert max(seconds for _, seconds in told) < 1.2 * STRETCH * 0.05  # not while it learns, either
    assert max(seconds for _, seconds in told[200:]) == pytest.approx(STRETCH * 0.05, rel=0.05)


def test_parts_follow_what_a_token_costs() -> None:
    """A token costs more as the text before it grows."""
    pace = Pace(0.75, 512)
    small = [tokens for tokens, _ in simulate(pace, 200, token=0.002)][-100:]
    large = [tokens for tokens, _ in simulate(pace, 200, token=0.0005)][-100:]
    assert max(large) > 3 * max(small)
    again = [tokens for tokens, _ in simulate(pace, 200, token=0.002)][-100:]
    assert max(again) == max(small)


def test_a_prompt_is_read_however_much_a_part_costs() -> None:
    told = simulate(Pace(0.75, 512), 3000, span=0.5)
    assert sum(tokens for tokens, _ in told) > 0
    assert {tokens for tokens, _ in told[200:]} == {0, LEAST}
    assert keeps(told[200:]) == pytest.approx(0.75, abs=0.04)


def test_a_prompt_need_not_wait_if_none_was_read_lately() -> None:
    pace = Pace(0.75, 512)
    simulate(pace, 50)
    for _ in range(20):
        pace.decoded(0.05)
    assert pace.tokens() > 0


def test_time_that_no_prompt_wanted_is_not_saved_up() -> None:
    pace = Pace(0.75, 512)
    for _ in range(1000):
        pace.decoded(0.05)
    assert keeps(simulate(pace, 100)) == pytest.approx(0.75, abs=0.1)


def test_many_prompts_get_as_much_as_each_answer() -> None:
    told = simulate(Pace(0.75, 512), 500, sequences=(1, 3))[100:]
    assert keeps(told) == pytest.approx(0.25, abs=0.04)


def beside(
    pace: Pace, seconds: float, stretch: float, token: float = 0.0005, decoding: float = 0.05, noise: float = 0.0
) -> tuple[Told, Told]:
    """Parts that are read beside steps (tokens, seconds), and steps (0, seconds), which take so many times as long."""
    parts, steps, rng = Told(), Told(), random.Random(0)
    now, part, until = 0.0, 0, 0.0
    while now < seconds:
        if part and now >= until:
            pace.read_beside(part, token * part)
            part = 0
        if not part and (part := pace.apart()):
            parts.append((part, token * part))
            until = now + token * part
        took = decoding * (stretch if part else 1) * rng.uniform(1 - noise, 1 + noise)
        (pace.decoded_beside if part else pace.decoded)(took)
        steps.append((0, took))
        now += took
    return parts, steps


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("stretch", [1.0, 1.1, 1.5, 2.5])
def test_decoding_keeps_its_share_beside_parts(share: float, stretch: float) -> None:
    pace = Pace(share, 512)
    pace.share_out(8, 1)
    parts, steps = beside(pace, 300, stretch)
    kept, reading = keeps(steps), sum(seconds for _, seconds in parts) / 300
    assert kept >= share - 0.04
    if stretch <= 1 / share:
        assert reading > 0.7, "there is nothing to wait for but a step between two parts"
    else:
        assert kept == pytest.approx(share, abs=0.05), "it waits longer than it needs to"


def test_what_noise_takes_from_some_steps_it_gives_to_others() -> None:
    """A step that happens to take less than one alone pays for another that took more."""
    pace = Pace(0.75, 512)
    pace.share_out(8, 1)
    parts, steps = beside(pace, 300, 1.2, decoding=0.01, noise=0.6)
    assert keeps(steps, 0.01) == pytest.approx(1 / 1.2, abs=0.03)
    assert sum(seconds for _, seconds in parts) / 300 > 0.92


def test_small_parts_follow_each_other_and_yet_some_steps_decode_alone() -> None:
    pace = Pace(0.75, 64)
    pace.share_out(8, 1)
    parts, steps = beside(pace, 60, 1.1, token=0.002, decoding=0.01)
    alone = sum(seconds == 0.01 for _, seconds in steps)
    assert 60 / PART_SECONDS * 0.7 < alone < 60 / PART_SECONDS * 1.3
    assert sum(seconds for _, seconds in parts) / 60 > 0.9


@pytest.mark.parametrize("token", [0.0001, 0.001, 0.02])
def test_a_part_beside_steps_takes_about_as_long_as_it_may(token: float) -> None:
    """Whoever comes meanwhile waits for its end."""
    pace = Pace(0.75, 2048)
    parts, _ = beside(pace, 200, 1.1, token)
    most = max(seconds for _, seconds in parts[4:])
    assert most <= max(PART_SECONDS * 1.01, LEAST * token)
    assert parts[0][0] == FIRST
    assert parts[-1][0] == min(2048, max(LEAST, int(PART_SECONDS / token + 0.01))) or most > 0.9 * PART_SECONDS


def test_decoding_goes_on_while_a_prompt_is_read(landmark_folder: Path) -> None:
    """Through the engine: the steps of one long prompt, some with and some without a part of it."""
    with running(landmark_folder, step_tokens=64, max_session_tokens=4000) as run:
        decoding = [run.submit(random_tokens(20, seed), max_tokens=1200) for seed in range(3)]
        while any(not [event for event in each.drain() if hasattr(event, "token")] for each in decoding):
            time.sleep(0.001)
        begun = len(run.gate.reports)
        run.ask(random_tokens(600), max_tokens=1)
        steps = run.gate.reports[begun:]
        reading = [report.prefill_tokens for report in steps if report.prefill_tokens]
        assert sum(reading) >= 600 - 2 * 64
        assert all(report.decode_tokens == 3 for report in steps[1:-1])
        assert not any(a.prefill_tokens and b.prefill_tokens for a, b in itertools.pairwise(steps))
        for each in decoding:
            run.cancel(each)


def answers(run: Running) -> list[list[int]]:
    """What three prompts say that come while others decode."""
    asked = [run.submit(random_tokens(30, 1), max_tokens=60)]
    while len(asked[0].drain()) < 4:
        time.sleep(0.001)
    asked += [run.submit(random_tokens(200, seed), max_tokens=8) for seed in (2, 3, 4)]
    return [each.result().tokens() for each in asked]


def test_answers_do_not_depend_on_the_share(landmark_folder: Path) -> None:
    told = []
    for share in (0.05, 0.5, 0.95):
        with running(landmark_folder, decode_share=share, prefix_cache=False) as run:
            told.append(answers(run))
    assert told[0] == told[1] == told[2]
