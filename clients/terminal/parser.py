"""The arguments of every command, and help that teaches them by examples. Imports nothing that takes time.

What the server's own commands take is the server's to say: they are only named here.
"""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from clients.terminal.values import temperature, url, whole, words

SERVER_COMMANDS = {
    "serve": "serve a model over HTTP",
    "check": "verify a folder of stored sessions",
    "keys": "make, list and revoke API keys",
}
ABOUT = "Cairn: an inference server whose KV cache is a searchable memory, and what to use it with."
EXITS = """exit codes:
  0  done                     3  no server is ready at that address
  1  failed                   4  the server refused: the key, the session, a limit
  2  a wrong command line     130  interrupted"""
START = """examples:
  cairn serve --model models/cairn-4m          a server on http://127.0.0.1:8000
  cairn ask book.txt "Who is the murderer?"    read a file once, ask about it as often as you like
  cairn chat                                   talk; sessions are kept
  cairn COMMAND --help                         more, with examples

environment:
  CAIRN_URL, CAIRN_API_KEY                     where the server is and its key, instead of --url and --api-key
"""


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=min(110, shutil.get_terminal_size().columns))

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if action.nargs == argparse.PARSER:  # commands are indented further, which is not counted there
            self._action_max_length += self._indent_increment


class Strict(argparse.ArgumentParser):
    """Says itself which of its arguments it does not know; argparse lets the outermost parser do that."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def build() -> argparse.ArgumentParser:
    """The parser of `cairn`."""
    parser = argparse.ArgumentParser(prog="cairn", description=ABOUT, epilog=f"{START}\n{EXITS}", formatter_class=Help)
    parser.add_argument("--version", action=Version, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Strict)
    _chat(commands)
    _ask(commands)
    _sessions(commands)
    _bench(commands)
    for name, text in SERVER_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    shells = command(commands, "completion", "complete commands, options and sessions by Tab", COMPLETION, server=False)
    shells.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell to write a script for")
    return parser


def command(commands: Any, name: str, text: str, examples: str, *, server: bool = True) -> argparse.ArgumentParser:
    """A command with its examples; `server` tells whether it talks to one."""
    about = f"{text[0].upper()}{text[1:]}."
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=about, epilog=f"examples:\n{examples}", formatter_class=Help
    )
    if server:
        there = added.add_argument_group("server")
        there.add_argument("--url", type=url, help="where it is (default: CAIRN_URL, else http://127.0.0.1:8000)")
        there.add_argument("--api-key", metavar="KEY", help="its key (default: CAIRN_API_KEY)")
    return added


class Version(argparse.Action):
    """Shows the version of what is installed; looked up only then."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("cairn-server")
        except PackageNotFoundError:
            from cairn_client import __version__ as found
        print(f"cairn {found}")
        parser.exit()


# -- chat and ask --------------------------------------------------------------------------------------------

CHAT = """\
  cairn chat                          choose a session, or begin a new one
  cairn chat --new                    begin a new one at once
  cairn chat 6bfe2f9d1c0a4e55b7d0     go on in this one
  cairn chat --url http://gpu:8000    with a server on another machine
  echo "What is the sea?" | cairn chat --new

Within a chat, /help lists the commands: /attach book.pdf, /passages, /search, /rewind, /fork and others.
Ctrl-C stops an answer, the session keeps what was said; Ctrl-D or /quit leaves."""

ASK = """\
  cairn ask book.txt "Who is the murderer?"
  cairn ask report.pdf "What did it cost?" --passages        and where that is written
  cairn ask notes.md "Is the bridge open?" --json | jq .answer
  pdftotext report.pdf - | cairn ask - "What did it cost?"   from a pipe

The file is read into a session once; the next question about the same file finds it. Each question is asked
in a fork of its own, so that no answer depends on the questions before it."""

COMPLETION = """\
  cairn completion bash > ~/.local/share/bash-completion/completions/cairn
  cairn completion zsh  > ~/.zfunc/_cairn        with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc
  cairn completion fish > ~/.config/fish/completions/cairn.fish"""


def _chat(commands: Any) -> None:
    parser = command(commands, "chat", "talk with the model in a session", CHAT)
    session_argument(parser, nargs="?", text="the session to go on in (left out: choose one)")
    parser.add_argument("--new", action="store_true", help="begin a new session without asking")
    parser.add_argument("--plain", action="store_true", help="print answers as they come, without rendering Markdown")
    parser.add_argument("--passages", type=whole(1, 100), default=5, metavar="N", help="how many /passages shows (5)")
    _sampling(parser, usual=None)


def _ask(commands: Any) -> None:
    parser = command(commands, "ask", "ask a question about a file", ASK)
    parser.add_argument("file", metavar="FILE", help="text, Markdown, HTML or PDF; - reads standard input")
    parser.add_argument("question", metavar="QUESTION", type=words, help="what to ask, in quotes")
    told: dict[str, Any] = {"nargs": "?", "const": 5, "default": 0, "type": whole(1, 100), "metavar": "N"}
    parser.add_argument("--passages", help="show the passages that the answer read most (5)", **told)
    parser.add_argument("--json", action="store_true", help="print the answer and all about it as JSON")
    parser.add_argument("--again", action="store_true", help="read the file again, even if a session holds it")
    parser.add_argument("--keep", action="store_true", help="keep the session of this question, to go on in it")
    _sampling(parser, usual=0.0)


def _sampling(parser: argparse.ArgumentParser, usual: float | None) -> None:
    group = parser.add_argument_group("answers")
    shown = "the server's" if usual is None else f"{usual:g}"
    group.add_argument("--temperature", type=temperature, default=usual, metavar="T", help=f"0 to 2 (default: {shown})")
    group.add_argument("--max-tokens", type=whole(1), metavar="N", help="the longest answer (default: the server's)")
    group.add_argument(
        "--seed", type=whole(-(2**63), 2**63 - 1), metavar="N", help="makes what is drawn at a temperature repeatable"
    )


def session_argument(parser: argparse.ArgumentParser, text: str = "its id", **more: Any) -> None:
    """An id, which Tab completes by asking the server."""
    from clients.terminal.completion import session_ids

    argument = parser.add_argument("session", metavar="SESSION", help=text, **more)
    argument.completer = session_ids  # type: ignore[attr-defined]  # argcomplete looks for it


# -- sessions ------------------------------------------------------------------------------------------------

SESSIONS = """\
  cairn sessions list
  cairn sessions show 6bfe2f9d1c0a4e55b7d0 --text
  cairn sessions export 6bfe2f9d1c0a4e55b7d0 -o book.cairn
  cairn sessions search 6bfe2f9d1c0a4e55b7d0 "the bridge"

Where output is no terminal, lists are lines of fields with tabs between them; --json is for programs."""


def _sessions(commands: Any) -> None:
    parser = command(commands, "sessions", "look after sessions", SESSIONS, server=False)
    kinds = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _lists(kinds)
    _changes(kinds)
    _files(kinds)


def _lists(kinds: Any) -> None:
    listed = command(kinds, "list", "list sessions, the latest used first", "  cairn sessions list --limit 100")
    listed.add_argument("--limit", type=whole(1), default=20, metavar="N", help="how many at most (default: 20)")
    shown = command(
        kinds, "show", "show a session", "  cairn sessions show ID --turns\n  cairn sessions show ID --text"
    )
    session_argument(shown)
    shown.add_argument("--turns", action="store_true", help="the requests that it was made by")
    shown.add_argument("--text", action="store_true", help="the text that it holds, and nothing else")
    about = "find what the model reads most for a query"
    found = command(kinds, "search", about, '  cairn sessions search ID "the bridge" --passages 3')
    session_argument(found)
    found.add_argument("query", metavar="QUERY", type=words, help="what to look for, in quotes")
    found.add_argument("--passages", type=whole(1, 100), default=5, metavar="N", help="how many (default: 5)")
    for each in (listed, shown, found):
        each.add_argument("--json", action="store_true", help="print JSON")


def _changes(kinds: Any) -> None:
    forked = command(kinds, "fork", "begin a session with the same past", "  cairn sessions fork ID")
    session_argument(forked)
    deleted = command(kinds, "delete", "forget sessions", "  cairn sessions delete ID ID ID")
    session_argument(deleted, nargs="+", text="their ids")
    examples = "  cairn sessions rewind ID --turn 2       forget turn 2 and all after it (see `show --turns`)\n"
    examples += "  cairn sessions rewind ID --tokens 5000  keep only the first 5,000 tokens"
    rewound = command(kinds, "rewind", "forget the end of a session; its forks stay as they are", examples)
    session_argument(rewound)
    where = rewound.add_mutually_exclusive_group(required=True)
    where.add_argument("--turn", type=whole(0), metavar="N", help="forget from the beginning of this turn on")
    where.add_argument("--tokens", type=whole(0), metavar="N", help="keep so many tokens")


def _files(kinds: Any) -> None:
    examples = "  cairn sessions export ID                       to ID.cairn\n"
    examples += "  cairn sessions export ID -o - --no-kv | gzip   only what it says, to a pipe"
    exported = command(kinds, "export", "write a session to a file", examples)
    session_argument(exported)
    exported.add_argument("-o", "--output", metavar="FILE", help="where to (default: ID.cairn; -: standard output)")
    exported.add_argument("--no-kv", action="store_true", help="without keys and values: small, and computed again")
    imported = command(kinds, "import", "make a session from a file", "  cairn sessions import book.cairn")
    imported.add_argument("file", metavar="FILE", help="what export wrote")


# -- bench ---------------------------------------------------------------------------------------------------

BENCH = """\
  cairn bench                                     4 clients at once, 16 requests
  cairn bench --clients 1 --prompt-tokens 32000   a long prompt alone
  cairn bench --clients 16 --requests 64 --json > load.json

Every prompt is new to the server, so nothing is found in its cache; every answer is as long as --max-tokens."""


def _bench(commands: Any) -> None:
    parser = command(commands, "bench", "measure a running server under load", BENCH)
    parser.add_argument("--clients", type=whole(1, 1000), default=4, metavar="N", help="that ask at once (default: 4)")
    parser.add_argument("--requests", type=whole(1), default=16, metavar="N", help="of all clients (default: 16)")
    parser.add_argument("--prompt-tokens", type=whole(1), default=512, metavar="N", help="about so many (default: 512)")
    parser.add_argument("--max-tokens", type=whole(2), default=64, metavar="N", help="of each answer (default: 64)")
    parser.add_argument("--seed", type=whole(0), metavar="N", help="of the prompts (default: another each time)")
    parser.add_argument("--json", action="store_true", help="print JSON")
