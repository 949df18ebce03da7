"""`check` finds what is damaged in a folder of sessions, and `repair` leaves what a server can go on with."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from cache import StoreError, check
from server.cli import main
from tests.engine.running import running
from tests.models import random_tokens

CONFIG = {"block_size": 8, "recent_blocks": 1, "positions": "bounded", "step_tokens": 64, "max_running": 4}
TEXT = random_tokens(200, seed=1)


@pytest.fixture
def store(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder with one session of 25 full blocks."""
    folder = tmp_path / "store"
    with running(tiny_folder, disk_kv_path=str(folder), disk_kv_bytes=1 << 24, **CONFIG) as run:
        run.ask(TEXT, session=run.engine.create_session("").id, max_tokens=1)
    return folder


def damage(store: Path, name: str, share: float) -> None:
    """Flip a byte of a file."""
    (path,) = store.glob(f"*/{name}")
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 0xFF
    path.write_bytes(data)


def test_nothing_is_wrong_with_what_a_server_left(store: Path) -> None:
    found = check(store)
    assert (found.sessions, found.tokens, found.blocks) == (1, len(TEXT) + 1, 25)
    assert found.problems == found.mended == []


@pytest.mark.parametrize(("name", "share"), [("blocks.kv", 0.999), ("landmarks.kv", 0.999)])
def test_a_flipped_byte_is_found_and_mended(name: str, share: float, store: Path, tiny_folder: Path) -> None:
    damage(store, name, share)
    assert len(check(store).problems) == 1
    mended = check(store, repair=True)
    assert len(mended.mended) == 1
    left = check(store)
    assert (left.problems, left.blocks) == ([], 24)
    with running(tiny_folder, disk_kv_path=str(store), disk_kv_bytes=1 << 24, **CONFIG) as run:
        [session] = run.engine.list_sessions("")
        assert run.ask([7], session=session.id).end.usage.cached_tokens == 24 * 8
        assert run.engine.stats().damaged == 0


def test_a_missing_file_is_every_block_s_problem(store: Path) -> None:
    (path,) = store.glob("*/blocks.kv")
    path.unlink()
    assert len(check(store).problems) == 25
    assert len(check(store, repair=True).mended) == 25
    assert check(store).blocks == 0


def test_a_lost_piece_of_a_text_is_found(store: Path) -> None:
    with sqlite3.connect(store / "catalogue.sqlite") as db:
        db.execute("UPDATE sessions SET length = length + 3")
    assert len(check(store).problems) == 1
    check(store, repair=True)
    assert check(store).problems == []


def test_a_folder_in_use_or_without_sessions_is_refused(tiny_folder: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no sessions"):
        check(tmp_path)
    with (
        running(tiny_folder, disk_kv_path=str(store), disk_kv_bytes=1 << 24, **CONFIG),
        pytest.raises(StoreError, match="another process"),
    ):
        check(store)


def test_the_command_says_what_it_found(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(store)]) == 0
    assert capsys.readouterr().out == f"1 sessions, {len(TEXT) + 1} tokens, 25 blocks, 0 problems\n"
    damage(store, "blocks.kv", 0.999)
    assert main(["check", str(store)]) == 1
    assert "checksum" in capsys.readouterr().out
    assert main(["check", str(store), "--repair"]) == 0
    assert main(["check", str(store)]) == 0
    assert main(["check", str(store / "nowhere")]) == 2
