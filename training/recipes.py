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
    """

    landmarks: LandmarkSettings | None
    curriculum: tuple[Stage, ...]

    def stage(self, seen: float) -> Stage:
        """The stage of a run that has seen so many tokens."""
        return max((s for s in self.curriculum if s.start <= seen), key=lambda s: s.start)


BOOKS = (
    Stage(0, 128, 16, Mix(copying=0.35, language=0.35)),
    Stage(1.2e6, 128, 16, Mix(copying=0.10, language=0.60)),
    Stage(2.4e6, 256, 8, Mix(copying=0.05, language=0.70)),
    Stage(3.6e6, 512, 4, Mix(copying=0.04, language=0.76), crowd=128),
)
"""For the paper's tables: mostly language modelling, at last on 512 slots."""

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
    "books-landmark": Recipe(LandmarkSettings(block_size=32, recent_blocks=7), BOOKS),
    "books-plain": Recipe(None, BOOKS),
    "books-plain-2k": Recipe(None, (Stage(0, 2048, 2, Mix(copying=0.04, language=0.76)),)),
}
"""`cairn-4m` is the model that we ship; the books' pair is for the paper's tables; `books-plain-2k` goes on
from `books-plain` to a longer context, as the test bed of the training-free rules."""
