"""`cairn sessions …`: list, show, search, fork, delete, rewind, export, import."""

from __future__ import annotations

import dataclasses
import json
import sys
from argparse import Namespace
from collections.abc import Callable

from cairn_client import Cairn, Session

from clients.terminal import exits, listing, screen
from clients.terminal.connecting import connected
from clients.terminal.reading import moving


def run(options: Namespace) -> int:
    """Do what `options.action` says."""
    with connected(options) as cairn:
        ACTIONS[options.action](cairn, options)
    return exits.OK


def _list(cairn: Cairn, options: Namespace) -> None:
    latest = sorted(cairn.sessions.list(), key=lambda session: -session.used)[: options.limit]
    if options.json:
        print(json.dumps([dict(session.raw) for session in latest]))
    else:
        listing.sessions(screen.output(), cairn, latest)


def _show(cairn: Cairn, options: Namespace) -> None:
    session = cairn.sessions.get(options.session)
    if options.text:
        held = cairn.sessions.text(session)
        print(json.dumps(dataclasses.asdict(held)) if options.json else screen.harmless(held.text))
    elif options.turns:
        turns = cairn.sessions.turns(session)
        if options.json:
            print(json.dumps([dataclasses.asdict(turn) for turn in turns]))
        else:
            listing.turns(screen.output(), cairn, session.id, turns)
    elif options.json:
        print(json.dumps(dict(session.raw)))
    else:
        _describe(session)


def _describe(session: Session) -> None:
    kept = "until it is deleted" if not session.ttl_seconds else f"{session.ttl_seconds:,.0f} s after its last use"
    told = {
        "id": session.id,
        "tokens": f"{session.tokens:,}",
        "created": screen.age(session.created),
        "used": screen.age(session.used),
        "parent": session.parent or "none",
        "pinned": "yes" if session.pinned else "no",
        "busy": "yes" if session.busy else "no",
        "kept": kept,
    }
    for name, value in told.items():
        print(f"{name:<8} {value}")


def _search(cairn: Cairn, options: Namespace) -> None:
    found = cairn.sessions.search(options.session, options.query, passages=options.passages)
    if options.json:
        print(json.dumps([dataclasses.asdict(passage) for passage in found.passages]))
    else:
        screen.passages(screen.output(), found.passages)


def _fork(cairn: Cairn, options: Namespace) -> None:
    print(cairn.sessions.fork(options.session).id)


def _delete(cairn: Cairn, options: Namespace) -> None:
    for session in options.session:
        cairn.sessions.delete(session)


def _rewind(cairn: Cairn, options: Namespace) -> None:
    session = cairn.sessions.rewind(options.session, turn=options.turn, tokens=options.tokens)
    print(f"{session.tokens:,} tokens are left")


def _export(cairn: Cairn, options: Namespace) -> None:
    notes, target = screen.notes(), options.output or f"{options.session}.cairn"
    with moving(notes, "exporting") as moved:
        to = sys.stdout.buffer if target == "-" else target
        written = cairn.sessions.export(options.session, to, kv=not options.no_kv, progress=moved)
    if target != "-":
        notes.print(f"{target}: {written:,} bytes", markup=False)


def _import(cairn: Cairn, options: Namespace) -> None:
    with moving(screen.notes(), "importing") as moved:
        session = cairn.sessions.import_from(options.file, progress=moved)
    restored = session.tokens if session.restored_tokens is None else session.restored_tokens
    screen.notes().print(f"{restored:,} of {session.tokens:,} tokens need no computing")
    print(session.id)


ACTIONS: dict[str, Callable[[Cairn, Namespace], None]] = {
    "list": _list,
    "show": _show,
    "search": _search,
    "fork": _fork,
    "delete": _delete,
    "rewind": _rewind,
    "export": _export,
    "import": _import,
}
