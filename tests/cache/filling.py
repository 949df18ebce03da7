"""Sessions filled with keys that follow from the tokens before them, as a model's do, but countable by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cache import BlockStore, CacheLayout, DeviceTier, IndexShape, Session, Summary

DIM = 3
SHAPE = IndexShape((DIM,))
LAYOUT = CacheLayout(layers=2, kv_heads=2, head_dim=DIM, block_size=4, landmark_positions=1)
LANDMARK = 9


def new_store(blocks: int, layout: CacheLayout = LAYOUT) -> BlockStore:
    return BlockStore(DeviceTier(layout, blocks * layout.block_bytes))


def contents(tokens: Sequence[int], layout: CacheLayout = LAYOUT) -> Tensor:
    """What each position holds in fp32 (positions, kv_heads, head_dim): depends on all tokens up to there."""
    state, states = 1, []
    for count, token in enumerate(tokens, 1):
        state = (state * 31 + token + 7) % 9973
        states.append(state)
        if layout.landmark_positions and count % layout.text_per_block == 0:
            states.append((state * 31 + LANDMARK) % 9973)
    own = torch.arange(layout.kv_heads * layout.head_dim).view(layout.kv_heads, layout.head_dim) * 10_000
    return torch.tensor(states, dtype=torch.float32)[:, None, None] + own


def compute(session: Session, text: int) -> None:
    """Store the first `text` tokens, as a forward pass would; raises OutOfBlocks and then stores nothing."""
    session.reserve(text)
    layout = session.layout
    first, last = session.positions, layout.positions(text)
    keys = contents(session.tokens[:text], layout)[first:]
    positions = torch.arange(first, last)
    slots, offsets = session.slots(positions // layout.block_size), positions % layout.block_size
    for layer, index in enumerate(session.indexes):
        session.store.write(layer, slots, offsets, keys + layer, -keys - layer)
        sealed = last // layout.block_size
        if index is not None and sealed > index.count:
            read, _ = session.store.read(layer, session.slots_between(index.count, sealed))
            index.add(Summary(read.mean(-2)[:, :, None]))
    session.advance(text)


def verify(session: Session) -> None:
    """The session's blocks and indexes hold what its computed tokens imply, in every layer."""
    layout, count = session.layout, session.positions
    expected = contents(session.tokens[: session.computed], layout).transpose(0, 1)  # (kv_heads, positions, head_dim)
    for layer, index in enumerate(session.indexes):
        keys, values = session.store.read(layer, session.slots_between(0, layout.blocks(session.computed)))
        assert torch.equal(keys.flatten(1, 2)[:, :count], expected + layer)
        assert torch.equal(values.flatten(1, 2)[:, :count], -expected - layer)
        if index is not None and session.sealed:
            means = (expected + layer)[:, : session.sealed * layout.block_size].unflatten(1, (session.sealed, -1))
            unit = torch.eye(layout.head_dim).expand(layout.kv_heads, -1, -1)
            torch.testing.assert_close(index.products(unit, session.sealed).squeeze(-1).mT, means.mean(2))
