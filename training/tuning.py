"""The loop of a fine-tuning run: steps, held-out loss, log, checkpoint. Knows no file of texts and no command line."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from training.adaptation import Adaptation
from training.learning import descend, optimizers, rate_at, summed_loss
from training.packing import Feed
from training.records import InputError


@dataclass(frozen=True)
class Schedule:
    """How a run learns.

    Attributes:
        steps: updates of the weights
        batch: rows that go through the model together
        accumulate: batches of one update
        rate: highest learning rate: reached after a tenth of the steps (at most 100), lowered in the last third
        crowd: last slots of each row that also choose among the other rows' blocks
        bf16: compute the model (not the scores of its attention) in bf16; weights and their updates stay fp32
        muon: Muon for the matrices, AdamW for the rest
        report: steps between two reports, each with held-out loss and checkpoint
    """

    steps: int
    batch: int
    accumulate: int
    rate: float
    crowd: int
    bf16: bool
    muon: bool
    report: int

    def rate_at(self, step: int) -> float:
        warm = (step + 1) / max(1, min(100, self.steps // 10))
        return rate_at(self.rate, warm, step, self.steps)


class Tuning:
    """One run in a folder of its own.

    Args:
        run: `log.jsonl` and `checkpoint.pt`
        held: rows that are not trained on: tokens int64 and weights float32, both (rows, text)
        origin: what the run was started with; a checkpoint of anything else is refused
    """

    def __init__(
        self,
        run: Path,
        adaptation: Adaptation,
        feed: Feed,
        held: tuple[np.ndarray, np.ndarray],
        schedule: Schedule,
        origin: dict[str, Any],
    ) -> None:
        self.run, self.adaptation, self.feed, self.schedule = run, adaptation, feed, schedule
        self.held = [torch.from_numpy(x) for x in held]
        self.origin = origin
        self.optimizers = optimizers(
            adaptation.trained().values(),
            adaptation.tables(),
            schedule.rate,
            decay=0.0 if adaptation.lora else 0.01,
            muon=schedule.muon,
        )
        self.step, self.tokens = 0, 0
        self.losses: dict[str, float] = {}
        run.mkdir(parents=True, exist_ok=True)
        self.resume()

    # -- checkpoint ------------------------------------------------------------------------------------------

    def resume(self) -> None:
        path = self.run / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        for name, value in self.origin.items():
            if state["origin"].get(name) != value:
                raise InputError(
                    f"{self.run} holds a run with {name} {state['origin'].get(name)}, not {value}; "
                    f"give the same options to go on with it, or another --run"
                )
        with torch.no_grad():
            for name, parameter in self.adaptation.trained().items():
                parameter.copy_(state["weights"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.feed.drawn = state["step"], state["tokens"], state["drawn"]
        self.losses = state["losses"]
        print(f"resumed at step {self.step}", flush=True)

    def save(self) -> None:
        state = {
            "origin": self.origin,
            "weights": self.adaptation.trained(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "drawn": self.feed.drawn,
            "losses": self.losses,
        }
        torch.save(state, self.run / "checkpoint.new")
        (self.run / "checkpoint.new").replace(self.run / "checkpoint.pt")

    # -- loss ------------------------------------------------------------------------------------------------

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.adaptation.model.device.type, torch.bfloat16, enabled=self.schedule.bf16)

    def update(self) -> float:
        """One step; its loss."""
        batches = [self.feed.batch(self.schedule.batch) for _ in range(self.schedule.accumulate)]
        total = max(float(sum(weights.sum() for _, weights in batches)), 1e-9)
        loss = 0.0
        for tokens, weights in batches:
            slots = self.adaptation.slots(torch.from_numpy(tokens))
            with self.autocast():
                logits = self.adaptation.logits(slots, self.schedule.crowd)
            part = summed_loss(logits, slots, self.adaptation.slot_weights(torch.from_numpy(weights))) / total
            part.backward()
            loss += float(part.detach())
            self.tokens += tokens.size
        descend(self.optimizers, self.adaptation.trained().values(), self.schedule.rate_at(self.step))
        self.step += 1
        if not math.isfinite(loss):
            raise InputError(f"the loss is {loss} at step {self.step}; give a lower --rate")
        return loss

    @torch.no_grad()
    def held_out(self, *, plain: bool = False) -> float:
        """Mean loss of the held-out text tokens, as it will be served; `plain`: with full attention, no landmarks.

        Both are means over the same tokens: all but the first one of each row.
        """
        loss, total = 0.0, 0.0
        for tokens, weights in zip(*(x.split(1) for x in self.held), strict=True):
            with self.autocast():
                if plain:
                    logits, slots = self.adaptation.plain_logits(tokens), tokens
                else:
                    slots, weights = self.adaptation.slots(tokens), self.adaptation.slot_weights(weights)
                    logits = self.adaptation.logits(slots)
            loss += float(summed_loss(logits, slots, weights))
            total += float(weights[:, 1:].sum())
        return round(loss / total, 4)

    # -- running ---------------------------------------------------------------------------------------------

    def train(self, minutes: float) -> None:
        """Train until all steps are done, or until `minutes` have passed."""
        begun = time.monotonic()
        self.measure_before()
        recent, since, tokens = [], time.monotonic(), self.tokens
        with tqdm(total=self.schedule.steps, initial=self.step, unit="step", dynamic_ncols=True) as bar:
            while self.step < self.schedule.steps and time.monotonic() - begun < minutes * 60:
                recent.append(self.update())
                bar.update()
                seconds = time.monotonic() - since
                speed = (self.tokens - tokens) / seconds
                bar.set_postfix_str(f"loss {recent[-1]:.3f}, {speed:,.0f} tokens/s")
                if self.step % self.schedule.report == 0 or self.step == self.schedule.steps:
                    self.report(sum(recent) / len(recent), seconds, speed)
                    self.save()
                    recent, since, tokens = [], time.monotonic(), self.tokens
        self.save()

    def measure_before(self) -> None:
        """The held-out loss of the model as it came, and with landmarks that it has not learned yet."""
        if not self.losses:
            self.losses = {"plain": self.held_out(plain=True), "untrained": self.held_out()}
            self.write({"step": 0, "held_out_plain": self.losses["plain"], "held_out": self.losses["untrained"]})

    def report(self, loss: float, seconds: float, speed: float) -> None:
        self.losses["trained"] = self.held_out()
        self.write({
            "step": self.step,
            "tokens": self.tokens,
            "rate": self.schedule.rate_at(self.step),
            "loss": round(loss, 4),
            "held_out": self.losses["trained"],
            "seconds": round(seconds, 1),
            "tokens_per_second": round(speed),
        })  # fmt: skip

    def write(self, line: dict[str, Any]) -> None:
        tqdm.write(json.dumps(line))
        with (self.run / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
