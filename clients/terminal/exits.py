"""Exit codes of `cairn`, which docs/cli.md tells users."""

from __future__ import annotations

OK = 0
FAILED = 1  # the server failed, or what it sent can not be understood; a file can not be read or written
USAGE = 2  # the command line is wrong
UNREACHABLE = 3  # no server answers there, or it is not ready
REFUSED = 4  # the server refused: the key, the session, a limit
INTERRUPTED = 130  # Ctrl-C
