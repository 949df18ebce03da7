"""CPU kernels that round rows to 4 bits and write them where `cache.four_bits` wants them.

By torch it takes some ten small calls for each layer whenever a block is filled, and threads that wait for each other
where they are not small. What is rounded is the same to the last bit: each number is divided by the scale, and the
nearest whole one is taken, of two the even one. Compiled by Numba when first called. Numbers in shapes as in
`cache.four_bits`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cache.compiling import compiled
from cache.four_bits import BYTES, HALVES, LANES, LARGEST
from cache.opened import record

Floats = NDArray[np.float32]
Words = NDArray[np.uint8]
Small = NDArray[np.int8]
STEPS = np.float32(LARGEST)
TINY = np.float32(np.finfo(np.float32).tiny)


@compiled
def scale_of(row: Floats) -> np.float32:
    """With which the largest number of a row becomes LARGEST."""
    largest = np.float32(0)
    for x in row:
        largest = max(largest, abs(x))
    return largest / STEPS


@compiled
def round_row(row: Floats, scale: float, numbers: Small) -> None:
    """A row (D,) as numbers from -7 to 7."""
    divisor = max(np.float32(scale), TINY)
    for d in range(len(row)):
        numbers[d] = np.int8(np.rint(row[d] / divisor))


@compiled
def put_row(numbers: Small, words: Words) -> None:
    """Write a row (D,) to its bytes (slices, B): of a slice first the lower halves of all, then the upper ones."""
    run = words.shape[1]
    for part in range(len(words)):
        begin = part * HALVES * run
        for byte in range(run):
            upper = numbers[begin + run + byte] << 4
            words[part, byte] = numbers[begin + byte] & 15 | upper & 240


@compiled
def put_by_row(rows: Floats, words: Words, scales: Floats, first: int) -> None:
    """Write rows (H, N, D) at first, first + 1, … as `ByRow` has them: words (H, N / 16, D / 8, 16, 4)."""
    numbers = np.zeros(words.shape[2] * HALVES * BYTES, np.int8)
    for head in range(rows.shape[0]):
        for n in range(rows.shape[1]):
            at = first + n
            scales[head, at] = scale_of(rows[head, n])
            round_row(rows[head, n], scales[head, at], numbers)
            put_row(numbers, words[head, at // LANES, :, at % LANES])


@compiled
def put_opened(rows: Floats, words: Words, scales: Floats, sizes: Floats, first: int) -> None:
    """Write mean, slope and size of blocks (H, N, 2 D + 1) at first, first + 1, … as `cache.opened` has them.

    Args:
        words: (H, P, slices, 2, 2, 16)
        scales: (H, P, 2, 2)
        sizes: (H, P, 2)
    """
    parts, dim = scales.shape[3], rows.shape[2] // scales.shape[3]
    numbers = np.zeros(words.shape[2] * HALVES * LANES, np.int8)
    for head in range(rows.shape[0]):
        for n in range(rows.shape[1]):
            pair, place = (first + n) // sizes.shape[2], (first + n) % sizes.shape[2]
            for part in range(parts):
                row = rows[head, n, part * dim : (part + 1) * dim]
                scales[head, pair, place, part] = scale_of(row)
                round_row(row, scales[head, pair, place, part], numbers)
                put_row(numbers, words[head, pair, :, place, part])
            sizes[head, pair, place] = rows[head, n, parts * dim]


@compiled
def put_by_channel(rows: Floats, words: Words, scales: Floats, first: int) -> None:
    """The same as `ByChannel` has them, where nothing was written before: words (H, N / 8, D / 16, 16, 4)."""
    numbers = np.zeros(words.shape[2] * LANES, np.int8)
    for head in range(rows.shape[0]):
        for n in range(rows.shape[1]):
            at = first + n
            scales[head, at] = scale_of(rows[head, n])
            round_row(rows[head, n], scales[head, at], numbers)
            tile, byte, shift = at // (HALVES * BYTES), at % BYTES, 4 * (at // BYTES % HALVES)
            for group in range(words.shape[2]):
                for lane in range(LANES):
                    words[head, tile, group, lane, byte] |= (numbers[group * LANES + lane] & 15) << shift


@compiled
def rows_by_row(words: Words, scales: Floats, first: int, to: Floats) -> None:
    """Rows first, first + 1, … of `ByRow` as they are kept, to (H, N, D)."""
    for head in range(to.shape[0]):
        for n in range(to.shape[1]):
            tile, lane, scale = (first + n) // LANES, (first + n) % LANES, scales[head, first + n]
            for d in range(to.shape[2]):
                byte = words[head, tile, d // (HALVES * BYTES), lane, d % BYTES]
                nibble = np.int64(byte) >> 4 * (d // BYTES % HALVES) & 15
                to[head, n, d] = np.float32((nibble ^ 8) - 8) * scale


@compiled
def rows_by_channel(words: Words, scales: Floats, first: int, to: Floats) -> None:
    """The same of `ByChannel`."""
    for head in range(to.shape[0]):
        for n in range(to.shape[1]):
            at, scale = first + n, scales[head, first + n]
            tile, byte, shift = at // (HALVES * BYTES), at % BYTES, 4 * (at // BYTES % HALVES)
            for d in range(to.shape[2]):
                nibble = np.int64(words[head, tile, d // LANES, d % LANES, byte]) >> shift & 15
                to[head, n, d] = np.float32((nibble ^ 8) - 8) * scale


@compiled
def unpack_by_row(packed: Words, width: int, words: Words, first: int) -> None:
    """Write the numbers of rows first, first + 1, … as `ByRow` has them, where nothing was written before.

    Args:
        packed: of each row two numbers a byte, one head's behind the other's, and then the scales (N, row_bytes)
        width: numbers of a row and head
    """
    length = (width + 1) // 2
    for n in range(len(packed)):
        tile, lane = (first + n) // LANES, (first + n) % LANES
        for head in range(len(words)):
            for d in range(width):
                nibble = packed[n, head * length + d // 2] >> 4 * (d % 2) & 15
                words[head, tile, d // (HALVES * BYTES), lane, d % BYTES] |= nibble << 4 * (d // BYTES % HALVES)


@compiled
def unpack_by_channel(packed: Words, width: int, words: Words, first: int) -> None:
    """The same as `ByChannel` has them."""
    length = (width + 1) // 2
    for n in range(len(packed)):
        tile, byte = (first + n) // (HALVES * BYTES), (first + n) % BYTES
        shift = 4 * ((first + n) // BYTES % HALVES)
        for head in range(len(words)):
            for d in range(width):
                nibble = packed[n, head * length + d // 2] >> 4 * (d % 2) & 15
                words[head, tile, d // LANES, d % LANES, byte] |= nibble << shift


def warm_up() -> None:
    """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
    none, words = np.empty((0, 0, 0), np.float32), np.empty((0, 0, 0, 0, 0), np.uint8)
    for put in (put_by_row, put_by_channel):
        put(none, words, np.empty((0, 0), np.float32), 0)
    for rows in (rows_by_row, rows_by_channel):
        rows(words, np.empty((0, 0), np.float32), 0, none)
    for unpack in (unpack_by_row, unpack_by_channel):
        unpack(np.empty((0, 0), np.uint8), 0, words, 0)
    records = np.empty((1, 2), record(1))
    put_opened(none, records["words"], records["scales"], records["sizes"], 0)
