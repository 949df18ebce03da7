"""A session that goes through a file is the same session, and no file does harm."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache import Session
from engine import (
    EngineStopped,
    InvalidParameter,
    InvalidSessionFile,
    OutOfRoom,
    QuotaExceeded,
    SessionBusy,
    SessionNotFound,
    SessionTooLong,
    Told,
)
from engine.memory import Memory
from engine.session_file import Bytes, checksum, text_checksum
from tests.engine.durable import Durable
from tests.engine.running import Running, running
from tests.models import LANDMARK, random_tokens, save_model

FIRST, SECOND = random_tokens(150, seed=1), random_tokens(20, seed=2)
READING: dict[str, Any] = {"block_size": 8, "recent_blocks": 1, "blocks_per_head": 3, "positions": "bounded"}
TOLD = Told("words", "tiny")


def export(run: Running, session: str, path: Path, *, kv: bool = True, tenant: str = "") -> Path:
    file = run.engine.export_session(session, tenant, told=TOLD, kv=kv)
    try:
        path.write_bytes(b"".join(iter(lambda: file.read(1000), b"")))
    finally:
        file.close()
    assert path.stat().st_size == file.size
    return path


def take(run: Running, path: Path, **options: Any) -> tuple[str, int]:
    info, restored, _ = run.engine.import_session(path, options.pop("tenant", ""), told=TOLD, **options)
    return info.id, restored


@pytest.fixture(params=["chosen", "trained"])
def folder(request: pytest.FixtureRequest, tiny_folder: Path, landmark_folder: Path) -> Path:
    return landmark_folder if request.param == "trained" else tiny_folder


@pytest.fixture
def run(folder: Path, landmark_folder: Path) -> Iterator[Running]:
    with running(folder, **({} if folder == landmark_folder else READING)) as run:
        yield run


@pytest.fixture
def told(run: Running, tmp_path: Path) -> Path:
    """The file of a session with two turns."""
    session = run.engine.create_session("").id
    run.ask(FIRST, session=session, max_tokens=5)
    run.ask(SECOND, session=session, max_tokens=5)
    return export(run, session, tmp_path / "told.cairn")


def text_of(path: Path) -> list[int]:
    tokens: list[int] = load_file(path)["tokens"].tolist()
    return tokens


@pytest.mark.parametrize("disk", [False, True])
def test_another_server_goes_on_where_this_one_was(
    run: Running, told: Path, folder: Path, landmark_folder: Path, tmp_path: Path, disk: bool
) -> None:
    whole = text_of(told)
    expected = run.ask([*whole, 9]).tokens()
    reading = {} if folder == landmark_folder else READING
    place = {"disk_kv_path": str(tmp_path / "store"), "disk_kv_bytes": 16 << 20} if disk else {}
    with running(folder, **reading, **place, prefix_cache=False) as other:
        session, restored = take(other, told)
        size = other.engine._store.layout.text_per_block
        assert restored == (len(whole) - 1) // size * size
        assert other.engine.session_tokens(session, "") == whole
        turns = [(turn.index, turn.start, turn.answer, turn.end) for turn in other.engine.session_turns(session, "")]
        assert turns == [(0, 0, 150, 155), (1, 155, 175, 180)]
        request = other.ask([9], session=session)
        assert request.tokens() == expected
        assert request.end.usage.cached_tokens == restored
        other.engine.rewind_session(session, "", turn=1)
        assert other.engine.session_tokens(session, "") == whole[:155]


def test_what_is_there_already_is_shared(run: Running, told: Path) -> None:
    used = run.engine._store.tier.used
    sessions = [take(run, told)[0] for _ in range(3)]
    assert run.engine._store.tier.used <= used
    assert len({id for session in sessions for id in run.engine._session(session, "").blocks}) < used
    other, restored = take(run, told, tenant="another")
    assert restored > 0
    shared = set(run.engine._session(other, "another").blocks) & set(run.engine._session(sessions[0], "").blocks)
    assert not shared, "tenants share nothing"
    run.check()


def test_without_keys_and_values_it_is_computed_again(run: Running, told: Path, tmp_path: Path) -> None:
    session = take(run, told)[0]
    expected = run.ask([9], session=run.engine.fork_session(session, "").id).tokens()
    short = export(run, session, tmp_path / "short.cairn", kv=False)
    assert short.stat().st_size < 4096
    with safe_open(short, framework="pt") as file:
        assert set(file.keys()) == {"tokens", "turns", "notes"}
    for path, kv in ((short, True), (told, False)):
        again, restored = take(run, path, kv=kv)
        assert restored == 0
        assert run.ask([9], session=again).tokens() == expected


def test_keys_and_values_can_be_read_by_anyone(run: Running, told: Path) -> None:
    tensors, layout = load_file(told), run.engine._store.layout
    blocks = tensors["blocks"]
    sealed = len(text_of(told)) // layout.text_per_block
    assert blocks.shape[1:] == (layout.layers, layout.kv_heads, 2, layout.block_size, layout.head_dim)
    session = run.engine._session(take(run, told)[0], "")
    keys, values = session.store.read(1, session.slots_between(0, session.sealed))
    assert torch.equal(blocks[:, 1, :, 0].transpose(0, 1), keys)
    assert torch.equal(blocks[:, 1, :, 1].transpose(0, 1), values)
    assert sealed - 1 <= len(blocks) <= sealed


def test_other_settings_take_the_text_and_another_vocabulary_nothing(
    told: Path, folder: Path, landmark_folder: Path
) -> None:
    changed = {**({} if folder == landmark_folder else READING), "blocks_per_head": 2}
    with running(folder, **changed) as other:
        session, restored = take(other, told)
        assert restored == 0
        assert other.ask([9], session=session).tokens() == other.ask([*text_of(told), 9]).tokens()
        with pytest.raises(InvalidSessionFile, match="another vocabulary"):
            other.engine.import_session(told, "", told=Told("other words"))


def test_a_session_on_the_disk_is_exported_as_it_lies_there(tiny_folder: Path, tmp_path: Path) -> None:
    durable = Durable(tiny_folder, tmp_path / "store")
    try:
        session = durable.run.engine.create_session("").id
        durable.turn(session, random_tokens(600, seed=3), 3)  # more than the memory holds
        durable.flush()
        before = export(durable.run, session, tmp_path / "before").read_bytes()
        durable.restart()
        assert export(durable.run, session, tmp_path / "after").read_bytes() == before
        durable.run.engine.delete_session(session, "")
        again, restored = take(durable.run, tmp_path / "after")
        assert restored == 600 // 8 * 8
        durable.turn(again, [9], 4)
        durable.restart()
        assert durable.turn(again, [9], 4).end.usage.cached_tokens >= restored
        durable.check()
    finally:
        durable.close()


def test_a_block_that_is_damaged_here_ends_the_export_and_is_mended(tiny_folder: Path, tmp_path: Path) -> None:
    durable = Durable(tiny_folder, tmp_path / "store")
    try:
        session = durable.run.engine.create_session("").id
        durable.turn(session, FIRST, 3)
        durable.flush()
        durable.restart()
        disk, slot = durable.archive.disk, durable.session(session).blocks[7]
        with durable.file("blocks.kv").open("r+b") as file:
            file.seek(disk._unit_at(1, slot, 1) + 5)
            file.write(b"\xff\xfe")
        with pytest.raises(Exception, match="damaged"):
            export(durable.run, session, tmp_path / "file")
        durable.turn(session, [9], 3)
        assert durable.run.engine.stats().damaged == 1
        take(durable.run, export(durable.run, session, tmp_path / "file"))
        durable.check()
    finally:
        durable.close()


# -- what is refused -----------------------------------------------------------------------------------------


def test_who_may_export_and_import(run: Running, told: Path, tmp_path: Path) -> None:
    session = run.engine.create_session("").id
    with pytest.raises(SessionNotFound):
        export(run, session, tmp_path / "file", tenant="another")
    run.gate.close()
    request = run.submit(FIRST, session=session)
    run.gate.wait()
    with pytest.raises(SessionBusy):
        export(run, session, tmp_path / "file")
    run.gate.open()
    request.result()


def test_an_import_that_a_stop_overtakes_is_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told of a session that could not be stored any more."""
    durable = Durable(tiny_folder, tmp_path / "store")
    try:
        session = durable.run.engine.create_session("").id
        durable.turn(session, FIRST, 3)
        path, take_in = export(durable.run, session, tmp_path / "file"), Memory._take_in

        def overtaken(memory: Memory, taken: Session, units: Bytes, entries: Bytes) -> None:
            take_in(memory, taken, units, entries)
            if len(taken.blocks) >= len(FIRST) // 8:
                durable.stop()

        monkeypatch.setattr(Memory, "_take_in", overtaken)
        with pytest.raises(EngineStopped):
            take(durable.run, path)
        durable.restart()
        assert [info.id for info in durable.run.engine.list_sessions("")] == [session]
        durable.check()
    finally:
        durable.close()


def test_an_empty_session_goes_through_a_file(run: Running, tmp_path: Path) -> None:
    path = export(run, run.engine.create_session("").id, tmp_path / "empty")
    assert take(run, path)[1] == 0


def test_notes_come_as_they_went(run: Running, tmp_path: Path) -> None:
    session = run.engine.create_session("").id
    run.ask(FIRST, session=session, max_tokens=1)
    noted = replace(TOLD, notes=b"\0anything\xff")
    file = run.engine.export_session(session, "", told=noted)
    content = bytearray(file.read(1 << 30))
    file.close()
    (tmp_path / "noted").write_bytes(content)
    assert run.engine.import_session(tmp_path / "noted", "", told=TOLD).notes == noted.notes
    content[-3] ^= 1
    (tmp_path / "noted").write_bytes(content)
    with pytest.raises(InvalidSessionFile, match="checksum"):
        take(run, tmp_path / "noted")


def test_limits_hold_for_files(told: Path, folder: Path, landmark_folder: Path) -> None:
    reading = {} if folder == landmark_folder else READING
    block = 3 * 8 * 16 * 2 * (4 if folder == landmark_folder else 2) * 4
    for limits, refusal in (
        ({"max_session_tokens": 179}, SessionTooLong),
        ({"tenant_tokens": 300}, QuotaExceeded),
        ({"kv_bytes": 40 * block, "step_tokens": 16, "max_running": 1}, OutOfRoom),
    ):
        with running(folder, **reading, **limits) as other:
            other.ask(random_tokens(170), session=other.engine.create_session("").id, max_tokens=1)
            with pytest.raises(refusal):
                take(other, told)
            assert len(other.engine.list_sessions("")) == 1


def changed(path: Path, to: Path, facts: dict[str, str] | None = None, **tensors: torch.Tensor) -> Path:
    """A file with other contents, whose checksum of the text is right."""
    with safe_open(path, framework="pt") as file:
        told = {**file.metadata(), **(facts or {})}
    whole = {**load_file(path), **tensors}
    if whole["tokens"].dtype == torch.int32:
        notes = whole["notes"].numpy().tobytes()
        told["text"] = text_checksum(
            whole["tokens"], whole["turns"], told["blocks_per_head"], notes, whole.get("readings")
        )
    save_file(
        {name: tensor for name, tensor in whole.items() if tensor.numel() or name in ("turns", "notes")}, to, told
    )
    return to


def test_what_makes_no_sense_is_refused(run: Running, told: Path, tmp_path: Path, landmark_folder: Path) -> None:
    whole = load_file(told)
    tokens, turns, blocks = whole["tokens"], whole["turns"], whole["blocks"].clone()
    blocks[3, 0, 0, 0, 0, 0] = torch.nan
    far, back = tokens.clone(), turns.clone()
    far[5], back[1, 1] = 10_000, 9
    wrong: list[dict[str, Any]] = [
        {"tokens": tokens.long()}, {"tokens": tokens[None]}, {"tokens": far}, {"tokens": -tokens},
        {"turns": turns[:, :3].contiguous()}, {"turns": back}, {"turns": turns + 1000}, {"turns": turns.int()},
        {"turns": turns.repeat(5000, 1)}, {"blocks": blocks}, {"blocks": whole["blocks"].double()},
        {"blocks": whole["blocks"][:-1].contiguous()}, {"landmarks": whole["landmarks"][:, :-1].contiguous()},
        {"checksums": whole["checksums"].flip(0).contiguous()},
        {"notes": torch.zeros(1 << 24, dtype=torch.uint8)}, {"notes": tokens.clone()},
        {"more": tokens.clone()}, {"facts": {"version": "2"}}, {"facts": {"format": "pt"}},
    ]  # fmt: skip
    if run.engine.description.landmark_token_id is not None:
        wrong.append({"tokens": torch.full_like(tokens, LANDMARK)})
    used = run.engine._store.tier.used
    for each in wrong:
        with pytest.raises((InvalidSessionFile, InvalidParameter)):
            take(run, changed(told, tmp_path / "wrong", **each))
    assert run.engine._store.tier.used == used
    named = [info.id for info in run.engine.list_sessions("")]
    assert len(named) == 1
    run.check()


def test_readings_that_make_no_sense_are_refused(run: Running, told: Path, tmp_path: Path) -> None:
    def readings(*rows: tuple[float, float, float]) -> dict[str, Any]:
        return {"readings": torch.tensor(rows, dtype=torch.float64), "facts": {"version": "2"}}

    length, infinite = float(len(text_of(told))), float("inf")
    rows: list[list[tuple[float, float, float]]] = [
        [(0, 3, 0)], [(8, 3, 0), (8, 4, 0)], [(9, 3, 0), (8, 4, 0)], [(length, 3, 0)], [(-1, 3, 0)], [(0, -3, 0)],
        [(0, 4097, 0)], [(0, 3, 1.5)], [(0, -1, 0.5)], [(0.5, 3, 0)], [(0, infinite, 0)], [(0, 3, float("nan"))],
        [(0, -2, 0)], [(0, 3, 0), (8, 3, 0)],
    ]  # fmt: skip
    for each in rows[1:]:
        with pytest.raises(InvalidSessionFile, match="no readings"):
            take(run, changed(told, tmp_path / "wrong", **readings(*each)))
    with pytest.raises(InvalidSessionFile, match="version"):
        take(run, changed(told, tmp_path / "wrong", readings=readings(*rows[0])["readings"]))
    assert take(run, changed(told, tmp_path / "right", **readings(*rows[0])))[1]
    flat = {**readings(*rows[0]), "readings": torch.zeros(3, dtype=torch.float64)}
    with pytest.raises(InvalidSessionFile, match="readings: is"):
        take(run, changed(told, tmp_path / "wrong", **flat))


def test_what_is_no_number_is_refused(run: Running, told: Path, tmp_path: Path) -> None:
    """Also with a right checksum: it would make every later answer no number, too."""
    blocks = load_file(told)["blocks"]
    blocks[3, 0, 0, 0, 0, 0] = torch.nan
    sums = load_file(told)["checksums"].to(torch.int64)
    sums[3, 0] = checksum(3, blocks[3].flatten().view(torch.uint8).numpy().tobytes())
    with pytest.raises(InvalidSessionFile, match="no number"):
        take(run, changed(told, tmp_path / "wrong", blocks=blocks, checksums=sums.to(torch.uint32)))


@pytest.mark.parametrize("scale", [torch.nan, torch.inf, -1.0])
def test_landmarks_of_no_sense_are_refused(run: Running, told: Path, tmp_path: Path, scale: float) -> None:
    """Kernels trust their scales."""
    entries = load_file(told)["landmarks"]
    entries[3, -4:] = torch.tensor([scale]).view(torch.uint8)  # of the last head's last vector
    sums = load_file(told)["checksums"].to(torch.int64)
    sums[3, 1] = checksum(3, entries[3].numpy().tobytes())
    with pytest.raises(InvalidSessionFile, match="landmarks from block"):
        take(run, changed(told, tmp_path / "wrong", landmarks=entries, checksums=sums.to(torch.uint32)))


def test_a_damaged_block_is_named(run: Running, told: Path) -> None:
    data = bytearray(told.read_bytes())
    start = data.index(b"}}") + 2 + 4000
    data[start] ^= 1
    told.write_bytes(data)
    with pytest.raises(InvalidSessionFile, match="block 0 ") as refused:
        take(run, told)
    assert refused.value.block == 0
    assert take(run, told, kv=False)[1] == 0


@pytest.mark.parametrize("seed", range(2))
def test_no_flipped_byte_and_no_cut_gives_another_answer(run: Running, told: Path, tmp_path: Path, seed: int) -> None:
    """Whatever was hit: the file is refused, or the session is the one that was exported."""
    whole, good = text_of(told), told.read_bytes()
    expected = run.ask([*whole, 9], max_tokens=3).tokens()
    chance, broken, taken = random.Random(seed), tmp_path / "broken", 0
    header = int.from_bytes(good[:8], "little") + 8
    for attempt in range(40):
        data = bytearray(good)
        if attempt % 4 == 3:
            del data[chance.randrange(len(data)) :]
        else:
            data[chance.randrange(header if attempt % 2 else len(data))] ^= 1 << chance.randrange(8)
        broken.write_bytes(data)
        try:
            session, _ = take(run, broken, tenant=f"of {attempt}")
        except (InvalidSessionFile, InvalidParameter, SessionTooLong):
            continue
        taken += 1
        assert run.engine.session_tokens(session, f"of {attempt}") == whole
        assert run.ask([9], session=session, tenant=f"of {attempt}", max_tokens=3).tokens() == expected
        run.engine.delete_session(session, f"of {attempt}")
    assert taken < 20
    run.check()


def test_files_that_are_none(run: Running, tmp_path: Path) -> None:
    for content in (b"", b"\0" * 7, b"\0" * 100, b"\xff" * 100, (1 << 20).to_bytes(8, "little") + b"{" * 100):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(InvalidSessionFile):
            take(run, tmp_path / "file")


def test_another_models_file_is_computed_again(told: Path, folder: Path, tmp_path: Path, tiny_folder: Path) -> None:
    if folder == tiny_folder:
        other = save_model("llama", tmp_path / "other", num_hidden_layers=2)
        with running(other, **READING) as run:
            session, restored = take(run, told)
            assert restored == 0
            assert run.ask([9], session=session).tokens() == run.ask([*text_of(told), 9]).tokens()
