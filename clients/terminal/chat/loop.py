"""`cairn chat`: lines in, answers out, until the end."""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace

from cairn_client import Cairn, CairnError, Session
from rich.console import Console

from clients.terminal import exits, screen
from clients.terminal.chat import prompt
from clients.terminal.chat.commands import Leave, Unusable, carry_out
from clients.terminal.chat.conversation import Conversation
from clients.terminal.chat.picker import pick
from clients.terminal.connecting import connected
from clients.terminal.failing import message_of
from clients.terminal.remembered import state_folder


def chat(options: Namespace) -> int:
    """Talk until the lines end. Without a terminal, the exit code tells whether every line was answered."""
    talking = sys.stdin.isatty() and sys.stdout.isatty()
    console = screen.output()
    with connected(options) as cairn:
        if (session := _session(cairn, options, talking)) is None:
            return exits.OK
        begun = [session.id] if not (options.session or session.tokens) else []
        conversation = Conversation(cairn, session, console, options, talking and not options.plain, begun)
        return _talk(conversation) if talking else _answer_lines(conversation)


def _session(cairn: Cairn, options: Namespace, talking: bool) -> Session | None:
    if options.session:
        return cairn.sessions.get(options.session)
    return pick(screen.output(), cairn) if talking and not options.new else cairn.sessions.create()


def _talk(conversation: Conversation) -> int:
    """On a terminal: what goes wrong is told, and the conversation goes on."""
    [model, *_] = conversation.cairn.models()
    conversation.console.print(
        f"{model.id} at {conversation.cairn.url}; /help lists commands", style="dim", markup=False
    )
    for line in prompt.edited(state_folder(), lambda: _status(conversation)):
        try:
            if line.strip():
                _line(conversation, line.strip())
        except Leave:
            break
        except KeyboardInterrupt:
            conversation.console.print("(stopped)", style="dim")
        except (Unusable, CairnError, OSError) as error:
            told = str(error) if isinstance(error, Unusable) else message_of(error)
            conversation.console.print(screen.harmless(told), style="red", markup=False)
    _leave(conversation, conversation.console)
    return exits.OK


def _leave(conversation: Conversation, console: Console) -> None:
    """Tell how to come back; what was begun here and says nothing is not left behind."""
    empty = [session for session in conversation.begun if _is_empty(conversation.cairn, session)]
    for session in empty:
        with contextlib.suppress(CairnError):
            conversation.cairn.sessions.delete(session)
    if conversation.session.id not in empty:
        console.print(f"go on with: cairn chat {conversation.session.id}", style="dim")


def _is_empty(cairn: Cairn, session: str) -> bool:
    try:
        found = cairn.sessions.get(session)
    except CairnError:
        return False
    return not found.tokens and not found.busy


def _answer_lines(conversation: Conversation) -> int:
    """Without a terminal: the first thing that goes wrong ends it."""
    try:
        for line in prompt.piped():
            if line.strip():
                _line(conversation, line.strip())
    except Leave:
        pass
    except Unusable as error:
        print(f"cairn: {error}", file=sys.stderr)
        return exits.USAGE
    finally:
        if conversation.begun:
            _leave(conversation, screen.notes())
    return exits.OK


def _line(conversation: Conversation, line: str) -> None:
    if line.startswith("/"):
        carry_out(conversation, line)
    else:
        conversation.ask(line)


def _status(conversation: Conversation) -> str:
    return f" session {conversation.session.id} · {conversation.tokens:,} tokens"
