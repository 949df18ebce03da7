"""`python -m bench.passkey --tokens 32000 --prompts 50 --haystack FILE`: is a fact found in a long text?

Each prompt is a chat message: `--tokens` tokens of the haystack with one sentence hidden at a random depth
("The pass key for Lisbon is 71432. Remember it."), then the question. An answer is right if it holds the key.
The names were never trained on. Prompts share the haystack, so what stands before the fact is often cached.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bench.report import write_json
from engine import (
    Engine,
    EngineConfig,
    Failed,
    Finished,
    Generation,
    RetrievalParams,
    SamplingParams,
    Token,
    load_engine,
)
from training import BENCH_NAMES

FACT = "\nThe pass key for {name} is {key}. Remember it.\n"
MARK = "@@"
QUESTION = "\n\nWhat is the pass key for {name}?"


@dataclass(frozen=True)
class Prompt:
    """One question: where its fact stands, as a share of the text."""

    name: str
    key: str
    depth: float


@dataclass(frozen=True)
class Outcome:
    """What came back for a prompt; seconds are the whole request's."""

    name: str
    key: str
    depth: float
    answer: str
    right: bool
    prompt_tokens: int
    cached_tokens: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """What a worker needs to know."""

    model: str
    haystack: Path
    tokens: int
    blocks_per_head: int
    threads: int
    weights: str = "auto"


def draw_prompts(count: int, seed: int) -> list[Prompt]:
    """Names in turn, random five-digit keys, random depths."""
    rng = random.Random(seed)
    names = rng.sample(BENCH_NAMES, len(BENCH_NAMES))
    return [Prompt(names[i % len(names)], f"{rng.randrange(100_000):05}", rng.random()) for i in range(count)]


def read_haystack(path: Path, tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[int]:
    """The first `tokens` tokens of the file, which is repeated if it is shorter."""
    return repeated(file_tokens(path, tokenizer), tokens)


def file_tokens(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise SystemExit(f"{path} is empty; give a text file")
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def repeated(ids: list[int], tokens: int) -> list[int]:
    """Again and again until there are `tokens`."""
    return (ids * (tokens // len(ids) + 1))[:tokens]


def prompt_tokens(prompt: Prompt, haystack: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the chat message with the fact at a sentence's end near the wanted depth."""
    message = [{"role": "user", "content": MARK}]
    frame = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    opening, closing = (tokenizer.encode(part, add_special_tokens=False) for part in frame.split(MARK))
    fact = tokenizer.encode(FACT.format(name=prompt.name, key=prompt.key), add_special_tokens=False)
    question = tokenizer.encode(QUESTION.format(name=prompt.name), add_special_tokens=False)
    stop = tokenizer.encode(".", add_special_tokens=False)[0]
    cut = int(prompt.depth * len(haystack))
    while 0 < cut < len(haystack) and haystack[cut - 1] != stop:
        cut += 1
    return [*opening, *haystack[:cut], *fact, *haystack[cut:], *question, *closing]


def ask(
    engine: Engine, tokens: list[int], blocks_per_head: int | None, *, session: str | None = None, max_tokens: int = 40
) -> tuple[list[int], Finished]:
    """Greedy answer of at most `max_tokens` tokens."""
    events: queue.Queue[object] = queue.Queue()
    generation = Generation(
        id=str(time.monotonic_ns()),
        tokens=tuple(tokens),
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0),
        retrieval=RetrievalParams(blocks_per_head=blocks_per_head),
        session_id=session,
    )
    engine.submit(generation, events.put)
    answer = []
    while True:
        event = events.get()
        if isinstance(event, Token):
            answer.append(event.token)
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Finished):
            return answer, event


def run(job: Job, prompts: list[Prompt]) -> list[Outcome]:
    """Ask all prompts, one after the other, of an engine of their own."""
    torch.set_num_threads(job.threads)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    haystack = read_haystack(job.haystack, tokenizer, job.tokens)
    engine = load_engine(job.model, EngineConfig(weights=job.weights))
    engine.start()
    outcomes = []
    for prompt in prompts:
        begun = time.perf_counter()
        tokens, finished = ask(engine, prompt_tokens(prompt, haystack, tokenizer), job.blocks_per_head)
        answer = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        usage, seconds = finished.usage, round(time.perf_counter() - begun, 1)
        outcome = Outcome(
            **asdict(prompt),
            answer=answer,
            right=prompt.key in answer,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            seconds=seconds,
        )
        print(f"{'right' if outcome.right else 'WRONG'}  depth {prompt.depth:4.0%}  {prompt.key}  {answer}", flush=True)
        outcomes.append(outcome)
    engine.stop()
    return outcomes


def run_all(job: Job, prompts: list[Prompt], workers: int) -> list[Outcome]:
    """Share the prompts between processes; deep facts last, so that the haystack before them is cached."""
    ordered = sorted(prompts, key=lambda prompt: prompt.depth)
    if workers == 1:
        return run(job, ordered)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        shares = pool.map(run, [job] * workers, [ordered[i::workers] for i in range(workers)])
        return [outcome for share in shares for outcome in share]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/cairn-4m")
    parser.add_argument("--tokens", type=int, default=32_000, help="tokens of haystack in each prompt")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--haystack", type=Path, required=True, help="a text file that the model was not trained on")
    parser.add_argument("--blocks-per-head", type=int, default=8)
    parser.add_argument("--weights", choices=("auto", "int8"), default="auto", help="as `cairn serve` takes it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes, each with its share of the cores")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    threads = max(1, torch.get_num_threads() // options.workers)
    job = Job(options.model, options.haystack, options.tokens, options.blocks_per_head, threads, options.weights)
    outcomes = run_all(job, draw_prompts(options.prompts, options.seed), options.workers)
    accuracy = sum(outcome.right for outcome in outcomes) / len(outcomes)
    print(f"accuracy {accuracy:.1%} of {len(outcomes)} prompts, {options.tokens} tokens of {options.haystack.name}")
    settings = asdict(job) | {"haystack": options.haystack.name, "seed": options.seed}
    write_json(options.json, {"accuracy": accuracy, **settings, "rows": [asdict(o) for o in outcomes]})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
