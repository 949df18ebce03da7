"""`cairn chat`: lines in, answers out, until the end."""

from __future__ import annotations

import sys
from argparse import Namespace

from cairn_client import Cairn, CairnError, Session

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
        session = _session(cairn, options, talking)
        conversation = Conversation(cairn, session, console, options, rendered=talking and not options.plain)
        return _talk(conversation) if talking else _answer_lines(conversation)


def _session(cairn: Cairn, options: Namespace, talking: bool) -> Session:
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
    conversation.console.print(f"go on with: cairn chat {conversation.session.id}", style="dim")
    return exits.OK


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
    return exits.OK


def _line(conversation: Conversation, line: str) -> None:
    if line.startswith("/"):
        carry_out(conversation, line)
    else:
        conversation.ask(line)


def _status(conversation: Conversation) -> str:
    return f" session {conversation.session.id} · {conversation.tokens:,} tokens"
