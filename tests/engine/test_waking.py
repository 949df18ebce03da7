"""Sessions come back from the disk while others go on, and are the same as if they had never been away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import cache.waking
from cache import DamagedBlock, Waking
from engine import EngineError, Failed, Finished, Progress, SessionBusy, Told
from tests.engine.durable import Durable, eventually
from tests.engine.running import SECONDS, Request
from tests.models import random_tokens

FIRST, NEXT = random_tokens(150, seed=1), random_tokens(9, seed=2)


@pytest.fixture(params=["chosen", "trained"])
def durable(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_folder: Path, landmark_folder: Path
) -> Iterator[Durable]:
    durable = Durable(landmark_folder if request.param == "trained" else tiny_folder, tmp_path / "store")
    yield durable
    durable.check()
    durable.close()


class Held:
    """Keeps sessions from coming back until it is told to let them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._begun, self._go = threading.Semaphore(0), threading.Event()
        step = Waking.step

        def held(waking: Waking) -> bool:
            self._begun.release()
            assert self._go.wait(SECONDS)
            return step(waking)

        monkeypatch.setattr(Waking, "step", held)

    def wait(self) -> None:
        """Until one is on its way."""
        assert self._begun.acquire(timeout=SECONDS)

    def release(self) -> None:
        self._go.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.release()


def parked(durable: Durable, tokens: list[int] = FIRST) -> str:
    """A session of which only the disk has indexes."""
    session = durable.run.engine.create_session("").id
    durable.turn(session, tokens, 3)
    durable.restart()
    assert durable.session(session).parked
    return session


def expected(durable: Durable, session: str, tokens: list[int] = NEXT) -> list[int]:
    return durable.answer(durable.tokens(session) + tokens, 4)


def ended(request: Request) -> bool:
    return any(isinstance(event, Finished | Failed) for event in request.drain())


# -- while it comes back -------------------------------------------------------------------------------------


def test_others_go_on(durable: Durable, held: Held) -> None:
    session = parked(durable)
    answer = expected(durable, session)
    before = durable.run.submit(random_tokens(20, seed=3), max_tokens=60)
    request = durable.run.submit(NEXT, session=session, max_tokens=4)
    held.wait()
    after = durable.run.ask(random_tokens(20, seed=4), max_tokens=4)  # nothing else is there to do by now
    assert len(after.tokens()) == 4
    assert len(before.result().tokens()) == 60
    assert not ended(request)
    held.release()
    assert request.result().tokens() == answer
    assert request.end.usage.cached_tokens > 100


def test_it_is_busy(durable: Durable, held: Held) -> None:
    session = parked(durable)
    request = durable.run.submit(NEXT, session=session, max_tokens=4)
    held.wait()
    for change in (durable.run.engine.delete_session, durable.run.engine.fork_session):
        with pytest.raises(SessionBusy):
            change(session, "")
    held.release()
    request.result()


def test_several_come_back_one_after_the_other(durable: Durable) -> None:
    sessions = [durable.run.engine.create_session("").id for _ in range(3)]
    for seed, session in enumerate(sessions):
        durable.turn(session, random_tokens(60 + seed, seed=5 + seed), 3)
    durable.restart()
    answers = [expected(durable, session) for session in sessions]
    asked = [durable.run.submit(NEXT, session=session, max_tokens=4) for session in sessions]
    assert [request.result().tokens() for request in asked] == answers


def test_forks_that_come_back_together_are_read_once(durable: Durable) -> None:
    session = parked(durable)
    forks = [durable.run.engine.fork_session(session, "").id for _ in range(3)]
    answer, read = expected(durable, session), counted_entries(durable)
    durable.run.gate.close()
    before = durable.run.submit(random_tokens(20, seed=3), max_tokens=3)
    durable.run.gate.wait()  # so that all set out in one turn
    asked = [durable.run.submit(NEXT, session=each, max_tokens=4) for each in (session, *forks[:2])]
    durable.run.gate.open()
    assert [request.result().tokens() for request in asked] == [answer] * 3
    before.result()
    assert sum(read) == durable.session(forks[2]).sealed


def counted_entries(durable: Durable) -> list[int]:
    """How many blocks' entries are read from now on."""
    read: list[int] = []
    entries = durable.archive.disk.entries

    def counted(slots: list[int], digests: list[bytes]) -> object:
        read.append(len(slots))
        return entries(slots, digests)

    durable.archive.disk.entries = counted  # type: ignore[method-assign,assignment]
    return read


def test_who_gives_up_in_the_queue_waits_for_nobody(durable: Durable, held: Held) -> None:
    session, other = (durable.run.engine.create_session("").id for _ in range(2))
    for seed, each in enumerate((session, other), 5):
        durable.turn(each, random_tokens(60, seed=seed), 3)
    durable.restart()
    first = durable.run.submit(NEXT, session=session, max_tokens=4)
    held.wait()
    second = durable.run.submit(NEXT, session=other, max_tokens=4)
    eventually(lambda: len(durable.run.engine._apart.asleep) == 2)
    durable.run.cancel(second)
    assert second.result().end.reason == "cancelled"
    assert not ended(first)
    durable.run.engine.delete_session(other, "")
    held.release()
    assert len(first.result().tokens()) == 4


def test_who_gives_up_need_not_wait_for_all_of_it(
    durable: Durable, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.waking, "PART", 1)
    session = parked(durable)
    request = durable.run.submit(NEXT, session=session, max_tokens=4)
    held.wait()
    durable.run.cancel(request)
    eventually(lambda: durable.run.engine._apart.waker._given_up)
    held.release()
    assert request.result().end.reason == "cancelled"
    assert durable.session(session).parked
    for _ in range(5):  # nor does it keep who comes next from coming back
        durable.turn(session, NEXT, 3)
        durable.park_all()


def test_a_stop_answers_who_waits(durable: Durable, held: Held) -> None:
    session = parked(durable)
    request = durable.run.submit(NEXT, session=session, max_tokens=4)
    held.wait()
    stop = threading.Thread(target=durable.stop)
    stop.start()
    held.release()
    stop.join(SECONDS)
    assert not stop.is_alive()
    assert request.result().end.reason == "cancelled"
    durable.start()
    durable.turn(session, [9], 3)


# -- what comes back -----------------------------------------------------------------------------------------


def test_progress_is_told_once_it_is_known_what_is_there(durable: Durable) -> None:
    session = parked(durable)
    request = durable.run.ask(NEXT, session=session, max_tokens=1)
    told = [event for event in request.events if isinstance(event, Progress)]
    assert told[0].cached == request.end.usage.cached_tokens > 100


def test_a_fork_of_one_that_is_away_is_away_and_what_came_back_is_not_read_again(durable: Durable) -> None:
    session = parked(durable)
    fork = durable.run.engine.fork_session(session, "").id
    assert durable.session(fork).parked, "nobody has to wait for a fork"
    durable.turn(session, NEXT, 2)
    read = counted_entries(durable)
    durable.turn(fork, NEXT[::-1], 2)
    assert sum(read) == 0, "all of it was in memory"


def test_a_prompt_finds_its_beginning_in_a_session_that_is_away(durable: Durable) -> None:
    session = parked(durable)
    request = durable.run.ask([*FIRST, 9], max_tokens=3)
    assert request.tokens() == durable.answer([*FIRST, 9], 3)
    assert request.end.usage.cached_tokens > 100
    assert durable.session(session).parked, "it was not asked for itself"


def exported(durable: Durable, session: str) -> bytes:
    file = durable.run.engine.export_session(session, "", told=Told())
    try:
        return b"".join(iter(lambda: file.read(1000), b""))
    finally:
        file.close()


def test_one_that_is_away_is_exported_from_where_it_lies(durable: Durable) -> None:
    session = durable.run.engine.create_session("").id
    durable.turn(session, FIRST, 3)
    here = exported(durable, session)
    durable.restart()
    assert exported(durable, session) == here
    assert durable.session(session).parked, "nobody has to wait for it"


@pytest.mark.parametrize("name", ["body", "entry"])
def test_damage_ends_an_export_and_is_computed_again(durable: Durable, name: str) -> None:
    session = parked(durable)
    damage(durable, durable.session(session).blocks[3], name)
    with pytest.raises(DamagedBlock):
        exported(durable, session)
    durable.turn(session, NEXT, 2)
    assert len(exported(durable, session)) > 0
    assert durable.run.engine.stats().damaged == 1


def damage(durable: Durable, slot: int, name: str) -> None:
    """Flip a bit of a stored block: of its header, or of what its index keeps."""
    disk = durable.archive.disk
    place = disk._entry_at(slot) + 30 if name == "entry" else disk._record_at(slot) + 3
    with durable.file("landmarks.kv" if name == "entry" else "blocks.kv").open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


# -- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [1, 3])
@pytest.mark.parametrize("name", ["body", "entry"])
def test_damage_in_any_part_is_computed_again(
    durable: Durable, monkeypatch: pytest.MonkeyPatch, part: int, name: str
) -> None:
    monkeypatch.setattr(cache.waking, "PART", part)
    session = parked(durable)
    found = durable.session(session)
    for block in (0, 2, 4, len(found.blocks) - 1):
        damage(durable, found.blocks[block], name)
        durable.turn(session, [9], 2)
        durable.park_all()
    assert durable.run.engine.stats().damaged == 4


@pytest.mark.parametrize("breaks", ["waking", "step", "woken"])
def test_a_failure_is_the_requests_own(durable: Durable, monkeypatch: pytest.MonkeyPatch, breaks: str) -> None:
    session = parked(durable)

    def fails(*_: object) -> bool:
        raise MemoryError("none left")

    monkeypatch.setattr(Waking if breaks == "step" else durable.registry, breaks, fails)
    other = durable.run.submit(random_tokens(20, seed=3), max_tokens=20)
    with pytest.raises(EngineError, match="none left"):
        durable.run.ask(NEXT, session=session)
    assert len(other.result().tokens()) == 20
    monkeypatch.undo()
    durable.turn(session, [9], 2)


def test_what_is_damaged_is_computed_anew_though_one_that_comes_back_holds_it(
    durable: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = parked(durable)
    fork = durable.run.engine.fork_session(session, "").id
    durable.run.engine.rewind_session(fork, "", tokens=80)
    durable.turn(fork, [9], 2)
    held = Held(monkeypatch)
    request = durable.run.submit(NEXT, session=session, max_tokens=4)
    held.wait()
    found, mine = durable.session(session), durable.session(fork)
    slot = mine.blocks[4]
    assert found.blocks[4] == slot
    durable.under_lock(lambda: durable.registry.mend(DamagedBlock(slot, "by a step"), [found]))
    durable.turn(fork, [8], 2)
    assert mine.blocks[4] != slot, "the damaged one was taken again"
    held.release()
    request.result()


def test_a_disk_that_cannot_be_read_ends_an_export(durable: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    session = parked(durable)

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable.archive.disk, "expect", fails)
    with pytest.raises(DamagedBlock, match="Input/output"):
        exported(durable, session)
    monkeypatch.undo()
    durable.turn(session, NEXT, 2)
    assert len(exported(durable, session)) > 0


@pytest.mark.parametrize("block", [0, 4])
def test_damage_that_another_finds_meanwhile_is_not_taken(durable: Durable, held: Held, block: int) -> None:
    """What a step of another session found damaged is forgotten here, too, though it came back."""
    session = parked(durable)
    whole = expected(durable, session)
    request = durable.run.submit(NEXT, session=session, max_tokens=4)
    held.wait()
    found = durable.session(session)

    seen = DamagedBlock(found.blocks[block], "by another")
    durable.under_lock(lambda: durable.registry.mend(seen, [found]))
    assert found.sealed == block
    durable.run.ask(random_tokens(20, seed=3), max_tokens=4)
    assert found.sealed == block, "it is not touched before it has come"
    held.release()
    assert request.result().tokens() == whole
    assert request.end.usage.cached_tokens < 100
