"""A server that is killed at random moments keeps all that it has told, and goes on as if nothing had happened.

Clients append, stream, rewind, fork and delete while it is killed; each notes what it was told. All text is of words
that are one token each, so a text tells its tokens: what is compared is exact.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.engine.running import Running, running
from tests.server.patience import until, watched
from tests.server.test_session_lists import walked

Start = Callable[..., AbstractContextManager[tuple[httpx.Client, subprocess.Popen[bytes]]]]

SEED = 20_251
CLIENTS = 3
SESSIONS = 6
"""Of a client; with more it deletes one."""
PATIENCE = 60.0
"""Seconds that a server may take for something if the machine lets it run; see `patience`."""
LOOKS = 6000
"""At a session that is busy."""
WORDS = 200
BLOCK, STEP, RUNNING = 8, 64, 4
READING: dict[str, Any] = {"positions": "bounded", "block_size": BLOCK, "blocks_per_head": 4, "recent_blocks": 2}
BLOCK_BYTES = 2 * 2 * 2 * BLOCK * 16 * 4
"""Keys and values of 2 layers and 2 heads, 16 float32 for each token."""
OPEN, READ = 2 * RUNNING + (STEP - 2 * RUNNING) // BLOCK, 4
"""Blocks that a step can leave open, and how much a query reads: (2 recent + own + sink + 4 fetched) / 2 layers."""
LEAST_MEMORY = 2 * (OPEN + 1 + READ) * BLOCK_BYTES
"""The server starts with no less; landmarks may take half of it."""
DISK = 600 * (2 * 4096 + 1024)
"""So little that old sessions have to give up their blocks now and then."""
PIECES = {"step_tokens": 16, "max_running": 1}
"""So few positions go through other kernels than many, and come out with other last bits. Landmarks are kept in 4 bits:
now and then such a bit decides what a number becomes, by that which block is read, and by that, in a model whose
weights are large, another word."""


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose answers depend on every word before them: its weights are large."""
    folder = tmp_path_factory.mktemp("models") / "wild"
    config = LlamaConfig.from_pretrained(tiny_folder)
    config.initializer_range = 0.3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> dict[str, int]:
    """Words that are one token each, with the space before them, and their tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    spelled = {piece[1:]: token for piece, token in tokenizer.get_vocab().items() if re.fullmatch("Ġ[a-z]{3,}", piece)}
    words = random.Random(SEED).sample(sorted(spelled), WORDS)
    vocabulary = {word: spelled[word] for word in words}
    assert tokenizer.encode(spell(words), add_special_tokens=False) == list(vocabulary.values())
    return vocabulary


class Uninterrupted:
    """The model where nothing is stored or remembered.

    Args:
        engines: that read a prompt at once, and in small pieces
    """

    def __init__(self, engines: Sequence[Running], vocabulary: dict[str, int]) -> None:
        self._engines, self._tokens = engines, vocabulary
        self._words = {token: word for word, token in vocabulary.items()}

    def says(self, prompt: list[str], words: list[str]) -> bool:
        """Whether these words follow a prompt, which is read in one way or the other."""
        return any(self.next(prompt, len(words), engine) == words for engine in self._engines)

    def next(self, prompt: list[str], count: int, engine: Running) -> list[str]:
        """The likeliest words after a prompt."""
        tokens, bias = [self._tokens[word] for word in prompt], dict.fromkeys(self._words, 100.0)
        return [self._words[token] for token in engine.ask(tokens, max_tokens=count, logit_bias=bias).tokens()]


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, vocabulary: dict[str, int]) -> Iterator[Uninterrupted]:
    alone: dict[str, Any] = {"prefix_cache": False, "audit_rate": 0.0, **READING}
    with running(folder, **alone) as at_once, running(folder, **alone, **PIECES) as in_pieces:
        yield Uninterrupted((at_once, in_pieces), vocabulary)


def spell(words: list[str]) -> str:
    return "".join(f" {word}" for word in words)


@dataclass
class Book:
    """What a client knows of a session."""

    id: str
    told: list[str] = field(default_factory=list)
    """Words that the server has acknowledged or sent."""
    asked: list[str] = field(default_factory=list)
    """Words that were sent and not acknowledged."""
    coming: int = 0
    """Words that may have been generated and not sent."""
    keep: int | None = None
    """It was asked to keep so many words, and this was not acknowledged."""
    leaving: bool = False
    """Its deletion was asked for and not acknowledged."""

    def settle(self, found: list[str]) -> list[str]:
        """Take what the server has for the truth, if it can be; the words that were generated unseen."""
        if self.keep == len(found):
            self.told = self.told[: self.keep]
        self.keep = None
        told, more = found[: len(self.told)], found[len(self.told) :]
        assert told == self.told, f"{self.id} does not begin with the {len(self.told)} words that were told"
        generated = more[len(self.asked) :]
        assert not more or more[: len(self.asked)] == self.asked, f"{self.id} has a part of a text, or another one"
        assert len(generated) <= self.coming, f"{self.id} has {len(generated)} words that nobody asked for"
        self.told, self.asked, self.coming = found, [], 0
        return generated


class Client:
    """Works in sessions of its own until the server dies."""

    def __init__(self, vocabulary: dict[str, int], limit: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.books: dict[str, Book] = {}
        self.due: list[list[str]] = []
        """The text of a session that was asked for and whose name is not known yet."""
        self.done = 0
        self._words, self._limit = list(vocabulary), limit
        self._greedy = greedy(vocabulary)

    def work(self, url: str, enough: Event, answered: Callable[[object], None]) -> None:
        killed = suppress(httpx.NetworkError, httpx.RemoteProtocolError)
        told = {"response": [answered]}
        with httpx.Client(base_url=url, timeout=None, trust_env=False, event_hooks=told) as server, killed:
            while not enough.is_set():
                self._act(server)
                self.done += 1

    def words(self, most: int) -> list[str]:
        return self.random.choices(self._words, k=self.random.randint(1, most))

    def _act(self, server: httpx.Client) -> None:
        if not self.books or (len(self.books) < SESSIONS and self.random.random() < 0.1):
            return self._create(server)
        book = self.random.choice(list(self.books.values()))
        if book.coming:
            self._look(server, book)
        if len(self.books) > SESSIONS or len(book.told) + 200 > self._limit or self.random.random() < 0.05:
            return self._delete(server, book)
        act = self.random.choice([self._append, self._append, self._stream, self._stream, self._rewind, self._fork])
        return act(server, book)

    def _create(self, server: httpx.Client) -> None:
        self.due = [[]]
        self._keep(server.post("/v1/sessions", json={}), [])

    def _fork(self, server: httpx.Client, book: Book) -> None:
        self.due = [book.told]
        self._keep(server.post(f"/v1/sessions/{book.id}/fork"), book.told)

    def _keep(self, made: httpx.Response, text: list[str]) -> None:
        assert made.status_code == 201, made.text
        self.due = []
        self.books[made.json()["id"]] = Book(made.json()["id"], list(text))

    def _delete(self, server: httpx.Client, book: Book) -> None:
        book.leaving = True
        assert server.delete(f"/v1/sessions/{book.id}").status_code == 200
        del self.books[book.id]

    def _append(self, server: httpx.Client, book: Book) -> None:
        self.append(server, book, self.words(100))

    def append(self, server: httpx.Client, book: Book, words: list[str]) -> None:
        book.asked = words
        made = server.post(f"/v1/sessions/{book.id}/append", json={"text": spell(words)})
        assert made.status_code == 200, made.text
        book.told, book.asked = book.told + words, []
        assert made.json()["tokens"] == len(book.told)

    def _rewind(self, server: httpx.Client, book: Book) -> None:
        book.keep = self.random.randint(0, len(book.told))
        made = server.post(f"/v1/sessions/{book.id}/rewind", json={"tokens": book.keep})
        assert made.status_code == 200, made.text
        book.told, book.keep = book.told[: book.keep], None
        assert made.json()["tokens"] == len(book.told)

    def _stream(self, server: httpx.Client, book: Book) -> None:
        """An answer, word by word; sometimes it is left before its end."""
        book.asked, book.coming = self.words(20), self.random.randint(1, 60)
        leave_after = self.random.randint(0, 200)
        body = {**self._greedy, "session_id": book.id, "prompt": spell(book.asked), "max_tokens": book.coming}
        with server.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            for line in filter(None, response.iter_lines()):
                if line == "data: [DONE]":
                    assert (book.asked, book.coming) == ([], 0), "the answer ended too soon"
                else:
                    self._note(book, json.loads(line.removeprefix("data: ")))
                if leave_after == book.coming > 0:
                    return

    def _note(self, book: Book, chunk: dict[str, Any]) -> None:
        assert "error" not in chunk, chunk
        if words := chunk["choices"][0]["text"].split():
            book.told, book.asked, book.coming = book.told + book.asked + words, [], book.coming - len(words)

    def _look(self, server: httpx.Client, book: Book) -> None:
        """What a session came to whose stream was left."""
        for _ in range(LOOKS):
            if not server.get(f"/v1/sessions/{book.id}").json()["busy"]:
                book.settle(stored(server, book.id) or [])
                return
            time.sleep(0.01)
        raise AssertionError(f"{book.id} stays busy")


def greedy(vocabulary: dict[str, int]) -> dict[str, Any]:
    """Parameters that let only words of the vocabulary follow, the most likely one each time."""
    bias = {str(token): 100 for token in vocabulary.values()}
    return {"temperature": 0, "ignore_eos": True, "logit_bias": bias}


def stored(server: httpx.Client, session: str) -> list[str] | None:
    """The words of a session; None if there is no such session."""
    info = server.get(f"/v1/sessions/{session}")
    if info.status_code == 404:
        return None
    text = server.get(f"/v1/sessions/{session}/text").json()
    words = text["text"].split(" ")[1:]
    assert text["text"] == spell(words)
    assert info.json()["tokens"] == text["end_token"] == len(words)
    return list(words)


def metric(server: httpx.Client, name: str) -> float:
    [value] = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", server.get("/metrics").text, re.MULTILINE)
    return float(value)


class Started(NamedTuple):
    """A server that runs."""

    server: httpx.Client
    process: subprocess.Popen[bytes]
    answered: Callable[[object], None]
    """For whoever has another client; see `watched`."""


class Trial:
    """Kills a server again and again, and looks after each time whether anything is missing.

    Args:
        server: starts it on the folder, always the same
    """

    def __init__(
        self,
        server: Callable[[], AbstractContextManager[tuple[httpx.Client, subprocess.Popen[bytes]]]],
        vocabulary: dict[str, int],
        uninterrupted: Uninterrupted,
    ) -> None:
        self._server, self._vocabulary, self._uninterrupted = server, vocabulary, uninterrupted
        self._random = random.Random(SEED)
        self._clients: list[Client] = []
        self._rested: Book | None = None
        """A session whose blocks were all written when the server was killed."""
        self._first_start = 0.0

    def run(self, kills: int) -> None:
        kill = 0
        try:
            for kill in range(kills):
                with self._started() as started:
                    self._check(started.server, sample=3)
                    self._load(started, kill + 2, rest=kill % 3 == 1)
            with self._started() as started:
                self._check(started.server, sample=None)
        except Exception as error:
            error.add_note(f"seed {SEED}, after {kill} kills")
            raise
        assert all(client.done > kills for client in self._clients), "there was no load"

    @contextmanager
    def _started(self) -> Iterator[Started]:
        with self._server() as (server, process), watched(process, server, PATIENCE) as answered:
            took = metric(server, "process_cpu_seconds_total")  # whatever else the machine has to do
            first = self._first_start = self._first_start or took
            assert took < 2 * first + 5, f"the start took {took:.1f} s, the first one {first:.1f} s"
            if not self._clients:
                limit = server.get("/v1/models").json()["data"][0]["max_model_len"]
                self._clients = [Client(self._vocabulary, limit, SEED + place) for place in range(CLIENTS)]
            yield Started(server, process, answered)

    def _load(self, started: Started, least: int, *, rest: bool) -> None:
        """Let the clients work and kill the server under them; with `rest`, when it has written everything.

        Args:
            least: acts that each client should have done by then; there are far more on a machine that has time
        """
        server, process, answered = started
        enough = Event()
        with ThreadPoolExecutor() as pool:
            working = [pool.submit(client.work, str(server.base_url), enough, answered) for client in self._clients]
            try:
                time.sleep(self._random.uniform(0.05, 2.0))
                self._await_load(process, working, least)
                if rest:
                    enough.set()
                    for work in working:
                        work.result()
                    self._rest(server, process)
                assert process.poll() is None, "the server has ended by itself"
                assert metric(server, "cairn_kv_store_failed") == 0
            finally:
                process.kill()
                enough.set()
        process.wait()
        for work in working:
            work.result()

    def _await_load(self, process: subprocess.Popen[bytes], working: list[Future[None]], least: int) -> None:
        def done() -> bool:
            return any(work.done() for work in working) or all(client.done >= least for client in self._clients)

        until(done, process, PATIENCE, "the server has ended, or there is no load")

    def _rest(self, server: httpx.Client, process: subprocess.Popen[bytes]) -> None:
        """Make a session that is long and used last, and wait until the disk has it."""
        client = self._clients[0]
        client._create(server)
        *_, self._rested = client.books.values()
        client.append(server, self._rested, [*client.words(10), *list(self._vocabulary)[: 12 * BLOCK]])
        until(lambda: not metric(server, "cairn_kv_unwritten_blocks"), process, PATIENCE, "blocks are not written")

    def _check(self, server: httpx.Client, sample: int | None) -> None:
        assert metric(server, "cairn_kv_store_failed") == 0
        self._check_strangers(server)
        for client in self._clients:
            for book in list(client.books.values()):
                self._check_text(server, client, book)
        books = [book for client in self._clients for book in client.books.values()]
        if self._rested is not None:
            cached = self._go_on(server, self._rested)
            assert cached >= (len(self._rested.told) - 10) // BLOCK * BLOCK, "what was written was computed again"
            self._rested = None
        for book in books if sample is None else self._random.sample(books, min(sample, len(books))):
            self._go_on(server, book)
        assert metric(server, "cairn_kv_store_failed") == 0

    def _check_strangers(self, server: httpx.Client) -> None:
        """Sessions that no client knows are those whose creation was not acknowledged; they are deleted."""
        due = [text for client in self._clients for text in client.due]
        known = {book for client in self._clients for book in client.books}
        for session in walked(server):
            if session not in known:
                text = stored(server, session)
                assert text in due, f"{session} was deleted, or nobody has made it"
                due.remove(text)
                assert server.delete(f"/v1/sessions/{session}").status_code == 200
        for client in self._clients:
            client.due = []

    def _check_text(self, server: httpx.Client, client: Client, book: Book) -> None:
        found = stored(server, book.id)
        if found is None:
            assert book.leaving, f"{book.id} with {len(book.told)} words is lost"
            del client.books[book.id]
            return
        book.leaving = False
        if generated := book.settle(found):
            before = found[: len(found) - len(generated)]
            assert self._uninterrupted.says(before, generated), f"{book.id} has other words at its end"

    def _go_on(self, server: httpx.Client, book: Book) -> int:
        """The next words are those of a server that never stopped; how many words it did not compute again."""
        word, count = self._random.choice(list(self._vocabulary)), 6
        body = {"session_id": book.id, "prompt": spell([word]), "max_tokens": count, **greedy(self._vocabulary)}
        response = server.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        before = [*book.told, word]
        words, usage = response.json()["choices"][0]["text"].split(), response.json()["usage"]
        assert usage["prompt_tokens"] == len(before)
        assert len(words) == count
        assert self._uninterrupted.says(before, words), f"{book.id} with {len(book.told)} words goes on otherwise"
        book.told = before + words
        return int(usage["prompt_tokens_details"]["cached_tokens"])


def test_other_words_than_the_likeliest_are_told(vocabulary: dict[str, int], uninterrupted: Uninterrupted) -> None:
    words = list(vocabulary)
    for engine in uninterrupted._engines:
        right = uninterrupted.next(words[:50], 3, engine)
        assert uninterrupted.says(words[:50], right)
        for place in range(3):
            other = next(word for word in words if word != right[place])
            assert not uninterrupted.says(words[:50], [*right[:place], other, *right[place + 1 :]])


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_server_has_all_that_it_told(
    start: Start,
    folder: Path,
    vocabulary: dict[str, int],
    uninterrupted: Uninterrupted,
    tmp_path: Path,
    kills: int,
) -> None:
    memory = {"kv_bytes": LEAST_MEMORY, "step_tokens": STEP, "max_running": RUNNING}
    disk = {"disk_kv_path": tmp_path / "store", "disk_kv_bytes": DISK}
    Trial(lambda: start(folder, **READING, **memory, **disk), vocabulary, uninterrupted).run(kills)
