"""`cairn bench`: several clients ask a running server at once; what each felt is written down. Judges nothing.

Every prompt is drawn anew, so that no cache helps, and every answer has the same length.
"""

from __future__ import annotations

import asyncio
import random
import time
from argparse import Namespace
from dataclasses import dataclass, field

from cairn_client import AsyncCairn, Cairn, CairnError, TextPiece

from clients.terminal import exits, report, screen

WORDS = "stone river lamp paper morning bridge window garden silver answer winter harbour candle letter".split()


@dataclass
class Felt:
    """One request as its client felt it, in seconds: to its first text, between pieces of text, and to its end."""

    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    failure: CairnError | None = None


@dataclass
class Load:
    """All requests, and the seconds from the first's beginning to the last's end."""

    seconds: float
    felt: list[Felt]


def bench(options: Namespace) -> int:
    """Print what the clients felt; FAILED if any request failed."""
    with Cairn(options.url, api_key=options.api_key) as cairn:
        [model, *_] = cairn.models()
        words = _words_of(cairn, options.prompt_tokens)
        url = cairn.url
    load = asyncio.run(_all(options, words))
    if options.json:
        print(report.as_json(load))
    else:
        print(f"{model.id} at {url}: {options.clients} clients, {options.requests} requests")
        report.show(screen.output(), load)
    return exits.FAILED if any(felt.failure for felt in load.felt) else exits.OK


def _words_of(cairn: Cairn, tokens: int) -> int:
    """How many of our words make about so many tokens."""
    sample = 64
    return max(1, round(tokens * sample / cairn.tokenize(_prompt(random.Random(0), sample)).count))


def _prompt(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


async def _all(options: Namespace, words: int) -> Load:
    rng = random.Random(options.seed)
    prompts = [f"{rng.getrandbits(48):x} {_prompt(rng, words)}" for _ in range(options.requests)]
    start = time.perf_counter()
    async with AsyncCairn(options.url, api_key=options.api_key) as cairn:
        felt = await asyncio.gather(*(_client(cairn, prompts, options.max_tokens) for _ in range(options.clients)))
    return Load(time.perf_counter() - start, [each for one in felt for each in one])


async def _client(cairn: AsyncCairn, prompts: list[str], tokens: int) -> list[Felt]:
    """Asks one prompt after the other until all are taken."""
    felt = []
    while prompts:
        felt.append(await _request(cairn, prompts.pop(), tokens))
    return felt


async def _request(cairn: AsyncCairn, prompt: str, tokens: int) -> Felt:
    felt, start, last = Felt(), time.perf_counter(), 0.0
    try:
        async with cairn.complete_stream(prompt, max_tokens=tokens, ignore_eos=True, temperature=0) as stream:
            async for event in stream:
                if isinstance(event, TextPiece):
                    now = time.perf_counter()
                    felt.gaps += [now - last] if last else []
                    felt.first, last = felt.first or now - start, now
            usage = stream.answer.usage
    except CairnError as error:
        felt.failure = error
        return felt
    felt.seconds = time.perf_counter() - start
    if usage:
        felt.prompt_tokens, felt.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        felt.generated_tokens = usage.completion_tokens
    return felt
