"""Positions and blocks of a text, against counting them one by one."""

from __future__ import annotations

import pytest

from cache import CacheLayout


@pytest.mark.parametrize("landmarks", [0, 1])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_positions_and_blocks_are_those_of_writing_token_by_token(size: int, landmarks: int) -> None:
    layout = CacheLayout(layers=1, kv_heads=1, head_dim=1, block_size=size, landmark_positions=landmarks)
    assert layout.text_per_block == size - landmarks
    positions = 0
    for text in range(5 * size):
        assert layout.positions(text) == positions
        assert layout.blocks(text) == len({position // size for position in range(positions)})
        positions += 1
        if landmarks and positions % size == size - 1:
            positions += 1  # the landmark closes the block at once
