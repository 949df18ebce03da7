"""Training: where landmarks stand, what the loss counts, and a run that learns, stops and goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig

from engine import load_model
from training.attention import LandmarkSettings
from training.corpus import HELD_OUT, Corpus, Document
from training.recipes import RECIPES, Recipe, Stage
from training.tasks import Mix, Sample
from training.tokenizer import LANDMARK
from training.train import Trainer, next_token_loss, with_landmarks

STAGE = Stage(0, 64, 4, Mix(copying=0.3, language=0.4), crowd=16)
Start = Callable[..., Trainer]


# -- samples and loss ----------------------------------------------------------------------------------------


def test_a_landmark_closes_each_block() -> None:
    sample = Sample(list(range(10, 19)), [1.0] * 4 + [0.5] * 5)
    slots, weights = with_landmarks(sample, landmark=5, block_size=4)
    assert slots == [10, 11, 12, 5, 13, 14, 15, 5, 16, 17, 18, 5]
    assert weights == [1.0, 1.0, 1.0, 0.0, 1.0, 0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.0]


def test_the_loss_is_the_weighted_mean_over_text_tokens_but_the_first() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 8, 20, generator=generator)
    slots = torch.tensor([[10, 11, 12, 5, 13, 14, 15, 5], [6, 7, 8, 5, 9, 9, 9, 5]])
    weights = torch.tensor([[1.0, 1.0, 4.0, 0.0, 0.5, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 1.0, 0.0]])
    total = whole = 0.0
    for row in range(2):
        for slot in range(1, 8):
            weight = float(weights[row, slot])
            total -= weight * float(logits[row, slot - 1].log_softmax(-1)[slots[row, slot]])
            whole += weight
    assert float(next_token_loss(logits, slots, weights)) == pytest.approx(total / whole, rel=1e-5)


def test_a_landmark_predicts_the_next_text_token_and_the_token_before_it_nothing() -> None:
    slots, weights = (torch.tensor([x]) for x in with_landmarks(Sample(list(range(10, 16)), [1.0] * 6), 5, 4))
    logits = torch.zeros(1, 8, 20, requires_grad=True)
    next_token_loss(logits, slots, weights).backward()
    assert logits.grad is not None
    learns = logits.grad[0].abs().sum(-1) > 0
    #       tokens: 10    11    12     5     13    14    15     5
    assert learns.tolist() == [True, True, False, True, True, True, False, False]
    assert int(logits.grad[0, 3].argmin()) == 13  # the landmark learns the token after it
    assert not logits.grad[0, :, 5].lt(0).any(), "nobody learns to say the landmark"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_stages_follow_each_other_in_whole_blocks(recipe: Recipe) -> None:
    starts = [stage.start for stage in recipe.curriculum]
    assert starts[0] == 0
    assert starts == sorted(starts)
    for stage in recipe.curriculum:
        assert stage.slots % (recipe.landmarks.block_size if recipe.landmarks else 1) == 0
        assert 0 <= stage.crowd <= stage.slots
        assert stage.mix.copying + stage.mix.language < 1
        assert recipe.stage(stage.start) == stage


# -- texts ---------------------------------------------------------------------------------------------------


def test_held_out_titles_are_not_trained_on(
    tmp_path: Path, text: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.corpus.python_sources", lambda: [Document("code", text[:1000])])
    books = [{"title": HELD_OUT[0], "text": "Zanzibar " * 500}, {"title": "A Book", "text": text[:5000]}]
    (tmp_path / "books.jsonl").write_text("\n".join(json.dumps(book) for book in books))
    corpus = Corpus.load([tmp_path / "books.jsonl"], tokenizer, tmp_path / "corpus.npz")
    assert tokenizer.decode(corpus.prose.tolist()) == text[:5000]
    assert corpus.prose.tolist() == Corpus.load([], tokenizer, tmp_path / "corpus.npz").prose.tolist()


# -- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts or resumes a run of a much smaller model, not compiled."""
    monkeypatch.setattr("training.train.small_llama", tiny_llama)
    monkeypatch.setattr("training.corpus.python_sources", lambda: [Document("code", text[60_000:])])
    monkeypatch.setattr("torch.nn.Module.compile", lambda self, **_: None)
    (tmp_path / "book.txt").write_text(text[:60_000])

    def begin(name: str, *, muon: bool = False, recipe: str = "cairn-4m", base: Path | None = None) -> Trainer:
        files = [tmp_path / "book.txt"]
        return Trainer(tmp_path / name, files, RECIPES[recipe], total=1e6, rate=0.05, seed=3, muon=muon, base=base)

    return begin


def tiny_llama(vocabulary: int, slots: int, theta: float) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=slots,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=True,
    )


def steps(trainer: Trainer, count: int) -> list[float]:
    """Updates as `train` makes them: each step has its own random numbers."""
    return [trainer.update(random.Random(trainer.seed * 1_000_003 + trainer.step), STAGE) for _ in range(count)]


def same(first: Trainer, second: Trainer) -> None:
    for mine, yours in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(mine, yours)
    for mine, yours in zip(first.average, second.average, strict=True):
        assert torch.equal(mine, yours)
    assert (first.seen, first.step) == (second.seen, second.step)


@pytest.mark.parametrize(("muon", "recipe"), [(False, "cairn-4m"), (True, "cairn-4m"), (True, "books-plain")])
def test_it_learns_stops_and_goes_on_as_if_it_had_not_stopped(start: Start, muon: bool, recipe: str) -> None:
    whole = start("whole", muon=muon, recipe=recipe)
    losses = steps(whole, 60)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])

    first = start("parts", muon=muon, recipe=recipe)
    assert steps(first, 15) == losses[:15]
    first.save()
    second = start("parts", muon=muon, recipe=recipe)
    same(first, second)
    assert steps(second, 45) == losses[15:]
    same(second, whole)
    assert whole.seen == 60 * STAGE.rows * STAGE.slots


def test_a_run_is_exported_as_a_model_that_the_engine_serves(start: Start, tmp_path: Path) -> None:
    trainer = start("run")
    steps(trainer, 3)
    trainer.export(tmp_path / "model")
    model = load_model(str(tmp_path / "model"))
    assert model.landmarks is not None
    landmark = trainer.tokenizer.token_to_id(LANDMARK)
    assert asdict(model.landmarks) == {"token_id": landmark, **asdict(LandmarkSettings())}
    for parameter, average in zip(model.model.parameters(), trainer.average, strict=True):
        assert torch.equal(parameter.detach(), average)


def test_a_plain_model_is_exported_without_landmarks(start: Start, tmp_path: Path) -> None:
    trainer = start("run", recipe="books-plain")
    steps(trainer, 1)
    trainer.export(tmp_path / "model")
    assert load_model(str(tmp_path / "model")).landmarks is None


def test_a_run_begins_with_the_weights_of_its_base_and_turns_positions_slower(start: Start, tmp_path: Path) -> None:
    first = start("first", recipe="books-plain-2k")
    steps(first, 3)
    first.export(tmp_path / "base")
    longer = start("longer", recipe="books-plain-8k", base=tmp_path / "base")
    for mine, yours in zip(longer.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(mine, yours)
    assert (longer.inv_freq[1:] < first.inv_freq[1:]).all()
    assert longer.tokenizer.get_vocab() == first.tokenizer.get_vocab()


def test_training_ends_at_its_tokens_and_keeps_a_checkpoint(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curriculum = (Stage(0, 32, 2, Mix(0.5, 0.4)), Stage(200, 64, 2, Mix(0, 0)))
    monkeypatch.setitem(RECIPES, "short", Recipe(LandmarkSettings(), curriculum))
    trainer = start("run", recipe="short")
    trainer.total = 640
    trainer.train(minutes=10)
    assert (trainer.seen, trainer.step) == (4 * 64 + 3 * 128, 7)
    same(start("run", recipe="short"), trainer)


def test_the_rate_warms_up_stays_and_goes_down(start: Start) -> None:
    trainer = start("run")
    rates = []
    for step, seen in ((0, 0), (99, 1e5), (199, 2e5), (5000, 6e5), (9000, 8.3334e5), (9999, 1e6)):
        trainer.step, trainer.seen = step, int(seen)
        rates.append(trainer.learning_rate() / 0.05)
    assert rates == pytest.approx([1 / 200, 0.5, 1.0, 1.0, 0.5, 0.05], abs=1e-3)


def test_evaluation_tells_shares(start: Start) -> None:
    trainer = start("run")
    shares = trainer.evaluate(STAGE, batches=2)
    assert shares.keys() == {"retrieval", "copying"}
    assert all(0.0 <= share <= 1.0 for share in shares.values())
    assert shares == trainer.evaluate(STAGE, batches=2)
