"""`python -m bench.passkey_curve --haystack FILES… --tokens 1000000`: many facts in one text, asked at growing lengths.

One session reads the text once. Facts stand at even depths all over it ("The pass key for Lisbon is 71432.
Remember it."), each about another name; at each length a fork of the session is asked for each fact told so
far, so that all other facts compete with the one asked for. Names were never trained on. Beside the share of
right answers it prints the memory that the process took beyond keys, values and landmarks.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bench.passkey import FACT, MARK, QUESTION, Prompt, ask, draw_prompts, file_tokens, repeated
from bench.report import write_json
from engine import Engine, EngineConfig, load_engine


@dataclass(frozen=True)
class Point:
    """One length of the curve; bytes are the process's, seconds those of reading since the last point."""

    tokens: int
    asked: int
    right: int
    read_seconds: float
    seconds_per_answer: float
    stored_bytes: int
    working_bytes: int


@dataclass(frozen=True)
class Piece:
    """Text of the document up to a length, and the facts that it tells."""

    tokens: list[int]
    told: list[Prompt]


class Memory:
    """Samples the resident memory of this process while it works."""

    def __init__(self) -> None:
        self.peak = resident()
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self.peak = max(self.peak, resident())
            time.sleep(0.2)


def resident() -> int:
    """Bytes of physical memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def lengths(longest: int, shortest: int = 32_000) -> list[int]:
    """Doubling lengths up to the longest."""
    found = [longest]
    while found[0] // 2 >= shortest:
        found.insert(0, found[0] // 2)
    return found


def pieces(haystack: list[int], facts: list[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The document cut at each length; facts stand at even depths, at a sentence's end."""
    stop = tokenizer.encode(".", add_special_tokens=False)[0]
    pending = {int((i + 0.5) / len(facts) * len(haystack)): fact for i, fact in enumerate(facts)}
    found: list[Piece] = []
    tokens: list[int] = []
    told: list[Prompt] = []
    due: list[Prompt] = []
    ends = set(lengths(len(haystack)))
    for index, token in enumerate(haystack, 1):
        tokens.append(token)
        due += [pending.pop(index)] if index in pending else []
        if due and (token == stop or index in ends):
            for fact in due:
                tokens += tokenizer.encode(FACT.format(name=fact.name, key=fact.key), add_special_tokens=False)
            told, due = told + due, []
        if index in ends:
            found.append(Piece(tokens, told))
            tokens, told = [], []
    return found


def read_all(files: list[Path], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[int]:
    """The files one after the other, repeated until there are `tokens` tokens."""
    return repeated([token for file in files for token in file_tokens(file, tokenizer)], tokens)


def read_on(engine: Engine, session: str, tokens: list[int]) -> float:
    """Append tokens to a session; seconds."""
    begun = time.perf_counter()
    ask(engine, tokens, None, session=session, max_tokens=0)
    return time.perf_counter() - begun


def answer(engine: Engine, session: str, fact: Prompt, tokenizer: PreTrainedTokenizerBase, blocks_per_head: int) -> str:
    """What a fork of the session says when it is asked for a fact."""
    message = [{"role": "user", "content": MARK}]
    frame = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    closing = tokenizer.encode(frame.split(MARK)[1], add_special_tokens=False)
    question = tokenizer.encode(QUESTION.format(name=fact.name), add_special_tokens=False)
    fork = engine.fork_session(session, "").id
    tokens, _ = ask(engine, [*question, *closing], blocks_per_head, session=fork)
    engine.delete_session(fork, "")
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


def curve(options: argparse.Namespace) -> list[Point]:
    """Read the document piece by piece and ask at the end of each."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    document = pieces(
        read_all(options.haystack, tokenizer, options.tokens), draw_prompts(options.facts, options.seed), tokenizer
    )
    engine = load_engine(
        options.model,
        EngineConfig(kv_bytes=options.kv_gib << 30, threads=options.threads, landmark_dtype=options.landmark_dtype),
    )
    engine.start()
    opening = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False).split(MARK)[0]
    session = engine.create_session("").id
    read_on(engine, session, tokenizer.encode(opening, add_special_tokens=False))
    told: list[Prompt] = []
    points: list[Point] = []
    base, memory, length = resident(), Memory(), 0
    for piece in document:
        read = read_on(engine, session, piece.tokens)
        told, length = told + piece.told, length + len(piece.tokens)
        begun, right = time.perf_counter(), 0
        for fact in told:
            said = answer(engine, session, fact, tokenizer, options.blocks_per_head)
            right += fact.key in said
            if fact.key not in said:
                print(f"  WRONG at {length}: {fact.name} {fact.key}: {said}", flush=True)
        stored = stored_bytes(engine)
        seconds = (time.perf_counter() - begun) / max(len(told), 1)
        point = Point(length, len(told), right, read, seconds, stored, memory.peak - base - stored)
        print(point, flush=True)
        points.append(point)
    engine.stop()
    return points


def stored_bytes(engine: Engine) -> int:
    """Keys and values in use, and the landmarks that stand for their blocks."""
    return next(iter(engine.stats().tiers.values())).used_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/cairn-4m")
    parser.add_argument("--landmark-dtype", choices=("int4", "float32"), help="as the server's setting")
    parser.add_argument("--haystack", type=Path, nargs="+", required=True, help="texts that were not trained on")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--facts", type=int, default=50)
    parser.add_argument("--blocks-per-head", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kv-gib", type=int, default=12, help="memory for keys and values")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    points = curve(options)
    settings = {"facts": options.facts, "blocks_per_head": options.blocks_per_head, "seed": options.seed}
    names = [file.name for file in options.haystack]
    write_json(
        options.json, {"model": options.model, "haystack": names, **settings, "rows": [asdict(p) for p in points]}
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
