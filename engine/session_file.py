"""A session as one file in the safetensors format: what it holds, in which order, and whether a file can be trusted.

    turns      I64  (turns, 4)      number, first token, first token of the answer, blocks per head before it or -1
    blocks     the cache's type     (blocks, layers, kv_heads, 2, block_size, head_dim): keys, then values
    tokens     I32  (tokens,)
    checksums  U32  (blocks, 2)     CRC-32 of a block and of its entry, each begun with the block's number
    landmarks  U8   (blocks, entry_bytes): what the indexes keep of a block
    readings   F64  (runs, 3)       how tokens are read from one on: first token, blocks per head, top-p or 0; -1 reads
                                    all blocks, -2 leaves it to the server, as for all tokens before the first run
    notes      U8   (bytes,)        what the exporting server knows besides; nobody here looks into it

A file without keys and values has `turns`, `tokens`, `notes` and perhaps `readings` only. Where the server decides for
all tokens there are no `readings` and the version is 1, else it is 2: who does not know them must not use the blocks.
Sizes are known before a block is read, so a
file is written from its beginning to its end, block by block. Knows no session that is served, and no text.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cache import EVERYTHING, SERVER, CacheLayout, Run, Session, Turn
from engine.errors import InvalidSessionFile

Bytes = NDArray[np.uint8]
FORMAT, PLAIN, VERSION = "cairn.session", "1", "2"
MOST_HEADER = 64 << 10
"""Bytes of a header that is still looked at."""
MOST_NOTES = 8 << 20
"""Bytes of notes that are taken."""
TOGETHER = 8
"""Blocks that are read, written or taken in at once."""
TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
WIDTHS = {"U8": 1, "BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U32": 4, "I64": 8, "F64": 8}
TEXT, KEPT = {"turns", "tokens", "notes"}, {"blocks", "checksums", "landmarks"}
READINGS = "readings"
MOST_FETCHED = 4096


@dataclass(frozen=True)
class Origin:
    """Where a session comes from: only what agrees can be used.

    Attributes:
        fingerprint: of model and cache settings; keys and values of another one mean something else
        vocabulary: what token numbers stand for; tokens of another one are another text
        model: its name, for people
    """

    fingerprint: str
    vocabulary: str
    model: str


def text_checksum(tokens: Tensor, turns: Tensor, raised: str, notes: bytes, readings: Tensor | None = None) -> str:
    """Of what a session was told, with its turns, what an audit has raised, what is noted, and how tokens are read."""
    digest = hashlib.blake2b(tokens.numpy().tobytes(), digest_size=16)
    digest.update(turns.numpy().tobytes() + raised.encode() + b"\0" + notes)
    if readings is not None:
        digest.update(readings.numpy().tobytes())
    return digest.hexdigest()


def checksum(number: int, body: bytes | memoryview) -> int:
    """Of what belongs to block `number`."""
    return zlib.crc32(body, number & 0xFFFFFFFF)


# -- writing -------------------------------------------------------------------------------------------------


class SessionWriter:
    """The file of a session that does not change while it is written.

    Args:
        session: it is only read
        origin: as the file tells it
        kv: whether to write keys and values
        notes: for whoever reads the file
    """

    def __init__(self, session: Session, origin: Origin, *, kv: bool, notes: bytes = b"") -> None:
        self._session, self._notes = session, notes
        self._blocks = session.sealed if kv else 0
        self._turns = turns_tensor(session)
        self._tokens = torch.tensor(session.tokens.tolist(), dtype=torch.int32)
        raised = json.dumps(session.blocks_per_head)
        runs = session.readings.runs
        self._readings = torch.tensor(runs, dtype=torch.float64) if runs else None  # (runs, 3)
        text = text_checksum(self._tokens, self._turns, raised, notes, self._readings)
        facts = {"format": FORMAT, "version": VERSION if runs else PLAIN, **vars(origin)}
        facts |= {"text": text, "blocks_per_head": raised}
        self._header, body = header(facts, self._shapes())
        self.size = len(self._header) + body
        """Bytes of the whole file."""

    def _shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        layout, count = self._session.layout, self._blocks
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {"turns": ("I64", tuple(self._turns.shape))}
        if count:
            shapes["blocks"] = (TYPES[layout.dtype], block_shape(layout, count))
        shapes["tokens"] = ("I32", (len(self._tokens),))
        if count:
            shapes["checksums"] = ("U32", (count, 2))
            shapes["landmarks"] = ("U8", (count, self._session.entry_bytes))
        if self._readings is not None:
            shapes[READINGS] = ("F64", tuple(self._readings.shape))
        shapes["notes"] = ("U8", (len(self._notes),))
        return shapes

    def chunks(self) -> Iterator[bytes]:
        """The file in pieces; raises DamagedBlock."""
        yield self._header + self._turns.numpy().tobytes()
        sums = np.zeros((self._blocks, 2), "<u4")
        for block in range(self._blocks):
            units = self._session.units(block).tobytes()
            sums[block, 0] = checksum(block, units)
            yield units
        yield self._tokens.numpy().tobytes()
        if self._blocks:
            entries = self._session.entries(0, self._blocks)
            sums[:, 1] = [checksum(block, entry.data) for block, entry in enumerate(entries)]
            yield sums.tobytes()
            yield entries.tobytes()
        if self._readings is not None:
            yield self._readings.numpy().tobytes()
        yield self._notes


def header(facts: Mapping[str, str], shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, int]:
    """What a file begins with, and how many bytes follow."""
    tensors: dict[str, Any] = {"__metadata__": dict(facts)}
    end = 0
    for name, (kind, shape) in shapes.items():
        start, end = end, end + WIDTHS[kind] * int(np.prod(shape, dtype=np.int64))
        tensors[name] = {"dtype": kind, "shape": shape, "data_offsets": (start, end)}
    told = json.dumps(tensors).encode()
    told += b" " * (-len(told) % 8)
    return struct.pack("<Q", len(told)) + told, end


def block_shape(layout: CacheLayout, count: int) -> tuple[int, ...]:
    """Of the tensor of blocks."""
    return (count, layout.layers, layout.kv_heads, 2, layout.block_size, layout.head_dim)


def turns_tensor(session: Session) -> Tensor:
    """Turns that changed something, as the file has them: (turns, 4)."""
    rows = [
        (turn.index, turn.start, turn.answer, -1 if turn.blocks_per_head is None else turn.blocks_per_head)
        for turn, _ in session.turns.with_ends(len(session.tokens))
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


# -- reading -------------------------------------------------------------------------------------------------


class SessionFile:
    """A file that somebody sent; what is read of it is checked.

    Raises:
        InvalidSessionFile: it is damaged, or no session's
    """

    def __init__(self, path: Path) -> None:
        try:
            self._look(path)
            mapped: Any = safe_open  # without types
            self._file = mapped(path, framework="pt")
        except (OSError, SafetensorError, struct.error) as error:
            raise InvalidSessionFile(f"the file is not in the safetensors format, or not complete: {error}") from error
        self._facts: dict[str, str] = self._file.metadata() or {}
        version = self._facts.get("version")
        if self._facts.get("format") != FORMAT or version not in (PLAIN, VERSION):
            raise InvalidSessionFile(
                f"the file's metadata do not say that it is a {FORMAT} of version {PLAIN} or {VERSION}"
            )
        names = set(self._file.keys())
        self._has_readings = READINGS in names
        names -= {READINGS}
        if names not in (TEXT, TEXT | KEPT) or self._has_readings != (version == VERSION):
            raise InvalidSessionFile(f"the file must hold {', '.join(sorted(TEXT))}, and either all or none of "
                                     f"{', '.join(sorted(KEPT))}; {READINGS} in version {VERSION} alone")  # fmt: skip
        self.count = self._shape("checksums")[0] if names > TEXT else 0
        """Blocks whose keys and values are in the file."""
        self.length = self._expect("tokens", "I32", (None,))[0]
        """Text tokens."""

    def _look(self, path: Path) -> None:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            begins = file.read(1)
        if size > MOST_HEADER or begins != b"{":
            raise InvalidSessionFile("the file is no session file: it does not begin as what an export writes")

    def _shape(self, name: str) -> list[int]:
        shape: list[int] = self._file.get_slice(name).get_shape()
        return shape or [0]

    def _expect(self, name: str, kind: str, shape: tuple[int | None, ...]) -> list[int]:
        """The shape of a tensor, which must be of this type and have these sizes where one is given."""
        found, told = self._shape(name), self._file.get_slice(name).get_dtype()
        fits = len(found) == len(shape) and all(b in (None, a) for a, b in zip(found, shape, strict=True))
        if told != kind or not fits:
            raise InvalidSessionFile(f"{name}: is {told} of shape {found}, must be {kind} of {list(shape)}")
        return found

    def origin(self) -> Origin:
        """Where it says that it comes from."""
        return Origin(*(self._facts.get(name, "") for name in ("fingerprint", "vocabulary", "model")))

    def text(self, most_turns: int) -> tuple[Tensor, list[Turn], bytes]:
        """Tokens (tokens,), turns and notes; their checksum is right, and what turns say makes sense."""
        count = self._expect("turns", "I64", (None, 4))[0]
        if count > most_turns:
            raise InvalidSessionFile(f"turns: there are {count}, the limit is {most_turns}")
        tokens, turns = self._file.get_tensor("tokens"), self._file.get_tensor("turns")
        size = self._expect("notes", "U8", (None,))[0]
        if size > MOST_NOTES:
            raise InvalidSessionFile(f"notes: there are {size} bytes, the limit is {MOST_NOTES}")
        notes = self._file.get_tensor("notes").numpy().tobytes()
        raised = self._facts.get("blocks_per_head", "")
        if text_checksum(tokens, turns, raised, notes, self._readings) != self._facts.get("text"):
            raise InvalidSessionFile("tokens: the text has a wrong checksum, the file is damaged")
        rows = turns.tolist()
        told = [Turn(index, start, answer, None if raised < 0 else raised) for index, start, answer, raised in rows]
        edges = [edge for turn in told for edge in (turn.start, turn.answer)]
        numbers = [turn.index for turn in told]
        sensible = edges == sorted(edges) and len({turn.start for turn in told}) == len(told)
        follows = numbers == list(range(*(numbers[0], numbers[0] + len(told)))) if numbers else True
        if not (sensible and follows and all(0 <= edge <= self.length for edge in edges)):
            raise InvalidSessionFile("turns: they overlap, or lie behind the text")
        return tokens, told, notes

    @property
    def _readings(self) -> Tensor | None:
        """(runs, 3)"""
        if not self._has_readings:
            return None
        self._expect(READINGS, "F64", (None, 3))
        readings = self._file.get_tensor(READINGS)
        assert isinstance(readings, Tensor)
        return readings

    def runs(self) -> list[Run]:
        """How tokens are read; what they say makes sense."""
        rows = [] if self._readings is None else self._readings.tolist()
        found = [Run(int(start), int(fetch), top_p) for start, fetch, top_p in rows if isfinite(start + fetch)]
        starts = [run.start for run in found]
        sensible = [list(run) for run in found] == rows and starts == sorted(set(starts))
        sensible &= all(0 <= run.start < self.length and SERVER <= run.fetch <= MOST_FETCHED for run in found)
        plain = [run for run in found if run.fetch in (SERVER, EVERYTHING)]
        sensible &= all(run.top_p == 0 for run in plain) and all(0 <= run.top_p <= 1 for run in found)
        sensible &= all(a[1:] != b[1:] for a, b in pairwise([Run(0, SERVER, 0.0), *found]))
        if not sensible:
            raise InvalidSessionFile(f"{READINGS}: they overlap, lie behind the text, or are no readings")
        return found

    @property
    def blocks_per_head(self) -> int | None:
        """What an audit had raised it to."""
        told = self._facts.get("blocks_per_head", "null")
        return int(told) if told.isdecimal() and len(told) < 6 else None

    def check_blocks(self, layout: CacheLayout, entry_bytes: int, sensible: Callable[[Bytes], bool]) -> None:
        """Read all blocks, for such a cache; InvalidSessionFile names the first that is wrong.

        Args:
            sensible: whether entries (blocks, entry_bytes) are what indexes can have kept
        """
        if self.count > self.length // layout.text_per_block:
            raise InvalidSessionFile(f"blocks: there are {self.count}, more than {self.length} tokens fill")
        self._expect("checksums", "U32", (self.count, 2))
        self._expect("landmarks", "U8", (self.count, entry_bytes))
        self._expect("blocks", TYPES[layout.dtype], block_shape(layout, self.count))
        sums = self._file.get_tensor("checksums").numpy()
        for first, units, entries in self.blocks():
            for number, (block, entry) in enumerate(zip(units, entries, strict=True), first):
                if (checksum(number, block.data), checksum(number, entry.data)) != tuple(sums[number].tolist()):
                    raise InvalidSessionFile(f"block {number} has a wrong checksum, the file is damaged", number)
            if not torch.from_numpy(units).view(layout.dtype).isfinite().all():
                raise InvalidSessionFile(f"blocks from {first} on hold what is no number", first)
            if not sensible(entries):
                raise InvalidSessionFile(f"landmarks from block {first} on hold what is no number", first)

    def blocks(self) -> Iterator[tuple[int, Bytes, Bytes]]:
        """Some blocks at a time: the first's number, keys and values, and entries, as Session.take_in has them."""
        blocks, landmarks = self._file.get_slice("blocks"), self._file.get_slice("landmarks")
        for first in range(0, self.count, TOGETHER):
            last = min(first + TOGETHER, self.count)
            units = blocks[first:last].flatten(3).contiguous().view(torch.uint8).numpy()
            yield first, units, landmarks[first:last].numpy()
