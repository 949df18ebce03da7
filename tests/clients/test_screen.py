"""What is printed: on 80 columns, and in a log without control codes."""

from __future__ import annotations

import io

from cairn_client import Passage
from rich.console import Console

from clients.demo.asking import Told
from clients.demo.facts import Fact, Hidden
from clients.demo.metrics import Metrics
from clients.demo.progress import Tenths
from clients.demo.screen import Screen

LISBON = Fact("Lisbon", "71432")
ANSWER = Told(
    "The pass key for Lisbon is 71432.",
    0.21,
    0.9,
    100_012,
    100_000,
    (Passage(900, 950, 0, 0, f"a\n{LISBON.told}\nb", 0.42),),
)
SCRAPE = Metrics(
    'cairn_kv_tier_usage_bytes{tier="device"} 4.2e8\ncairn_kv_tier_blocks{tier="device"} 1234\n'
    "cairn_prompt_tokens_total 100012\ncairn_time_to_first_token_seconds_sum 3\n"
    "cairn_time_to_first_token_seconds_count 2\ncairn_retrieval_blocks_selected_sum 77\n"
    'cairn_retrieval_blocks_selected_count 11\ncairn_retrieval_block_hits_total{tier="device"} 4321\n'
)


def plain() -> tuple[Screen, io.StringIO]:
    log = io.StringIO()
    return Screen(Console(file=log, width=80, highlight=False, force_terminal=False)), log


def show_all(screen: Screen) -> None:
    screen.opening()
    with screen.phase("server"), screen.phase("text"):
        pass
    screen.server("models/cairn-4m", "http://127.0.0.1:8000")
    screen.text("Python's language reference", 300_000, 100_000, [Hidden(LISBON, 0.5)] * 6)
    with screen.reading(100_000) as advance:
        for done in range(0, 100_001, 1000):
            advance(done)
    screen.question(LISBON)
    screen.heard("The pass key\n for \x1b[31mLisbon")
    screen.answered(LISBON, ANSWER, 2000.0)
    screen.memory(SCRAPE, 1.2e9)
    screen.closing([], 3)


def test_a_log_has_no_control_codes_and_80_columns() -> None:
    screen, log = plain()
    show_all(screen)
    lines = log.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert all(c.isprintable() for line in lines for c in line)
    assert all(line == line.rstrip() for line in lines)


def test_a_log_says_all_that_matters() -> None:
    screen, log = plain()
    show_all(screen)
    text = " ".join(log.getvalue().split())
    for part in (
        "Lisbon 71432 at 50%",
        " 10% 10,000 tokens",
        "100% 100,000 tokens",
        "right, first token after 0.21 s",
        "100,000 of 100,012 tokens cached, 50.0 s saved",
        "42.0% of attention to tokens 900 to 950",
        f"[[{LISBON.told}]]",
        "server process 1.20 GB",
        "KV on device: 420.0 MB in 1,234 blocks",
        "4,321 blocks selected, 7.0 for a token and head",
        "1.50 s to the first token",
        "All 3 answers are right.",
    ):
        assert part in text


def test_a_terminal_shows_the_fact_in_colour() -> None:
    out = io.StringIO()
    show_all(Screen(Console(file=out, width=80, highlight=False, force_terminal=True, color_system="standard")))
    assert "[[" not in out.getvalue()
    assert "\x1b[30;43m" in out.getvalue()


def test_a_wrong_answer_is_named() -> None:
    screen, log = plain()
    screen.answered(LISBON, Told("It is 5.", 0.1, 0.1, 10, 0, ()), 2000.0)
    screen.closing([LISBON], 3)
    assert "wrong: it is 71432" in log.getvalue()
    assert "did not tell which passages" in log.getvalue()
    assert "1 of 3 answers are wrong: Lisbon" in log.getvalue()


def test_a_log_gets_a_line_every_tenth() -> None:
    log = io.StringIO()
    advance = Tenths(Console(file=log, width=80), 1000, clock=iter(range(100)).__next__)
    for done in (5, 99, 100, 101, 650, 1000, 1000):
        advance(done)
    assert [line.split()[0] for line in log.getvalue().splitlines()] == ["10%", "60%", "100%"]
