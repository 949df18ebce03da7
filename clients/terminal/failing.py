"""What a failure comes to on a command line: a sentence that says what to do, and an exit code."""

from __future__ import annotations

from cairn_client import (
    ApiError,
    Busy,
    CairnError,
    NotReachable,
    NotReady,
    RateLimited,
    ServerFailed,
    Unauthorized,
    Unavailable,
)

from clients.terminal import exits


def code_of(error: CairnError | OSError) -> int:
    """The exit code."""
    if isinstance(error, NotReachable | NotReady | Unavailable):
        return exits.UNREACHABLE
    return exits.REFUSED if isinstance(error, ApiError) and not isinstance(error, ServerFailed) else exits.FAILED


def message_of(error: CairnError | OSError) -> str:
    """One or two sentences."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    hint = next((text for kind, text in HINTS if isinstance(error, kind)), "")
    return _named(error) + (f"\n{hint}" if hint else "")


def _named(error: CairnError) -> str:
    """What happened; a note of the error names the file, which the server calls `file`."""
    about = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
    return about + (str(error).removeprefix("file: ") if about else str(error))


HINTS: tuple[tuple[type[CairnError], str], ...] = (
    (NotReachable, "Is the server running? Start one with `cairn serve`, or say where it is: --url or CAIRN_URL."),
    (Unauthorized, "Give the server's key: --api-key or CAIRN_API_KEY."),
    (Busy, "Another request is running in this session. Wait for it, or work in a fork: `cairn sessions fork ID`."),
    (RateLimited, "The server has too much to do, or this key has used up what it may. Try again later."),
    (Unavailable, "The server is not ready: its model is loading, or it is shutting down. Try again in a moment."),
)
