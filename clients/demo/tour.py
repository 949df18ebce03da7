"""The phases of the demo in their order: server, text, reading, questions, memory."""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cairn_client import Cairn, CairnError, Retries, Session

from clients.demo.asking import ask
from clients.demo.errors import DemoError
from clients.demo.facts import Fact, draw_facts, hide
from clients.demo.interruption import Interruption
from clients.demo.metrics import Metrics
from clients.demo.process import ServerProcess, served
from clients.demo.screen import Screen
from clients.demo.text import Source, long_text, pieces, source

QUESTIONS = 3
PART = 200_000  # characters sent at a time: far below what a server limits a body to


@dataclass(frozen=True)
class Options:
    """What the user asked for; `url` is a running server, otherwise one is started with `model`."""

    model: str
    text: Path | None = None
    tokens: int | None = None
    seed: int = 7
    facts: int = 6
    url: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Script:
    """What is sent, its number of tokens, and what is asked."""

    parts: list[str]
    tokens: int
    asked: list[Fact]


def tour(options: Options, screen: Screen, interruption: Interruption) -> list[Fact]:
    """Run the demo; returns the facts that were asked and not told right. An interruption ends its server.

    Raises:
        DemoError: it could not be run to its end
    """
    screen.opening()
    text = source(options.text)  # before the server: what is wrong with a file is told at once
    with _server(options, screen, interruption) as (cairn, process):
        try:
            return _visit(options, text, screen, cairn, process)
        except CairnError:
            if process:
                time.sleep(0.5)  # a connection breaks a moment before its process is gone
                process.check()
            raise


def _visit(options: Options, text: Source, screen: Screen, cairn: Cairn, process: ServerProcess | None) -> list[Fact]:
    script = _write(options, text, screen, cairn)
    with _session(cairn) as session:
        _read(screen, cairn, session, script)
        wrong = _ask(screen, cairn, session, script)
        metrics = Metrics(cairn.metrics())
    resident = metrics.value("process_resident_memory_bytes") or (process.memory() if process else None)
    screen.memory(metrics, resident)
    screen.closing(wrong, len(script.asked))
    return wrong


@contextlib.contextmanager
def _server(
    options: Options, screen: Screen, interruption: Interruption
) -> Iterator[tuple[Cairn, ServerProcess | None]]:
    with contextlib.ExitStack() as stack:
        with screen.phase("server"):
            process = None if options.url else stack.enter_context(served(options.model))
            if process:
                interruption.ends(process.ask_to_end)
            url = process.url if process else str(options.url)
            cairn = stack.enter_context(Cairn(url, api_key=options.key, retries=Retries(attempts=0)))
            if process:
                process.wait_until(lambda: _healthy(cairn))
            elif not _healthy(cairn):
                raise DemoError(f"no server is ready at {url}")
        screen.server(options.model if process else "running", url)
        yield cairn, process


@contextlib.contextmanager
def _session(cairn: Cairn) -> Iterator[Session]:
    """A new session, which is deleted at the end."""
    session = cairn.sessions.create()
    try:
        yield session
    finally:
        with contextlib.suppress(CairnError):
            cairn.sessions.delete(session)


def _healthy(cairn: Cairn) -> bool:
    """Whether the server runs and its model is loaded."""
    try:
        return cairn.health().ok
    except CairnError:
        return False


def _count(cairn: Cairn, text: str) -> int:
    return cairn.tokenize(text, special_tokens=False).count


def _write(options: Options, text: Source, screen: Screen, cairn: Cairn) -> Script:
    rng = random.Random(options.seed)
    with screen.phase("text"):
        count = functools.partial(_count, cairn)
        plain = long_text(text, options.tokens, count)
        body, hidden = hide(plain, draw_facts(rng, options.facts, plain), rng)
        parts = list(pieces(body, PART))
        # Counted as it is sent: with the facts, and no token reaches over the edge of a part.
        tokens = sum(map(count, parts))
    screen.text(text.title, len(body), tokens, hidden)
    facts = [item.fact for item in hidden]
    return Script(parts, tokens, rng.sample(facts, min(QUESTIONS, len(facts))))


def _read(screen: Screen, cairn: Cairn, session: Session, script: Script) -> None:
    with screen.reading(script.tokens) as advance:
        for part in script.parts:
            cairn.sessions.append(session, part, progress=lambda told: advance(told.processed))
        advance(script.tokens)


def _ask(screen: Screen, cairn: Cairn, session: Session, script: Script) -> list[Fact]:
    """Ask everything in the session; returns what was answered wrong."""
    wrong: list[Fact] = []
    rate = script.tokens / screen.took("reading")
    with screen.phase("questions"):
        for fact in script.asked:
            screen.question(fact)
            answer = ask(cairn, session, fact.question, screen.heard)
            screen.answered(fact, answer, rate)
            if not fact.answered_by(answer.text):
                wrong.append(fact)
    return wrong
