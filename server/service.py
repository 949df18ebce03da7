"""The served model's life: loading, ready, draining, failed; and what routes need once it is ready.

Owns the loaded parts and the count of running requests. Knows no HTTP.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from engine import Engine, EngineConfig, ModelDescription, load_engine
from server.async_engine import AsyncEngine
from server.chat import Conversations
from server.documents.base import Limits
from server.documents.extraction import Extractor
from server.grammar import Grammars
from server.idempotency import Idempotency
from server.library import Library
from server.metrics import Metrics
from server.responses.store import ResponseStore
from server.settings import ENGINE_SETTINGS, Settings
from server.tenants import Tenants
from server.tokenizer import TextTokenizer, load_tokenizer
from server.tools import Forms

log = logging.getLogger("cairn")


class State(Enum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class Model:
    """What is loaded."""

    engine: AsyncEngine
    tokenizer: TextTokenizer
    conversations: Conversations
    description: ModelDescription
    forms: Forms
    idempotency: Idempotency
    library: Library
    responses: ResponseStore


class Service:
    """One model being served."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.tenants = Tenants(settings)
        self.documents = Extractor(_limits(settings))
        self.state = State.LOADING
        self.failure: str | None = None
        self.created = int(time.time())
        self.running = 0  # requests in flight, probes left out
        self.transfers = 0  # session files on their way
        self.incoming: Path | None = None
        """Where files are put that are received; None where the system puts them."""
        self._loaded: Model | None = None
        self._thread = threading.Thread(target=self._load, name="cairn-load", daemon=True)

    @property
    def model(self) -> Model:
        """The loaded model; only asked for once the state is past LOADING."""
        assert self._loaded is not None
        return self._loaded

    def start(self) -> None:
        """Load in the background."""
        self._thread.start()

    def drain(self) -> None:
        """Take no new requests."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING

    def stop(self) -> None:
        """Stop the engine; a loading that goes on is left to end with the process."""
        self.drain()
        if self._loaded is not None:
            self._loaded.engine.stop()
            self._loaded.responses.close()
            self._loaded.idempotency.close()
            self._loaded.library.close()

    def _load(self) -> None:
        begin = time.monotonic()
        try:
            self._loaded = self._load_model()
        except Exception as error:
            self.state, self.failure = State.FAILED, str(error) or type(error).__name__
            log.debug("cannot serve %s", self.settings.model, exc_info=error)
            return
        finally:
            gc.freeze()  # code and model stay: no later collection needs to look at them
            gc.enable()
        if self.state is State.LOADING:
            self.state = State.READY
            log.info("serving %s, loaded in %.1f s", self.settings.model_name, time.monotonic() - begin)

    def _load_model(self) -> Model:
        given = {name: getattr(self.settings, name) for name in ENGINE_SETTINGS}
        config = EngineConfig(**given)
        engine = load_engine(self.settings.model, config, observe=self.metrics.observe_step, quota=self.tenants.quota)
        with contextlib.ExitStack() as on_error:
            on_error.callback(engine.stop)
            model = self._around(engine)
            on_error.pop_all()
        return model

    def _around(self, engine: Engine) -> Model:
        """What goes with an engine, which begins to run."""
        description = engine.description
        ends, landmark = description.eos_token_ids, description.landmark_token_id
        tokenizer, renderer = load_tokenizer(self.settings.model, landmark, ends, description.max_session_tokens)
        conversations = Conversations(tokenizer, renderer, ends, self.settings.tool_format)
        forms = Forms(Grammars(tokenizer, description.vocab_size, ends, landmark), tokenizer, conversations.tool_format)
        folder, settings = self._folder, self.settings
        responses = ResponseStore(folder, settings.max_responses, settings.max_response_bytes)
        kept = Idempotency(folder), Library(folder), responses
        self.incoming = None if folder is None else emptied(folder)
        engine.start()
        self.metrics.watch(engine.stats)
        capacity, longest = settings.event_capacity, settings.request_seconds
        wrapped = AsyncEngine(engine, self.metrics, capacity, self.tenants.accounts, longest)
        return Model(wrapped, tokenizer, conversations, description, forms, *kept)

    @property
    def _folder(self) -> Path | None:
        """Where the server keeps what is to outlive it; the engine has made it, and has it for itself."""
        path = self.settings.disk_kv_path
        return None if path is None else Path(path)


def _limits(settings: Settings) -> Limits:
    """What a file may cost; its text may be as long as one that is appended."""
    return Limits(
        file_bytes=settings.max_document_bytes,
        text_bytes=settings.max_body_bytes,
        pages=settings.max_document_pages,
        seconds=settings.document_seconds,
        memory_bytes=settings.document_memory_bytes,
    )


def emptied(store: Path) -> Path:
    """A place for received files in a store that this process alone has, without what a crash left there."""
    place = store / "incoming"
    place.mkdir(mode=0o700, exist_ok=True)
    for left in place.glob("*.cairn"):
        left.unlink()
    return place
