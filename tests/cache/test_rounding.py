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


@pytest.mark.parametrize("width", [16, 24, 64, 129])
@pytest.mark.parametrize("kind", [ByRow, ByChannel])
def test_numbers_and_scales_are_those_of_torch(kind: type[FourBits], width: int) -> None:
    rows = rows_of(width)
    found, expected = kind(HEADS, 64, width), kind(HEADS, 64, width)
    start = 0
    for taken in (1, 2, 13, ROWS - 16):
        found.put(start, rows[:, start : start + taken])
        start += taken
    numbers, scales = rounded(rows)
    expected._write(0, numbers.numpy(), scales.numpy())
    assert np.array_equal(found.scales, expected.scales)
    assert np.array_equal(found.words, expected.words)
    assert torch.equal(found.rows(ROWS), (numbers * scales[..., None]).float())
