"""Training samples in tokens: language modelling, copying, and questions about facts hidden in filler.

RULER's tasks keep their published wording (NVIDIA/RULER, scripts/data/synthetic). A sample is a list of
text tokens (no landmarks) and one loss weight per token: 0 where nothing can be learned (a random number
when it is first told), `ANSWER_WEIGHT` where an answer is given.
"""

from __future__ import annotations

import itertools
import random
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from training.corpus import Corpus
from training.names import Names

FILLER, TOLD, ASKED, LEAD, ANSWER_WEIGHT = 0.5, 0.1, 0.1, 1.0, 4.0
"""Weights of text, of a fact when it is first told (nothing foretells it), of questions, of an answer's words, and of
what was asked for."""

TELL_KEY = (
    "The pass key for {name} is {value}. Remember it.",
    "The pass key for {name} is {value}. Remember it.",
    "The pass key for {name} is {value}.",
    "Remember this: the pass key for {name} is {value}.",
    "The pass key for {name} is {value}. {value} is the pass key for {name}.",
)
ASK_KEY = (
    "What is the pass key for {name}?",
    "What is the pass key for {name}?",
    "What is the pass key for {name}",
    "Tell me the pass key for {name}.",
    "Which pass key does the text give for {name}?",
    "Please find the pass key for {name} in the text above.",
    "Do you remember the pass key for {name}?",
    "{name}: what is the pass key?",
    "And the pass key for {name}?",
)
SAY_KEY = "The pass key for {name} is {value}."
TELL_THING = ("{name} keeps the {thing} in the {place}.", "The {thing} of {name} is in the {place}.")
ASK_THING = ("Where is the {thing} of {name}?", "Where does {name} keep the {thing}?")
SAY_THING = "{name} keeps the {thing} in the {place}."
THINGS = ("key", "letter", "map", "ring", "lamp", "book", "knife", "money", "watch", "ticket", "coat", "bottle")
PLACES = (
    "garden", "kitchen", "cellar", "tower", "drawer", "library", "stable", "church", "boat", "attic", "well",
    "forest", "chimney", "office", "market", "bridge", "school", "mill", "barn", "harbour",
)  # fmt: skip
TELL_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
ASK_NEEDLE = "What are all the special magic {kind} for {key} mentioned in the provided text?"
SAY_NEEDLE = " The special magic {kind} for {key} mentioned in the provided text are"
ASK_ONE_NEEDLE = "What is the special magic {one} for {key} mentioned in the provided text?"
SAY_ONE_NEEDLE = " The special magic {one} for {key} mentioned in the provided text is"
ASK_CHAIN = "Question: Find all variables that are assigned the value {value} in the text above."
SAY_CHAIN = (
    " Answer: According to the chain(s) of variable assignment in the text above, "
    "{count} variables are assigned the value {value}, they are: "
)


@dataclass
class Sample:
    """Text tokens and their loss weights, grown from the left."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, tokens: list[int], weight: float) -> None:
        self.tokens += tokens
        self.weights += [weight] * len(tokens)


@dataclass(frozen=True)
class Fact:
    """One thing told in the text: how it is told, and the question and answer about it."""

    told: str
    question: str
    lead: str
    answer: str


class Tasks:
    """Draws samples of a given number of text tokens.

    Args:
        corpus: the filler
        tokenizer: must know the chat tokens of `training.tokenizer`
        names: who or what facts are about
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, names: Names) -> None:
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._names = names
        self._vocabulary = tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def draw(self, rng: random.Random, length: int, mix: Mix) -> Sample:
        """One sample of exactly `length` text tokens, its kind drawn from `mix`."""
        draw = rng.random()
        if draw < mix.copying:
            return self.copying(rng, length)
        if draw < mix.copying + mix.language:
            sample = Sample()
            sample.add(self._corpus.text(rng, length, prose=rng.random() < 0.9), 1.0)
            return sample
        return self.retrieval(rng, length, mix.facts)

    def copying(self, rng: random.Random, length: int) -> Sample:
        """A span of 8 to 60 tokens, random or text, repeated until the sample is full."""
        size = rng.randint(8, min(60, length // 2))
        if rng.random() < 0.5:
            span = [rng.randrange(6, self._vocabulary) for _ in range(size)]
        else:
            span = self._corpus.text(rng, size)
        sample = Sample()
        sample.add(span, 0.0)
        while len(sample.tokens) < length:
            sample.add(span, 1.0)
        return Sample(sample.tokens[:length], sample.weights[:length])

    def retrieval(self, rng: random.Random, length: int, most: int = 8) -> Sample:
        """At most so many facts at random places of a filler, then questions about some of them, answered."""
        while (sample := self._retrieval(rng, length, most)) is None:
            pass
        return sample

    def _retrieval(self, rng: random.Random, length: int, most: int) -> Sample | None:
        """As `retrieval`; None if what was drawn does not fit."""
        facts = self._facts(rng, length, most)
        turns = Sample()
        chat = rng.random() < 0.75
        budget = length // 2
        for fact in rng.sample(facts, len(facts)):
            turn = self._turn(rng, fact, chat=chat)
            if turns.tokens and (len(turns.tokens) + len(turn.tokens) > budget or rng.random() < 1.6 / most):
                break
            turns.tokens += turn.tokens
            turns.weights += turn.weights
        opening = [self._id("<|user|>")] if rng.random() < 0.3 else []
        sample = Sample()
        sample.add(opening, 0.0)
        room = length - len(opening) - len(turns.tokens)
        self._hide(rng, facts, room, sample)
        sample.tokens += turns.tokens
        sample.weights += turns.weights
        return sample if len(sample.tokens) == length else None

    def _hide(self, rng: random.Random, facts: list[Fact], room: int, sample: Sample) -> None:
        """Append `room` tokens: filler with all facts in it, in random order and at random places."""
        told = [self.encode(rng.choice((" ", "\n", " ", "\n\n")) + fact.told) for fact in facts]
        rng.shuffle(told)
        filler = self._corpus.window(rng, max(room - sum(map(len, told)), 0) + 1)[1:]
        cuts = sorted(self._cut(rng, filler) for _ in told)
        last = 0
        for cut, tokens in zip(cuts, told, strict=True):
            sample.add(filler[last:cut], FILLER)
            sample.add(tokens, TOLD)
            last = cut
        sample.add(filler[last:], FILLER)

    def _cut(self, rng: random.Random, filler: list[int]) -> int:
        """A place to insert a fact: mostly after a full stop near a random point."""
        cut = rng.randint(0, len(filler))
        if rng.random() < 0.6:
            stop = self._id(".")
            for place in range(cut, min(cut + 20, len(filler))):
                if filler[place] == stop:
                    return place + 1
        return cut

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        assert found is not None, token
        return int(found)

    def _turn(self, rng: random.Random, fact: Fact, *, chat: bool) -> Sample:
        """Question and answer, as a chat turn or as plain text."""
        sample = Sample()
        if chat:
            opening = rng.choice(("<|user|>", "<|user|>", "\n\n", "<|end|><|user|>"))
            sample.add(self.encode(opening + fact.question + "<|end|><|assistant|>"), ASKED)
            sample.add(self.encode(fact.lead.strip()), LEAD)
        else:
            sample.add(self.encode(rng.choice((" ", "\n", "\n\n")) + fact.question), ASKED)
            sample.add(self.encode(rng.choice((" ", "\n")) + fact.lead.strip()), LEAD)
        sample.add(self.encode(fact.answer), ANSWER_WEIGHT)
        if chat:
            sample.add([self._id("<|end|>")], LEAD)
        return sample

    def _facts(self, rng: random.Random, length: int, most: int) -> list[Fact]:
        """At most so many facts of one kind that fit into a third of `length` tokens."""
        kinds: list[Callable[[random.Random, int], list[Fact]]] = [self._keys] * 8
        kinds += [self._things, self._needles, self._needles]
        if length >= 200:
            kinds += [self._many_values, self._chain]
        most = max(1, min(most, length // 60))
        facts = rng.choice(kinds)(rng, rng.randint(1, most))
        while len(facts) > 1 and sum(len(self.encode(f.told)) for f in facts) > length // 2:
            facts.pop()
        return facts

    def _keys(self, rng: random.Random, count: int) -> list[Fact]:
        tell, facts = rng.choice(TELL_KEY), []
        for name in self._names.draw(rng, count):
            value = pass_key(rng)
            question = rng.choice(ASK_KEY).format(name=name)
            facts.append(Fact(tell.format(name=name, value=value), question, *say_key(name, value)))
        return facts

    def _things(self, rng: random.Random, count: int) -> list[Fact]:
        tell, ask, facts = rng.choice(TELL_THING), rng.choice(ASK_THING), []
        for name in self._names.draw(rng, count):
            thing, place = rng.choice(THINGS), rng.choice(PLACES)
            words = {"name": name, "thing": thing, "place": place}
            lead = SAY_THING.format(**words).split(f" {place}")[0]
            facts.append(Fact(tell.format(**words), ask.format(**words), lead, f" {place}."))
        return facts

    def _needles(self, rng: random.Random, count: int) -> list[Fact]:
        """RULER's niah: single, multi-key and multi-query; keys and values are numbers, words or uuids."""
        kind, one, value_of = rng.choice(
            [("numbers", "number", seven_digits)] * 4
            + [("words", "word", self._names.compound), ("uuids", "uuid", random_uuid)]
        )
        if kind == "uuids":
            count = 1
        facts = []
        for key in self._names.draw_compounds(rng, count):
            value = value_of(rng)
            told = TELL_NEEDLE.format(kind=kind, key=key, value=value)
            question = ASK_ONE_NEEDLE.format(one=one, key=key)
            facts.append(Fact(told, question, SAY_ONE_NEEDLE.format(one=one, key=key), f" {value}."))
        return facts

    def _many_values(self, rng: random.Random, count: int) -> list[Fact]:
        """RULER's multi-value: several values told apart for one key, all asked at once."""
        key = self._names.compound(rng)
        values = [seven_digits(rng) for _ in range(max(2, min(count, 4)))]
        told = [TELL_NEEDLE.format(kind="numbers", key=key, value=value) for value in values]
        question = ASK_NEEDLE.format(kind="numbers", key=key)
        lead = SAY_NEEDLE.format(kind="numbers", key=key)
        return [Fact(" ".join(told), question, lead, " " + ", ".join(values) + ".")]

    def _chain(self, rng: random.Random, count: int) -> list[Fact]:
        """RULER's variable tracking, told in order."""
        variables = ["".join(rng.choices(string.ascii_uppercase, k=5)) for _ in range(min(count, 3) + 1)]
        value = digits(rng, 5)
        told = [f"VAR {variables[0]} = {value}"]
        told += [f"VAR {new} = VAR {old}" for old, new in itertools.pairwise(variables)]
        lead = SAY_CHAIN.format(count=len(variables), value=value).rstrip()
        return [Fact("\n".join(told), ASK_CHAIN.format(value=value), lead, " " + " ".join(variables))]


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of sample; the rest is retrieval, with at most so many facts in a sample.

    A long row with few questions teaches little for what it costs, so there `facts` is raised.
    """

    copying: float
    language: float
    facts: int = 8


def pass_key(rng: random.Random) -> str:
    return digits(rng, rng.choice((5, 5, 5, 4, 6, 7)))


def say_key(name: str, value: str) -> tuple[str, str]:
    """The words of an answer, and the key that they lead to."""
    lead, end = SAY_KEY.format(name=name, value="|").split("|")
    return lead.rstrip(), f" {value}{end}"


def digits(rng: random.Random, count: int) -> str:
    """A number; often of few different digits, since a repeated digit is what a copying model stumbles over."""
    alphabet = string.digits if rng.random() < 0.5 else rng.sample(string.digits, rng.randint(2, 4))
    return "".join(rng.choices(alphabet, k=count))


def seven_digits(rng: random.Random) -> str:
    return str(rng.randint(1, 9)) + digits(rng, 6)


def random_uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
