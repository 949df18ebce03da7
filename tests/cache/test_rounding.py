"""Rows are rounded by kernels as by torch, to the last bit, wherever they begin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.four_bits import ByChannel, ByRow, FourBits, rounded

HEADS, ROWS = 2, 45


def rows_of(width: int) -> Tensor:
    """Rows of all sizes; some nothing at all or nearly, some whose numbers lie between two steps."""
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(HEADS, ROWS, width, generator=generator)
    rows *= 10 ** torch.randn(HEADS, ROWS, 1, generator=generator)
    rows[0, 3], rows[1, 7] = 0, 1e-40
    rows[:, 5] = torch.arange(width) % 15 / 2 - 3.5
    return rows


def words(kind: type[FourBits], numbers: Tensor) -> np.ndarray:
    """Where the module says that numbers (HEADS, ROWS, D) lie, in room for 64 rows."""
    found = np.zeros_like(kind(HEADS, 64, numbers.shape[2]).words)
    for head, row, channel in np.ndindex(*numbers.shape):
        lanes, rest = (row, channel) if kind is ByRow else (channel, row)
        place = (lanes // 16, rest // 8) if kind is ByRow else (rest // 8, lanes // 16)
        found[(head, *place, lanes % 16, rest % 4)] |= (int(numbers[head, row, channel]) & 15) << 4 * (rest % 8 // 4)
    return found


@pytest.mark.parametrize("width", [16, 24, 64, 129])
@pytest.mark.parametrize("kind", [ByRow, ByChannel])
def test_numbers_and_scales_are_those_of_torch(kind: type[FourBits], width: int) -> None:
    rows = rows_of(width)
    found, start = kind(HEADS, 64, width), 0
    for taken in (1, 2, 13, ROWS - 16):
        found.put(start, rows[:, start : start + taken])
        start += taken
    numbers, scales = rounded(rows)
    expected = words(kind, numbers)
    again = kind(HEADS, 64, width)
    for start, stop in ((0, 11), (11, 12), (12, ROWS)):
        again.unpack(start, np.asfortranarray(found.pack(start, stop)))
    for each in (found, again):
        assert np.array_equal(each.scales[:, :ROWS], scales)
        assert np.array_equal(each.words, expected)
        assert torch.equal(each.rows(ROWS), (numbers * scales[..., None]).float())
