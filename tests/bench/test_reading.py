"""A sweep reads all of what it is given."""

from __future__ import annotations

import numpy as np
import torch

from bench.reading import Sweep, joined
from bench.reading_kernels import LINE, LINES
from cache import zeros

ROUND = LINE * LINES


def test_a_sweep_reads_every_byte_of_each_tensor() -> None:
    """What it folds them into tells: of each byte one bit counts, so none may be left out or read twice."""
    memory = [torch.randint(-(1 << 30), 1 << 30, (count * ROUND // 4,), dtype=torch.int32) for count in (1, 7, 100)]
    sweep = Sweep(memory)
    assert sweep.seconds() > 0
    assert sorted(sweep.folded()) == sorted(int(np.bitwise_xor.reduce(each.numpy())) for each in memory)
    assert sweep.bytes == 108 * ROUND


def test_weights_that_lie_side_by_side_are_read_as_one() -> None:
    whole = zeros((1 << 20,), torch.int32)
    halves = [whole[: 1 << 19], whole[(1 << 19) + 16 :]]  # tied ones are told once, whoever tells them twice
    sweep = Sweep([*halves, halves[0]])
    assert sweep.bytes == whole.nbytes
    assert len(sweep.folded()) == 1


def test_ranges_far_apart_stay_apart() -> None:
    assert joined([(4096, 8192), (0, 1024), (8256, 9000), (1024, 2048)]) == [(0, 2048), (4096, 9000)]
