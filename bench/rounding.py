"""`python -m bench.rounding --models models/books-plain-8k models/cairn-4m`: what weights in fewer bits change.

Texts of the held-out books are read as they are served, mostly in large parts, the last tokens one by one. Each kind of
weights predicts the same tokens: perplexity, the divergence from what the weights as they were trained predict, and how
often both find the same token likeliest. Above stands how far rounded matrices are from their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from bench.perplexity import books, spread
from bench.report import write_json
from bench.scoring import predicting, surprise
from cache import BlockStore, DeviceTier, Session
from engine import EngineConfig, LoadedModel, ModelRunner, Span, Step, choose_attention, index_shapes, load_model
from engine.rounded import rounded
from engine.step import with_landmarks
from training import HELD_OUT

KINDS = (("float32", "auto"), ("bfloat16", "auto"), ("float32", "int8"), ("bfloat16", "int8"))
"""Types of numbers and of weights; the first is what the others are compared with."""
PART = 512
LAST = 32
"""Tokens of a text that are read one by one."""


@dataclass(frozen=True)
class Row:
    """One kind of weights of a model, over all scored tokens.

    Attributes:
        loss, error: difference from the first kind's loss in nats, and its standard error
        divergence: of its predictions from the first kind's, in nats
        agreement: share of the tokens at which both find the same one likeliest
    """

    model: str
    dtype: str
    weights: str
    tokens: int
    perplexity: float
    loss: float
    error: float
    divergence: float
    agreement: float


class Reader:
    """A model that reads texts as a server does."""

    def __init__(self, folder: str, dtype: str, weights: str) -> None:
        config = EngineConfig(dtype=dtype, weights=weights)
        self._model = load_model(folder, dtype, weights=weights)
        self._layout, self._settings = config.layout(self._model), config.retrieval(self._model)
        self._runner = ModelRunner(self._model, choose_attention(self._model, self._settings, self._layout))
        self._landmark = self._model.landmarks.token_id if self._model.landmarks else None

    def logits(self, tokens: list[int]) -> Tensor:
        """(tokens - 1, vocabulary), each of which predicts the next token."""
        layout, last = self._layout, len(tokens) - 1
        store = BlockStore(DeviceTier(layout, layout.block_bytes * layout.blocks(len(tokens))))
        session = Session("text", store, index_shapes(self._model, self._settings, layout))
        session.append(tokens)
        ends = [*range(PART, last - LAST, PART), *range(last - LAST, last + 1)]
        return torch.cat([self._advance(session, end) for end in ends])

    def _advance(self, session: Session, end: int) -> Tensor:
        start = session.computed
        session.reserve(end)
        ids = with_landmarks(session.tokens[start:end].tolist(), start, self._landmark, self._layout)
        span = Span(session, start, end, ids, self._settings.blocks_per_head)
        return self._runner.run(Step([span]), predicting(ids, -1 if self._landmark is None else self._landmark))


def texts(folder: str, data: Path, segments: int, length: int) -> list[list[int]]:
    """Token ids of as many pieces of each held-out book."""
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    for text in books(data, HELD_OUT):
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        found += [ids[start : start + length] for start in spread(len(ids), length, segments)]
    return found


def compared(folder: str, given: list[list[int]]) -> Iterator[Row]:
    """Each kind of weights."""
    expected: list[Tensor] = []
    for dtype, weights in KINDS:
        reader = Reader(folder, dtype, weights)
        found = [reader.logits(tokens).log_softmax(-1) for tokens in given]
        expected = expected or found
        targets = torch.cat([torch.tensor(tokens[1:]) for tokens in given])
        yield row((Path(folder).name, dtype, weights), torch.cat(found), torch.cat(expected), targets)


def row(names: tuple[str, str, str], found: Tensor, expected: Tensor, targets: Tensor) -> Row:
    """Of logarithms of probabilities (tokens, vocabulary), both, and the tokens that came (tokens,)."""
    losses = surprise(found, targets)
    more = losses - surprise(expected, targets)
    return Row(
        *names,
        tokens=len(targets),
        perplexity=float(losses.mean().exp()),
        loss=float(more.mean()),
        error=float(more.std() / len(more) ** 0.5),
        divergence=float((expected.exp() * (expected - found)).sum(-1).mean()),
        agreement=float((expected.argmax(-1) == found.argmax(-1)).float().mean()),
    )


def distances(model: LoadedModel) -> dict[str, float]:
    """How far a rounded matrix is from its own, relative to its length; the mean of those with a name."""
    found: dict[str, list[float]] = {}
    for name, layer in model.model.named_modules():
        if type(layer) is nn.Linear:
            numbers, scales = rounded(layer.weight.detach())
            off = numbers * scales[:, None] - layer.weight.float()
            found.setdefault(name.rpartition(".")[2], []).append(float(off.norm() / layer.weight.float().norm()))
    return {name: sum(each) / len(each) for name, each in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["models/books-plain-8k", "models/cairn-4m"])
    parser.add_argument("--data", type=Path, default=Path("../shared/corpus/books.jsonl.xz"), help="the books")
    parser.add_argument("--segments", type=int, default=2, help="of each book")
    parser.add_argument("--length", type=int, default=2048, help="of the texts, in tokens")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    rows = []
    for folder in options.models:
        apart = distances(load_model(folder, "float32"))
        print(f"{folder}: " + ", ".join(f"{name} {100 * distance:.2f}%" for name, distance in apart.items()))
        print(f"{'dtype':>10}{'weights':>9}{'perplexity':>12}{'loss':>19}{'divergence':>12}{'agreement':>11}")
        for each in compared(folder, texts(folder, options.data, options.segments, options.length)):
            print(
                f"{each.dtype:>10}{each.weights:>9}{each.perplexity:>12.3f}{each.loss:>+11.5f} ±{each.error:.5f}"
                f"{each.divergence:>12.6f}{each.agreement:>11.2%}",
                flush=True,
            )
            rows.append(asdict(each) | {"distances": apart})
    write_json(options.json, {"segments": options.segments, "length": options.length, "rows": rows})
    return 0


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
