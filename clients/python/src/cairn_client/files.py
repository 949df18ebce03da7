"""Files on their way to the server and back. Knows no HTTP."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PIECE = 1 << 18
Source = str | os.PathLike[str] | bytes | BinaryIO
Target = str | os.PathLike[str] | BinaryIO
Moved = Callable[[int, int | None], None]
"""Hears how many bytes went over the wire, and of how many if that is known."""


@dataclass(frozen=True)
class Upload:
    """A file to send: a path, bytes, or an open file, which is sent from its beginning and left open."""

    source: Source
    name: str
    media_type: str | None = None
    moved: Moved | None = None

    @property
    def again(self) -> bool:
        """Whether it can be sent a second time."""
        return isinstance(self.source, str | os.PathLike | bytes) or self.source.seekable()

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file at its beginning."""
        if isinstance(self.source, str | os.PathLike):
            with open(self.source, "rb") as file:
                yield file
        elif isinstance(self.source, bytes):
            yield io.BytesIO(self.source)
        else:
            if self.source.seekable():
                self.source.seek(0)
            yield self.source

    def pieces(self, file: BinaryIO) -> Iterator[bytes]:
        """The whole of `file`, and `moved` told after each piece."""
        total, sent = size(file), 0
        while piece := file.read(PIECE):
            yield piece
            sent += len(piece)
            if self.moved:
                self.moved(sent, total)


def upload(source: Source, name: str | None, media_type: str | None = None, moved: Moved | None = None) -> Upload:
    """`source` under `name`, else under the name that it has itself."""
    own = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    found = Path(own).name if isinstance(own, str | os.PathLike) else "document"
    return Upload(source, name or found, media_type, moved)


def size(file: BinaryIO) -> int | None:
    """Bytes of a seekable file, left where it is."""
    if not file.seekable():
        return None
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    return end


@contextlib.contextmanager
def saved(target: Target) -> Iterator[BinaryIO]:
    """A file to write to. A path gets its file when all is written: a broken download leaves nothing behind."""
    if not isinstance(target, str | os.PathLike):
        yield target
        return
    path = Path(target)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(path.parent))
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
