"""An engine on a folder of its own that can be stopped and started again, beside one that never moves a session."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from cache import Archive, BlockStore, Session, SessionRegistry
from engine import Engine, EngineConfig, RetrievalParams
from engine.huggingface import LoadedModel, load_model
from tests.engine.running import SECONDS, Gate, Request, Running

READING: dict[str, dict[str, Any]] = {
    "chosen": {"block_size": 8, "recent_blocks": 1, "sink_blocks": 1, "blocks_per_head": 3, "positions": "bounded"},
    "trained": {},
}
"""How sessions are read, by kind of model."""
PLAIN = RetrievalParams()
Asked = list[RetrievalParams]
"""How each token of a session reads."""
SMALL = {"step_tokens": 64, "max_running": 4, "disk_kv_bytes": 64 << 20}
BLOCKS = 40
"""Of memory, little more than the fewest that are accepted."""


@cache
def model_of(folder: Path) -> LoadedModel:
    """Loaded once; engines that follow each other can have the same one."""
    return load_model(str(folder), "float32")


class Durable:
    """Starts engines on one folder.

    Args:
        folder: of the model
        store: where sessions outlive an engine
        window: attention reads a window onto the memory, as on a GPU
        config: beside SMALL and how the model is read
    """

    def __init__(self, folder: Path, store: Path, *, window: bool = False, **config: Any) -> None:
        self.model = model_of(folder)
        kind = "trained" if self.model.landmarks else "chosen"
        self.reading = READING[kind]
        self.config = {**self.reading, **SMALL, "disk_kv_path": str(store), **config}
        self.store = store
        self.block_bytes = EngineConfig(block_size=self.reading.get("block_size")).layout(self.model).block_bytes
        self._window = {"kv_bytes": 2 * BLOCKS * self.block_bytes} if window else {}
        self.run = self.start()
        self.alone = self._started({**self.reading, "kv_bytes": 32 << 20, "prefix_cache": False})
        self._answers: dict[tuple[tuple[int, ...], int, tuple[RetrievalParams, ...]], list[int]] = {}

    def start(self, blocks: int = BLOCKS, **changes: Any) -> Running:
        """A new engine on the folder, with memory for so many blocks."""
        memory = {"host_kv_bytes" if self._window else "kv_bytes": blocks * self.block_bytes, **self._window}
        self.run = self._started({**memory, **self.config, **changes})
        return self.run

    def _started(self, config: dict[str, Any]) -> Running:
        gate = Gate()
        engine = Engine(self.model, EngineConfig(dtype="float32", **config), observe=gate)
        engine.start()
        return Running(engine, gate)

    def stop(self) -> None:
        self.run.engine.stop()

    def restart(self, blocks: int = BLOCKS, **changes: Any) -> Running:
        self.stop()
        return self.start(blocks, **changes)

    def close(self) -> None:
        self.stop()
        self.alone.engine.stop()

    def answer(self, tokens: list[int], count: int, asked: Asked | None = None) -> list[int]:
        """What an engine says to these tokens that computes each in one go as it is asked, and keeps nothing.

        Args:
            asked: how each token reads; the answer reads as the last one
        """
        asked = asked or [PLAIN] * len(tokens)
        key = (tuple(tokens), count, tuple(asked))
        if key not in self._answers:
            self._answers[key] = self._answer(tokens, count, asked) if count else []
        return self._answers[key]

    def _answer(self, tokens: list[int], count: int, asked: Asked) -> list[int]:
        parts = [(each, len(list(alike))) for each, alike in itertools.groupby(asked)]
        session, at = self.alone.engine.create_session("").id if len(parts) > 1 else None, 0
        for number, (each, size) in enumerate(parts, 1):
            most = count if number == len(parts) else 0
            last = self.alone.ask(tokens[at : at + size], session=session, max_tokens=most, retrieval=each)
            at += size
        if session is not None:
            self.alone.engine.delete_session(session, "")
        return last.tokens()

    def turn(
        self,
        session: str,
        tokens: list[int],
        count: int = 4,
        tenant: str = "",
        past: Asked | None = None,
        retrieval: RetrievalParams = PLAIN,
    ) -> Request:
        """Ask in a session, and see that the answer is that of the engine which keeps nothing.

        Args:
            past: how the session's tokens read
        """
        held = self.run.engine.session_tokens(session, tenant)
        whole, asked = held + tokens, (past or [PLAIN] * len(held)) + [retrieval] * len(tokens)
        request = self.run.ask(tokens, session=session, tenant=tenant, max_tokens=count, retrieval=retrieval)
        assert request.tokens() == self.answer(whole, count, asked), "another answer"
        assert self.run.engine.session_tokens(session, tenant) == whole + request.tokens()
        return request

    def tokens(self, session: str, tenant: str = "") -> list[int]:
        return self.run.engine.session_tokens(session, tenant)

    # -- inside ----------------------------------------------------------------------------------------------

    @property
    def registry(self) -> SessionRegistry:
        return self.run.engine._registry

    @property
    def blocks(self) -> BlockStore:
        return self.registry.store

    @property
    def archive(self) -> Archive:
        assert self.blocks.archive is not None
        return self.blocks.archive

    def session(self, session: str, tenant: str = "") -> Session:
        found = self.registry.get(session, tenant)
        assert found is not None
        return found

    def under_lock(self, action: Callable[[], Any]) -> Any:
        """Do something to the registry between two steps."""
        with self.run.engine._changed:
            return action()

    def flush(self) -> None:
        assert self.archive.flush(SECONDS), "the archive does not get done"

    def park_all(self) -> None:
        """Leave the indexes of all idle sessions to the disk."""
        self.flush()
        while self.under_lock(self.registry.park):
            pass

    def check(self) -> None:
        self.run.settle()
        self.flush()
        self.under_lock(self.registry.check)

    def file(self, name: str) -> Path:
        """One of the files of blocks."""
        return self.archive.disk.folder / name

    @property
    def failed(self) -> bool:
        return self.run.engine.stats().store_failed


def eventually(true: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.02)
