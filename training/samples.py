"""`python -m training.samples --data BOOKS --tokenizer DIR --tokens 480 --count 5000 --output keys.jsonl`.

Writes samples that teach to look things up: text of the books with pass keys hidden in it, then questions about
them, answered. One more file for `training.finetune --data`; each sample is a record that is never cut.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from training.corpus import HELD_OUT
from training.names import Names
from training.packing import Encoder
from training.records import InputError, Part, read_records, to_json
from training.tasks import ANSWER_WEIGHT, ASK_KEY, ASKED, FILLER, LEAD, TELL_KEY, TOLD, pass_key, say_key


@dataclass(frozen=True)
class Frame:
    """What a chat template puts around messages: all of it control text.

    Attributes:
        open: before the first user message
        answer: between a question and its answer
        again: between an answer and the next question
        close: after the last answer
    """

    open: str
    answer: str
    again: str
    close: str

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        """The tokenizer's own, or plain lines if it has no chat template."""
        if not tokenizer.chat_template:
            return cls("", "\n", "\n\n", "\n")
        marks = ["@@1@@", "@@2@@", "@@3@@", "@@4@@"]
        messages = [
            {"role": role, "content": mark} for role, mark in zip(("user", "assistant") * 2, marks, strict=True)
        ]
        rest, pieces = tokenizer.apply_chat_template(messages, tokenize=False), []
        for mark in marks:
            piece, _, rest = rest.partition(mark)
            pieces.append(piece)
        opening = pieces[0].removeprefix(tokenizer.bos_token or "\0")  # a row begins with it already
        return cls(opening, pieces[1], pieces[2], rest)


class Samples:
    """Draws samples of at most `tokens` text tokens.

    Args:
        text: tokens of all books, one after the other (count,)
        names: whom keys are for
    """

    def __init__(self, text: np.ndarray, encoder: Encoder, frame: Frame, names: Names, tokens: int) -> None:
        self._text, self._encoder, self._frame, self._names = text, encoder, frame, names
        self._room = tokens - len(encoder.opening)

    def draw(self, rng: random.Random) -> list[Part]:
        """One sample, not much shorter than it may be."""
        while (parts := self._draw(rng)) is None:
            pass
        return parts

    def _draw(self, rng: random.Random) -> list[Part] | None:
        keys = self._keys(rng)
        opening = [Part(self._frame.open, special=True, weight=0.0)]
        turns = self._turns(rng, list(keys.items()))
        told = rng.choice(TELL_KEY)
        facts = [Part(rng.choice((" ", "\n")) + told.format(name=n, value=v), weight=TOLD) for n, v in keys.items()]
        rng.shuffle(facts)
        room = self._room - self._count([*opening, *facts, *turns]) - 4  # a cut text may take a token more
        if room < self._room // 3:
            return None
        parts = [*opening, *self._hide(rng, facts, room), *turns]
        return parts if self._count(parts) <= self._room else None

    def _keys(self, rng: random.Random) -> dict[str, str]:
        names = self._names.draw(rng, rng.randint(1, max(1, min(8, self._room // 60))))
        return {name: pass_key(rng) for name in names}

    def _turns(self, rng: random.Random, keys: list[tuple[str, str]]) -> list[Part]:
        """Questions about some of the keys, each with its answer; a question may follow the text or open a turn."""
        asked = rng.sample(keys, rng.randint(1, min(3, len(keys))))
        parts = [Part(rng.choice(("\n\n", "\n\n", "\n", " ")), weight=0.0)]
        if rng.random() < 0.3:
            parts = [Part(self._frame.again, special=True, weight=0.0)]
        for number, (name, value) in enumerate(asked):
            lead, key = say_key(name, value)
            again = number + 1 < len(asked)
            parts += [
                Part(rng.choice(ASK_KEY).format(name=name), weight=ASKED),
                Part(self._frame.answer, special=True, weight=ASKED),
                Part(lead, weight=LEAD),
                Part(key, weight=ANSWER_WEIGHT),
                Part(self._frame.again if again else self._frame.close, special=True, weight=LEAD),
            ]
        return parts

    def _hide(self, rng: random.Random, facts: list[Part], room: int) -> list[Part]:
        """About `room` tokens of a book with the facts at random places, mostly between sentences."""
        start = rng.randrange(max(1, len(self._text) - room))
        filler = self._encoder.tokenizer.decode(self._text[start : start + room].tolist()).strip("\ufffd")
        cuts = sorted(self._cut(rng, filler) for _ in facts)
        parts, last = [], 0
        for cut, fact in zip(cuts, facts, strict=True):
            parts += [Part(filler[last:cut], weight=FILLER), fact]
            last = cut
        return [part for part in (*parts, Part(filler[last:], weight=FILLER)) if part.text]

    def _cut(self, rng: random.Random, filler: str) -> int:
        place = rng.randint(0, len(filler))
        stop = filler.find(".", place)
        return stop + 1 if 0 <= stop < place + 100 and rng.random() < 0.7 else place

    def _count(self, parts: list[Part]) -> int:
        return sum(len(self._encoder.encode(part.text, special=part.special)) for part in parts)


def load(files: Sequence[Path], tokenizer: Any, tokens: int, without: Sequence[str]) -> Samples:
    """Read the books without the titles that nothing may be trained on."""
    encoder = Encoder(tokenizer)
    texts = [part.text for f in files for r in read_records(f) if r.title not in without for part in r.parts]
    arrays = [np.array(encoder.encode(text), np.int32) for text in texts]
    text = np.concatenate([np.zeros(0, np.int32), *arrays])
    if len(text) < 2 * tokens:
        raise InputError(f"the texts have {len(text)} tokens, too few for samples of {tokens}; give more --data")
    return Samples(text, encoder, Frame.of(tokenizer), Names("\n".join(texts)[:2_000_000]), tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="training.samples", description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help=".jsonl, .jsonl.xz or text files")
    parser.add_argument("--without", nargs="*", default=list(HELD_OUT), help="titles to leave out")
    parser.add_argument("--tokenizer", required=True, help="the model that will be trained: a folder or a hub name")
    room = "text tokens of a sample at most; a row of LENGTH slots holds LENGTH - LENGTH / BLOCK_SIZE"
    parser.add_argument("--tokens", type=int, required=True, help=room)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        if options.tokens < 100:
            raise InputError(f"--tokens {options.tokens} leaves no room for text; give at least 100")
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
        samples = load(options.data, tokenizer, options.tokens, options.without)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with options.output.open("w", encoding="utf-8") as file:
        for number in range(options.count):
            file.write(to_json(samples.draw(random.Random(f"{options.seed}/{number}"))) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
