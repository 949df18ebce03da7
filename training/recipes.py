"""What a run trains: the attention, the lengths and the mix of samples. Plain values; knows no tensor."""

from __future__ import annotations

from dataclasses import dataclass

from training.attention import LandmarkSettings
from training.tasks import Mix


@dataclass(frozen=True)
class Stage:
    """Part of the curriculum: from `start` tokens on, sequences of `slots`, `rows` of them in a step."""

    start: float
    slots: int
    rows: int
    mix: Mix
    crowd: int = 0
    """Last queries of each row that also meet the other rows' blocks; only with landmarks."""


@dataclass(frozen=True)
class Recipe:
    """One way to train the small Llama.

    Attributes:
        landmarks: geometry of the grouped softmax; None trains plain attention
        curriculum: stages, the first one from 0 tokens on
        theta: base of the rotary frequencies; a longer context wants a larger one
        warmup: steps until the full learning rate
        report: steps between two reports and checkpoints
    """

    landmarks: LandmarkSettings | None
    curriculum: tuple[Stage, ...]
    theta: float = 10_000.0
    warmup: int = 200
    report: int = 200

    def stage(self, seen: float) -> Stage:
        """The stage of a run that has seen so many tokens."""
        return [s for s in self.curriculum if s.start <= seen][-1]


COPYING = Mix(copying=0.55, language=0.20)
PROSE = Mix(copying=0.06, language=0.74)


def books(copying_again: float) -> tuple[Stage, ...]:
    """For the paper's tables: mostly language modelling, at last on 512 slots.

    Args:
        copying_again: where a second round of copying begins. The first one was too short: after 2 M tokens both
            models had a tenth of copied tokens right, and without heads that copy, what a far block holds is of no
            use to prose
    """
    stages = (
        Stage(0, 128, 16, Mix(copying=0.35, language=0.35)),
        Stage(1.2e6, 128, 16, Mix(copying=0.10, language=0.60)),
        Stage(2e6, 256, 8, Mix(copying=0.05, language=0.70)),
        Stage(2.8e6, 512, 4, PROSE, crowd=128),
    )
    return (
        *(stage for stage in stages if stage.start < copying_again),
        Stage(copying_again, 128, 16, COPYING),
        Stage(copying_again + 0.9e6, 512, 4, PROSE, crowd=128),
    )


RECIPES = {
    "cairn-4m": Recipe(
        LandmarkSettings(),
        (
            Stage(0, 128, 16, Mix(copying=0.40, language=0.10)),
            Stage(3e6, 128, 16, Mix(copying=0.20, language=0.15)),
            Stage(3.6e6, 128, 16, Mix(copying=0.08, language=0.12), crowd=32),
            Stage(6e6, 256, 8, Mix(copying=0.05, language=0.12), crowd=32),
        ),
    ),
    "books-landmark": Recipe(LandmarkSettings(block_size=32, recent_blocks=7), books(copying_again=2.45e6)),
    "books-plain": Recipe(None, books(copying_again=3.27e6)),
    "books-plain-2k": Recipe(
        None,
        (Stage(0, 2048, 2, PROSE), Stage(6e6, 2048, 2, Mix(copying=0.08, language=0.32))),
    ),
    "books-plain-8k": Recipe(
        None, (Stage(0, 8192, 1, Mix(copying=0.05, language=0.25, facts=48)),), theta=50_000.0, warmup=30, report=10
    ),
}
"""`cairn-4m` is the model that we ship; the books' pair is for the paper's tables; `books-plain-2k` goes on
from `books-plain` to a longer context, as the test bed of the training-free rules, and `books-plain-8k` from that."""
