"""Which session holds which file, from one run of `cairn ask` to the next: a small file in the user's state folder.

A file is known by its content and its server. The session is asked whether it still holds what it held then.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

import platformdirs
from cairn_client import Cairn, NotFound, Session


def state_folder() -> Path:
    """Where this program keeps what it wants to find again; only its user may look into it."""
    folder = Path(platformdirs.user_state_path("cairn", appauthor=False))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


class Remembered:
    """Sessions by the content that was read into them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "files.json"

    def find(self, cairn: Cairn, content: bytes) -> Session | None:
        """The session that holds `content` and nothing else, if there is one."""
        known = self._load().get(_key(cairn.url, content))
        if known is None:
            return None
        with contextlib.suppress(NotFound):
            session = cairn.sessions.get(str(known["session"]))
            if session.tokens == known["tokens"]:
                return session
        return None

    def keep(self, cairn: Cairn, content: bytes, session: Session) -> None:
        """Remember that `session` holds `content`."""
        known = self._load()
        known[_key(cairn.url, content)] = {"session": session.id, "tokens": session.tokens}
        part = self._path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(known, indent=1), encoding="utf-8")
        part.replace(self._path)

    def _load(self) -> dict[str, dict[str, str | int]]:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there, or not ours: at worst a file is read once more
            return {}
        return known if isinstance(known, dict) else {}


def _key(url: str, content: bytes) -> str:
    return hashlib.sha256(url.encode() + b"\0" + content).hexdigest()
