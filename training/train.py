"""`python -m training.train --run DIR --data FILES…`: train the small landmark model, resumable.

Writes into DIR: `log.jsonl` (one line per report), `checkpoint.pt` (weights, averages, optimiser, counters),
and by `--export DIR` an ordinary transformers folder. A run that is stopped goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from training import attention
from training.corpus import HELD_OUT, Corpus, python_sources, read_documents
from training.export import export
from training.learning import descend, optimizers, rate_at, summed_loss
from training.names import Names
from training.recipes import RECIPES, Recipe, Stage
from training.tasks import ANSWER_WEIGHT, Mix, Sample, Tasks
from training.tokenizer import LANDMARK, for_transformers, train_tokenizer


def small_llama(vocabulary: int, slots: int, theta: float = 10_000.0) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=slots,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=True,
        attention_dropout=0.0,
    )


def with_landmarks(sample: Sample, landmark: int, block_size: int) -> tuple[list[int], list[float]]:
    """Slots and loss weights of a sample: a landmark after every `block_size - 1` text tokens."""
    slots: list[int] = []
    weights: list[float] = []
    for start in range(0, len(sample.tokens), block_size - 1):
        slots += sample.tokens[start : start + block_size - 1] + [landmark]
        weights += sample.weights[start : start + block_size - 1] + [0.0]
    return slots, weights


def next_token_loss(logits: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross entropy; logits (rows, slots, vocabulary), slots and weights (rows, slots).

    A landmark has weight 0, so the token before it predicts nothing and the landmark predicts the next token.
    """
    # flat, since the order in which a sum is taken shows in its last bits
    return summed_loss(logits, slots, weights) / weights[:, 1:].flatten().sum()


class Trainer:
    """One run: model, average of its weights, optimiser, and how many tokens it has seen."""

    def __init__(
        self,
        run: Path,
        files: list[Path],
        recipe: Recipe,
        *,
        total: float,
        rate: float,
        seed: int,
        muon: bool,
        base: Path | None = None,
    ) -> None:
        run.mkdir(parents=True, exist_ok=True)
        if base is not None and not (run / "tokenizer.json").exists():
            shutil.copy(base / "tokenizer.json", run / "tokenizer.json")
        self.run, self.recipe, self.total, self.rate = run, recipe, total, rate
        self.tokenizer = load_tokenizer(run / "tokenizer.json", files)
        landmark = self.tokenizer.token_to_id(LANDMARK)
        assert landmark is not None
        self.landmark = landmark
        corpus = Corpus.load(files, self.tokenizer, run / "corpus.npz")
        self.tasks = Tasks(corpus, self.tokenizer, Names(self.tokenizer.decode(corpus.prose[:2_000_000].tolist())))
        torch.manual_seed(seed)
        attention.register()
        longest = max(512, *(stage.slots for stage in recipe.curriculum))
        self.model = LlamaForCausalLM(small_llama(self.tokenizer.get_vocab_size(), longest, recipe.theta))
        if base is not None:
            self.model.load_state_dict(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict())
        self.model.set_attn_implementation(attention.NAME if recipe.landmarks else "sdpa")
        self.inv_freq = self.model.model.rotary_emb.inv_freq.clone()
        self.average = [p.detach().clone() for p in self.model.parameters()]
        tables = [self.model.model.embed_tokens.weight]
        self.optimizers = optimizers(self.model.parameters(), tables, rate, decay=0.1, muon=muon)
        self.seen, self.step, self.seed = 0, 0, seed
        self.resume()
        torch._dynamo.config.recompile_limit = 64  # each layer and each stage has its own shapes
        for layer in self.model.model.layers:
            layer.compile(dynamic=False)

    def resume(self) -> None:
        path = self.run / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.average = state["average"]
            self.seen, self.step = state["seen"], state["step"]
            print(f"resumed at {self.seen / 1e6:.2f} M tokens", flush=True)

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}
        state |= {"average": self.average, "seen": self.seen, "step": self.step}
        torch.save(state, self.run / "checkpoint.new")
        (self.run / "checkpoint.new").replace(self.run / "checkpoint.pt")

    def learning_rate(self) -> float:
        return rate_at(self.rate, (self.step + 1) / self.recipe.warmup, self.seen, self.total)

    def batch(self, rng: random.Random, stage: Stage) -> tuple[Tensor, Tensor]:
        """Slots and weights, both (rows, slots)."""
        settings = self.recipe.landmarks
        text = stage.slots // settings.block_size * (settings.block_size - 1) if settings else stage.slots
        samples = [self.tasks.draw(rng, text, stage.mix) for _ in range(stage.rows)]
        if settings:
            pairs = [with_landmarks(sample, self.landmark, settings.block_size) for sample in samples]
        else:
            pairs = [(sample.tokens, sample.weights) for sample in samples]
        return torch.tensor([slots for slots, _ in pairs]), torch.tensor([weights for _, weights in pairs])

    def logits(self, slots: Tensor, crowd: int) -> Tensor:
        """Logits (rows, slots, vocabulary)."""
        if self.recipe.landmarks is None:
            return self.model(slots, use_cache=False).logits
        inputs = {"inv_freq": self.inv_freq, "landmarks": self.recipe.landmarks, "crowd_queries": crowd}
        return self.model(slots, position_ids=torch.zeros_like(slots), use_cache=False, **inputs).logits

    def update(self, rng: random.Random, stage: Stage) -> float:
        slots, weights = self.batch(rng, stage)
        loss = next_token_loss(self.logits(slots, stage.crowd), slots, weights)
        loss.backward()
        descend(self.optimizers, self.model.parameters(), self.learning_rate())
        blend = 1 - min(0.998, (self.step + 1) / (self.step + 20))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.model.parameters()], blend)
        self.seen, self.step = self.seen + slots.numel(), self.step + 1
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(self, stage: Stage, batches: int | None = None) -> dict[str, float]:
        """Shares of retrieval answers and of copied tokens that are right, on fresh samples."""
        rng = random.Random(self.seen)
        result = {}
        for name, mix in {"retrieval": Mix(0, 0, stage.mix.facts), "copying": Mix(1, 0)}.items():
            right, count = 0.0, 0.0
            for _ in range(batches or max(1, min(4, 8192 // stage.slots))):
                slots, weights = self.batch(rng, replace(stage, mix=mix))
                hit = self.logits(slots, stage.crowd)[:, :-1].argmax(-1) == slots[:, 1:]
                asked = weights[:, 1:] == (ANSWER_WEIGHT if name == "retrieval" else 1.0)
                right, count = right + float((hit & asked).sum()), count + float(asked.sum())
            result[name] = round(right / max(count, 1), 4)
        return result

    def train(self, minutes: float) -> None:
        """Train until `total` tokens or until `minutes` have passed."""
        begun, reported, losses = time.time(), time.time(), []
        while self.seen < self.total and time.time() - begun < minutes * 60:
            stage = self.recipe.stage(self.seen)
            losses.append(self.update(random.Random(self.seed * 1_000_003 + self.step), stage))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"loss is {losses[-1]} at step {self.step}; lower --rate")
            if self.step % self.recipe.report == 0:
                line = {"step": self.step, "seen": self.seen, "slots": stage.slots, "rate": self.learning_rate()}
                line |= {"loss": round(sum(losses) / len(losses), 4), "seconds": round(time.time() - reported, 1)}
                line |= self.evaluate(stage)
                self.report(line)
                reported, losses = time.time(), []
                self.save()
        self.save()

    def report(self, line: dict[str, float]) -> None:
        print(json.dumps(line), flush=True)
        with (self.run / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def export(self, folder: Path) -> None:
        """The averaged weights as a transformers folder."""
        with torch.no_grad():
            for parameter, average in zip(self.model.parameters(), self.average, strict=True):
                parameter.copy_(average)
        settings = self.recipe.landmarks
        landmarks = {"token_id": self.landmark, **asdict(settings)} if settings else None
        export(folder, self.model, for_transformers(self.tokenizer), landmarks)


def load_tokenizer(path: Path, files: list[Path]) -> Tokenizer:
    """The run's tokenizer; a new run trains it on a fifth of each text and on some of Python's sources."""
    if not path.exists():
        documents = [d.text for f in files for d in read_documents(f) if d.title not in HELD_OUT]
        pieces = [t[i : i + 20_000] for t in documents for i in range(0, len(t), 100_000)]
        train_tokenizer([*pieces, *(d.text for d in python_sources(2_000_000))]).save(str(path))
    return Tokenizer.from_file(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run: log, checkpoint, tokenizer")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help=".jsonl, .jsonl.xz or text files")
    parser.add_argument("--recipe", choices=RECIPES, default="cairn-4m", help="what to train (training/recipes.py)")
    parser.add_argument("--base", type=Path, help="folder of a model of this shape whose weights a new run begins with")
    parser.add_argument("--total-tokens", type=float, default=40e6)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop (resumable) after this long")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--muon", action="store_true", help="Muon for the layers' matrices instead of AdamW")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", type=Path, help="write the averaged weights here when training stops")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {
        "total": options.total_tokens,
        "rate": options.rate,
        "seed": options.seed,
        "muon": options.muon,
        "base": options.base,
    }
    trainer = Trainer(options.run, options.data, RECIPES[options.recipe], **settings)
    trainer.train(options.minutes)
    if options.export:
        trainer.export(options.export)


if __name__ == "__main__":
    main()
