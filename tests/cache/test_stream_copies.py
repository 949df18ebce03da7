"""Copies on streams: whatever the order, no frame is used by two streams that do not know of each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cache.patience
from cache import OutOfBlocks
from cache.tiers import StreamCopies
from tests.cache.streams import Race, Stream, Streams, Watched
from tests.cache.test_window_tier import ACTIONS, CAPACITY, LAYOUT, Play, Truth
from tests.pretended import CARD


class Card:
    """A window of a pretended card, watched.

    Args:
        folder: of a disk below; None for none
        ended: answers to who asks whether an event has ended
    """

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path | None = None, ended: tuple[bool, ...] = ()) -> None:
        answers = iter(ended)
        self.streams = Streams(lambda: next(answers, False))
        patch.setattr(torch.cuda, "Stream", self.streams.made)
        patch.setattr(torch.cuda, "stream", self.streams.stream)
        patch.setattr(torch.cuda, "current_stream", self.streams.current_stream)
        patch.setattr("cache.tiers.copies.locked", lambda like: torch.empty(like.shape, dtype=like.dtype))
        self.mode = Watched(self.streams)
        with self.mode:
            self.truth = Truth(folder, copies=StreamCopies(CARD))
        self.mode.frames = (self.truth.tier._keys, self.truth.tier._values)


def moved(card: Card) -> None:
    """More blocks than there is room for, read and hinted at in turn."""
    slots = [card.truth.add() for _ in range(9)]
    for turn in range(20):
        card.truth.read(turn % LAYOUT.layers, [slots[turn % 9], slots[(turn + 4) % 9]])
        card.truth.hint((turn + 1) % LAYOUT.layers, [slots[(turn + 1) % 9]])
    for slot in slots[:4]:
        card.truth.release(slot)
    for _ in range(4):
        card.truth.add()


def test_a_window_moves_without_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    with card.mode:
        moved(card)
    assert card.mode.uses > 500


@pytest.mark.parametrize("broken", ["wait_stream", "wait_event"])
def test_without_waiting_there_is_one(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """The test of the tests."""
    monkeypatch.setattr(Stream, broken, lambda self, other: None)
    card = Card(monkeypatch)
    with card.mode, pytest.raises(Race):
        moved(card)


def test_who_takes_a_block_has_waited_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    with card.mode:
        slot = card.truth.add()
        down = card.truth.tier._descents[slot]
        assert not down.done
        assert not card.streams.compute.clock <= card.streams.host
        card.truth.tier.units(slot)
        assert card.streams.compute.clock <= card.streams.host


@pytest.mark.parametrize("disk", [False, True])
@settings(max_examples=40, deadline=None)
@given(actions=ACTIONS, ended=st.lists(st.booleans(), max_size=60))
def test_any_order(
    tmp_path_factory: pytest.TempPathFactory, disk: bool, actions: list[tuple[str, int]], ended: list[bool]
) -> None:
    patience, cache.patience.PATIENCE = cache.patience.PATIENCE, 0.0
    with pytest.MonkeyPatch.context() as patch:
        card = Card(patch, tmp_path_factory.mktemp("window") if disk else None, tuple(ended))
        try:
            with card.mode:
                for action in actions:
                    try:
                        Play(card.truth).do(*action)
                    except OutOfBlocks:
                        assert card.truth.open or card.truth.located or len(card.truth.held) == CAPACITY
                    card.truth.check()
                for slot in card.truth.held:
                    card.truth.read(0, [slot])
        finally:
            cache.patience.PATIENCE = patience
            card.truth.close()


def test_a_buffer_is_kept_until_its_copy_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    copies = card.truth.tier._copies
    assert isinstance(copies, StreamCopies)
    with card.mode:
        slots = [card.truth.add() for _ in range(8)]
        card.truth.read(0, slots[:2])
        card.truth.read(1, slots[:2])
        assert len(copies._kept) == copies._count + 8, "each block went down, too"
        card.streams.ended = lambda: True
        card.truth.read(2, slots[:2])
    assert len(copies._kept) == 1, "all but the one that has just begun"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_real_card() -> None:
    truth = Truth(None, copies=StreamCopies(torch.device("cuda")))
    slots = [truth.add() for _ in range(12)]
    for turn in range(60):
        truth.read(turn % LAYOUT.layers, [slots[turn % 12], slots[(5 * turn + 3) % 12]])
        truth.hint((turn + 1) % LAYOUT.layers, [slots[(turn + 1) % 12], slots[(7 * turn) % 12]])
        truth.check()
