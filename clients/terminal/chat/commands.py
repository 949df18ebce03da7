"""What begins with a slash in `cairn chat`. Each command is a function of the conversation and the rest of its line."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cairn_client import Session

from clients.terminal import listing, screen
from clients.terminal.chat.conversation import Conversation
from clients.terminal.reading import moving, read

MOST = 20  # sessions, and turns, that are listed


class Unusable(Exception):
    """The line can not be carried out; the message says why."""


class Leave(Exception):
    """The conversation is over."""


@dataclass(frozen=True)
class Command:
    """What it takes and does, as /help tells it, and how."""

    takes: str
    does: str
    run: Callable[[Conversation, str], None]


def carry_out(conversation: Conversation, line: str) -> None:
    """Do what `line` says, which begins with a slash.

    Raises:
        Unusable: it can not be done
        Leave: it says so
    """
    name, _, rest = line.removeprefix("/").partition(" ")
    if name not in COMMANDS:
        raise Unusable(f"there is no command /{name}; /help lists them")
    COMMANDS[name].run(conversation, rest.strip())


def _attach(conversation: Conversation, rest: str) -> None:
    path = _path(rest, "/attach FILE")
    if not path.is_file():
        raise Unusable(f"there is no file {path}")
    appended = read(conversation.console, conversation.cairn, conversation.session, str(path), path.name)
    conversation.open(appended.session)


def _passages(conversation: Conversation, _: str) -> None:
    if conversation.answer is None:
        raise Unusable("nothing was answered yet in this session since you opened it")
    screen.passages(conversation.console, conversation.answer.passages)


def _search(conversation: Conversation, rest: str) -> None:
    if not rest:
        raise Unusable("say what to look for: /search QUESTION")
    most = conversation.options.passages
    screen.passages(
        conversation.console, conversation.cairn.sessions.search(conversation.session, rest, passages=most).passages
    )


def _turns(conversation: Conversation, _: str) -> None:
    turns = conversation.cairn.sessions.turns(conversation.session)
    if not turns:
        raise Unusable("this session has no turns yet")
    if len(turns) > MOST:
        conversation.console.print(f"the last {MOST} of {len(turns)} turns:", style="dim")
    listing.turns(conversation.console, conversation.cairn, conversation.session.id, turns[-MOST:])


def _rewind(conversation: Conversation, rest: str) -> None:
    turns = conversation.cairn.sessions.turns(conversation.session)
    if not turns:
        raise Unusable("this session has no turns yet")
    turn = _number(rest, "/rewind TURN") if rest else turns[-1].index
    conversation.open(conversation.cairn.sessions.rewind(conversation.session, turn=turn))
    conversation.console.print(f"turn {turn} and all after it are forgotten: {conversation.tokens:,} tokens are left")


def _fork(conversation: Conversation, _: str) -> None:
    session = conversation.cairn.sessions.fork(conversation.session)
    conversation.begun.append(session.id)
    _enter(conversation, session)


def _new(conversation: Conversation, _: str) -> None:
    session = conversation.cairn.sessions.create()
    conversation.begun.append(session.id)
    _enter(conversation, session)


def _open(conversation: Conversation, rest: str) -> None:
    if not rest:
        raise Unusable("say which: /open SESSION; /sessions lists them")
    _enter(conversation, conversation.cairn.sessions.get(rest))


def _sessions(conversation: Conversation, _: str) -> None:
    latest = sorted(conversation.cairn.sessions.list(), key=lambda session: -session.used)[:MOST]
    listing.sessions(conversation.console, conversation.cairn, latest)


def _export(conversation: Conversation, rest: str) -> None:
    path = _path(rest, "") if rest else Path(f"{conversation.session.id}.cairn")
    with moving(conversation.console, "exporting") as moved:
        written = conversation.cairn.sessions.export(conversation.session, path, progress=moved)
    conversation.console.print(f"{path}: {written:,} bytes", markup=False)


def _help(conversation: Conversation, _: str) -> None:
    screen.explained(
        conversation.console,
        [(f"/{name} {command.takes}".rstrip(), command.does) for name, command in COMMANDS.items()],
    )
    conversation.console.print("Ctrl-C stops an answer. Alt-Enter begins a new line. Ctrl-D leaves.")


def _quit(_conversation: Conversation, _: str) -> None:
    raise Leave


COMMANDS = {
    "attach": Command("FILE", "read a file into the session: text, Markdown, HTML or PDF", _attach),
    "passages": Command("", "show what the last answer has read most", _passages),
    "search": Command("QUESTION", "show what the model reads most for a question, without asking it", _search),
    "turns": Command("", "list the turns of this session", _turns),
    "rewind": Command("[TURN]", "forget a turn, left out the last, and all after it", _rewind),
    "fork": Command("", "go on in a session with the same past; this one stays as it is", _fork),
    "new": Command("", "begin a new session", _new),
    "sessions": Command("", "list your sessions", _sessions),
    "open": Command("SESSION", "go on in another session", _open),
    "export": Command("[FILE]", "write this session to a file", _export),
    "help": Command("", "show this list", _help),
    "quit": Command("", "leave; the session is kept", _quit),
}


def _enter(conversation: Conversation, session: Session) -> None:
    conversation.open(session)
    conversation.console.print(f"session {session.id}, {session.tokens:,} tokens")


def _path(rest: str, usage: str) -> Path:
    """The one file that the rest of a line names, quoted or not."""
    if not rest:
        raise Unusable(f"say which file: {usage}")
    if Path(rest).expanduser().exists():
        return Path(rest).expanduser()
    try:
        words = shlex.split(rest)
    except ValueError:
        words = [rest]
    return Path(" ".join(words)).expanduser()


def _number(rest: str, usage: str) -> int:
    if not rest.isdecimal():
        raise Unusable(f"{rest!r} is no number: {usage}")
    return int(rest)
