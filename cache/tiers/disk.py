"""Sealed blocks in files: records of which each head can be read by itself, and what the index keeps of them.

`blocks.kv` holds, in record n, the block of slot n: a header, then for each layer and head its keys and its values in
one piece, as they lie in memory. `landmarks.kv` holds, in entry n, what an index needs of that block, so that a session
comes back without reading its keys. Both begin with a page that tells version, fingerprint and sizes.

Every head of a block and every entry has a checksum, looked at whenever it is read, and carries the block's hash: what
was torn, damaged or belongs to another block is never taken for it. Knows no session and no memory tier.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import DamagedBlock, StoreError
from cache.layout import Bytes, CacheLayout

VERSION = 1
PAGE = 4096
MAGIC = b"CairnKV\0"
FILE_HEADER = struct.Struct("<8sI32s7Q16s")
"""Magic, version, fingerprint, bytes of a record and of an entry; layers, KV heads, channels, positions of a block and
those of them that are landmarks; the type of the numbers."""
HEADER = struct.Struct("<16sI")
"""Of a record and of an entry: hash, and the checksum of the hash and what follows."""
BLOCKS, LANDMARKS = "blocks.kv", "landmarks.kv"


class DiskTier:
    """Records of one model and one way to read it, in a folder.

    Args:
        folder: made if it is not there
        layout: shapes of a block
        entry_bytes: what an index keeps of a block, over all layers
        capacity_bytes: of both files
        fingerprint: 32 bytes; files of another one are refused

    Raises:
        StoreError: the folder cannot be used
    """

    name = "disk"

    def __init__(
        self, folder: Path, layout: CacheLayout, entry_bytes: int, capacity_bytes: int, fingerprint: bytes
    ) -> None:
        self.layout = layout
        self.capacity_bytes = capacity_bytes
        self.entry_bytes = entry_bytes
        self.folder = folder
        self._heads = layout.layers * layout.kv_heads
        self.unit_bytes = layout.block_bytes // self._heads
        self._first = padded(HEADER.size + 4 * self._heads)
        self.record_bytes = self._first + padded(layout.block_bytes)
        self._entry = np.dtype([("hash", "V16"), ("sum", "<u4"), ("body", "u1", (entry_bytes,))])
        self.capacity = max(0, capacity_bytes - 2 * PAGE) // (self.record_bytes + self._entry.itemsize)
        sizes = (layout.layers, layout.kv_heads, layout.head_dim, layout.block_size, layout.landmark_positions)
        dtype = str(layout.dtype).removeprefix("torch.").encode()
        self._header = FILE_HEADER.pack(MAGIC, VERSION, fingerprint, self.record_bytes, entry_bytes, *sizes, dtype)
        # Checksums of the heads of each block that was written or read; the system backs only what is touched.
        self._sums = np.zeros((self.capacity, layout.layers, layout.kv_heads), dtype="<u4")
        self._blocks = self._landmarks = -1
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._blocks = os.open(folder / BLOCKS, os.O_RDWR | os.O_CREAT, 0o600)
            self._landmarks = os.open(folder / LANDMARKS, os.O_RDWR | os.O_CREAT, 0o600)
            self._begin(self._blocks, BLOCKS)
            self._begin(self._landmarks, LANDMARKS)
        except (OSError, StoreError) as error:
            self.close()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"the store in {folder} cannot be used: {error.strerror or error}") from error

    @classmethod
    def found(cls, folder: Path, blocks: int) -> DiskTier:
        """The records that are in a folder, as its files tell; StoreError if they do not."""
        try:
            with (folder / BLOCKS).open("rb") as file:
                facts = FILE_HEADER.unpack(file.read(FILE_HEADER.size))
        except (OSError, struct.error) as error:
            raise StoreError(f"{folder / BLOCKS} tells nothing: {error}") from error
        magic, version, fingerprint, record, entry, layers, heads, channels, size, landmarks, kind = facts
        dtype = getattr(torch, kind.rstrip(b"\0").decode(errors="replace"), None)
        if magic != MAGIC or version != VERSION or not isinstance(dtype, torch.dtype):
            raise StoreError(f"{folder / BLOCKS} is not a file of this version")
        layout = CacheLayout(layers, heads, channels, size, dtype, landmarks)
        return cls(folder, layout, entry, 2 * PAGE + blocks * (record + entry + HEADER.size), fingerprint)

    def _begin(self, handle: int, name: str) -> None:
        """Begin a new file, or one that a full disk left without all of its header; StoreError if it is another's."""
        found = os.pread(handle, FILE_HEADER.size, 0)
        if len(found) < len(self._header) and self._header.startswith(found):
            write_all(handle, [self._header.ljust(PAGE, b"\0")], 0)
        elif found != self._header:
            raise StoreError(f"{self.folder / name} is not a file of this version, model and settings; move it away")

    @property
    def used_bytes(self) -> int:
        """Bytes of both files that the disk backs."""
        return sum(512 * os.fstat(handle).st_blocks for handle in (self._blocks, self._landmarks) if handle >= 0)

    def close(self) -> None:
        """Close the files, if they are open; nothing must be read or written any more."""
        handles = [handle for handle in (self._blocks, self._landmarks) if handle >= 0]
        self._blocks = self._landmarks = -1  # their numbers may soon be those of other files
        for handle in handles:
            os.close(handle)

    def vanished(self) -> bool:
        """Whether the folder does not lead to the open files any more: what is written would be lost with them."""
        return not (self._is(BLOCKS, self._blocks) and self._is(LANDMARKS, self._landmarks))

    def _is(self, name: str, handle: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.folder / name), os.fstat(handle))
        except OSError:
            return False

    def _record_at(self, slot: int) -> int:
        return PAGE + slot * self.record_bytes

    def _unit_at(self, layer: int, slot: int, head: int) -> int:
        return self._record_at(slot) + self._first + (layer * self.layout.kv_heads + head) * self.unit_bytes

    def _entry_at(self, slot: int) -> int:
        return PAGE + slot * self._entry.itemsize

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, slot: int, digest: bytes, units: Bytes, entry: Bytes) -> None:
        """Store a block.

        Args:
            units: keys, then values of each head (layers, kv_heads, unit_bytes)
            entry: what its index keeps (entry_bytes,)

        Raises:
            OSError: it could not be written; what the record held before is gone
        """
        sums = np.array([zlib.crc32(unit.data) for unit in units.reshape(self._heads, -1)], dtype="<u4")
        head = (header(digest, sums.data) + sums.tobytes()).ljust(self._first, b"\0")
        write_all(self._blocks, [head, units.reshape(-1).data], self._record_at(slot))
        write_all(self._landmarks, [header(digest, entry.data), entry.data], self._entry_at(slot))
        self._sums[slot] = sums.reshape(self._sums.shape[1:])

    # -- reading ---------------------------------------------------------------------------------------------

    def expect(self, slot: int, digest: bytes) -> None:
        """Look at a record's header; DamagedBlock if it does not hold the block of this hash."""
        size = HEADER.size + 4 * self._heads
        found = os.pread(self._blocks, size, self._record_at(slot))
        table = found[HEADER.size :]
        if len(found) < size or not found.startswith(digest):
            raise DamagedBlock(slot, "another block, or none, was found in its place")
        if not found.startswith(header(digest, table)):
            raise DamagedBlock(slot, "its header has a wrong checksum")
        self._sums[slot] = np.frombuffer(table, "<u4").reshape(self._sums.shape[1:])

    def recognised(self, slot: int, digest: bytes) -> bool:
        """Whether this block's header and what its index keeps are there; its keys and values are not looked at."""
        try:
            self.expect(slot, digest)
        except (DamagedBlock, OSError):
            return False
        return len(self.entries([slot], [digest])) == 1

    def read(self, layer: int, slot: int, head: int, keys: Bytes, values: Bytes) -> None:
        """Fill keys and values, unit_bytes / 2 each, of one head; raises DamagedBlock, OSError."""
        if os.preadv(self._blocks, [keys.data, values.data], self._unit_at(layer, slot, head)) < self.unit_bytes:
            raise DamagedBlock(slot, "the file ends before it does")
        if zlib.crc32(values.data, zlib.crc32(keys.data)) != self._sums[slot, layer, head]:
            raise DamagedBlock(slot, f"layer {layer}, head {head} has a wrong checksum")

    def read_whole(self, slot: int, units: Bytes) -> None:
        """Fill units (layers, kv_heads, unit_bytes), contiguous, with a block; raises DamagedBlock, OSError."""
        if os.preadv(self._blocks, [units.reshape(-1).data], self._unit_at(0, slot, 0)) < units.size:
            raise DamagedBlock(slot, "the file ends before it does")
        for layer, heads in enumerate(units):
            for head, unit in enumerate(heads):
                if zlib.crc32(unit.data) != self._sums[slot, layer, head]:
                    raise DamagedBlock(slot, f"layer {layer}, head {head} has a wrong checksum")

    def announce(self, layer: int, slots: Sequence[int], heads: Sequence[int]) -> None:
        """Tell the system what will be read at once, so that a disk works on all of it together."""
        for slot, head in zip(slots, heads, strict=True):
            place = self._unit_at(layer, slot, head)
            os.posix_fadvise(self._blocks, place, self.unit_bytes, os.POSIX_FADV_WILLNEED)

    def entries(self, slots: Sequence[int], digests: Sequence[bytes]) -> Bytes:
        """What the index keeps of blocks, up to the first damaged one: (blocks, entry_bytes)."""
        found = []
        for first, last in runs(slots):
            size = (last - first) * self._entry.itemsize
            try:
                raw = os.pread(self._landmarks, size, self._entry_at(slots[first]))
            except OSError:  # what cannot be read is as good as damaged
                break
            rows = np.frombuffer(raw[: len(raw) // self._entry.itemsize * self._entry.itemsize], self._entry)
            good = self._good(rows, digests[first:last])
            found.append(rows["body"][:good])
            if good < last - first:
                break
        return np.concatenate(found) if found else np.empty((0, *self._entry["body"].shape), np.uint8)

    def _good(self, rows: NDArray[np.void], digests: Sequence[bytes]) -> int:
        """How many of the rows, from the first one on, are what they should be."""
        for count, (row, digest) in enumerate(zip(rows, digests, strict=False)):
            if row["hash"].tobytes() != digest or row["sum"] != zlib.crc32(row["body"], zlib.crc32(digest)):
                return count
        return len(rows)

    def damage(self, slot: int, digest: bytes) -> str | None:
        """What is wrong with a stored block, read as a whole; None if nothing is."""
        keys, values = (np.empty(self.unit_bytes // 2, np.uint8) for _ in range(2))
        try:
            self.expect(slot, digest)
            for layer in range(self.layout.layers):
                for head in range(self.layout.kv_heads):
                    self.read(layer, slot, head, keys, values)
        except (DamagedBlock, OSError) as error:
            return str(error)
        return None if len(self.entries([slot], [digest])) else f"the landmarks of the stored block {slot} are damaged"


def header(digest: bytes, body: bytes | memoryview) -> bytes:
    """What stands before the body of a block with this hash."""
    return HEADER.pack(digest, zlib.crc32(body, zlib.crc32(digest)))


def padded(size: int) -> int:
    """The next multiple of a page."""
    return -(-size // PAGE) * PAGE


def runs(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """[first, last) of the stretches in which each slot is the next one of the slot before it."""
    first = 0
    for i in range(1, len(slots) + 1):
        if i == len(slots) or slots[i] != slots[i - 1] + 1:
            yield first, i
            first = i


def write_all(handle: int, parts: Sequence[bytes | memoryview], place: int) -> None:
    """Write parts one after the other; a short write goes on until the system says why."""
    for part in parts:
        view = memoryview(part).cast("B")
        while view:
            written = os.pwrite(handle, view, place)
            view, place = view[written:], place + written
