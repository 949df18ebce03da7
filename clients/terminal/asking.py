"""`cairn ask FILE QUESTION`: the file is read into a session once, each question is asked in a fork of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from cairn_client import Answer, Busy, Cairn, CairnError, Session

from clients.terminal import exits, screen
from clients.terminal.connecting import connected, sampling
from clients.terminal.reading import read
from clients.terminal.remembered import Remembered, state_folder

PATIENCE = 5.0  # seconds until a session that nobody needs any more is left to the server


def ask(options: Namespace) -> int:
    """Print the answer to `options.question`."""
    content = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
    name = "standard input" if options.file == "-" else Path(options.file).name
    with connected(options) as cairn:
        held = _held(cairn, content, name, options.again)
        with _fork(cairn, held, keep=options.keep) as fork:
            answer = _answer(cairn, fork, options)
        _show(answer, fork, options)
    return exits.OK


def _held(cairn: Cairn, content: bytes, name: str, again: bool) -> Session:
    """A session that holds the file and nothing else."""
    remembered = Remembered(state_folder())
    if not again and (found := remembered.find(cairn, content)):
        return found
    session = cairn.sessions.create()
    try:
        held = read(screen.notes(), cairn, session, content, name).session
    except BaseException:  # also Ctrl-C: a half of a file is of no use
        _forget(cairn, session)
        raise
    remembered.keep(cairn, content, held)
    return held


@contextlib.contextmanager
def _fork(cairn: Cairn, session: Session, *, keep: bool) -> Iterator[Session]:
    fork = cairn.sessions.fork(session)
    try:
        yield fork
    finally:
        if not keep:
            _forget(cairn, fork)


def _forget(cairn: Cairn, session: Session) -> None:
    """Delete a session, whose last request may have to hear first that we left it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return cairn.sessions.delete(session)
        except Busy:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)
        except CairnError:  # what went wrong before is what is told
            return None


def _answer(cairn: Cairn, session: Session, options: Namespace) -> Answer:
    """The answer, printed as it comes unless it is to be JSON."""
    wanted = {"retrieval": {"provenance": True, "passages": options.passages}} if options.passages else {}
    with cairn.chat_stream(options.question, session=session, **sampling(options), **wanted) as stream:  # type: ignore[arg-type]
        for piece in stream.text():
            if not options.json:
                print(screen.harmless(piece), end="", flush=True)
    return stream.answer


def _show(answer: Answer, session: Session, options: Namespace) -> None:
    if options.json:
        print(json.dumps(_told(answer, session if options.keep else None)))
        return
    print()
    console = screen.output()
    if options.passages:
        console.print()
        screen.passages(console, answer.passages)
    if options.keep:
        screen.notes().print(f"go on with: cairn chat {session.id}")


def _told(answer: Answer, session: Session | None) -> dict[str, object]:
    return {
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "passages": [dataclasses.asdict(passage) for passage in answer.passages],
        "usage": dataclasses.asdict(answer.usage) if answer.usage else None,
        "timings": dataclasses.asdict(answer.timings) if answer.timings else None,
        "session_id": session.id if session else None,
    }
