"""What the engine asks of an attention implementation, and the settings that all of them obey."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cache import BEGINNING, PAIR, RULES, Gathering, IndexShape, LandmarkRule, expected_largest
from engine.rotation import Rotation
from engine.step import Step
from engine.temperature import Temperature


@dataclass(frozen=True)
class LayerGeometry:
    """Facts of one attention layer.

    Attributes:
        rotation: its rotary positions
        window: a query sees only this many latest positions, itself included; None sees all
        void: a learned score of each query head (query_heads,) fp32 for a key that is not there: what the softmax
            gives it is attention to nothing, as GPT-OSS has it; None for a plain softmax
        temperature: what queries are multiplied with, by their position
    """

    rotation: Rotation
    window: int | None = None
    void: Tensor | None = None
    temperature: Temperature | None = None


@dataclass(frozen=True)
class RetrievalSettings:
    """Which blocks a query reads and where they stand.

    Attributes:
        landmarks: name of the landmark rule
        blocks_per_head: far blocks that each KV head fetches per position, if the request does not say
        recent_blocks: blocks before the query's own that are always read, at their true distance
        sink_blocks: first blocks of the session that are always read
        landmarks_per_block: a block's landmarks; its score is that of all its parts together
        copied_blocks: so many of the next best far blocks are read from their copies in `landmark_dtype`
        outlier_blocks: further far blocks that are always read, those that their landmarks represent worst
        top_p: fetch only until this share of the attention is covered, as the landmarks estimate it; None
            fetches `blocks_per_head` always
        least_blocks: with `top_p`, fetch at least so many
        estimate_rest: what is not read still counts, as its landmarks and mean values estimate it
        rest_slopes: with it, mean values turn with the query
        own_values: for a query with more far blocks than so many, one mean value stands for each section of blocks that
            are not read, and blocks are chosen by what they weigh; None never
        tiled_at: of more far blocks than so many, whose landmarks were trained, only the likeliest tiles of landmarks
            that are alike are looked at, if each KV head has one query head; None never
        landmark_dtype: in which landmarks and what else is kept of a block are stored: `int4` or `float32`
        dense_layers: in the first layers every block is read
        positions: `absolute`: far blocks stand at their true distance; `bounded`: all of them stand just
            before the recent blocks, so that no distance exceeds (recent_blocks + 2) * block_size
    """

    landmarks: str
    blocks_per_head: int
    recent_blocks: int
    sink_blocks: int
    positions: str
    landmarks_per_block: int = 1
    copied_blocks: int = 0
    outlier_blocks: int = 0
    top_p: float | None = None
    least_blocks: int = 1
    estimate_rest: bool = False
    rest_slopes: bool = False
    landmark_dtype: str = "float32"
    dense_layers: int = 0
    own_values: int | None = None
    tiled_at: int | None = None

    @property
    def rule(self) -> LandmarkRule:
        return RULES[self.landmarks]

    @property
    def judges_by_slopes(self) -> bool:
        """A block's slope helps to tell what it weighs."""
        sloped = self.estimate_rest and self.rest_slopes and self.landmarks_per_block == 1
        return sloped and self.rule.knows_slopes

    @property
    def few_blocks(self) -> int | None:
        """Up to so many far blocks each stands for itself; of more, which tell what is usual, pairs are looked at."""
        return None if self.own_values is None else max(self.own_values, BEGINNING - 1)

    def tiles_beyond(self, groups: int) -> int | None:
        """Of more far blocks than so many tiles are looked at, with such query heads per KV head; None never."""
        return self.tiled_at if self.centred and groups == 1 else None

    @property
    def centred(self) -> bool:
        """What landmarks differ in is kept: trained ones are keys of one token."""
        return self.gated and self.landmark_dtype == "int4"

    @staticmethod
    def reaches(block_size: int) -> tuple[float, float]:
        """So many deviations above their mean the largest of a block's keys is expected, and of a pair's."""
        return expected_largest(block_size), expected_largest(PAIR * block_size)

    @property
    def gated(self) -> bool:
        """Landmarks are tokens that gate their block."""
        return self.landmarks == "trained"

    def index_shape(self, head_dim: int, block_size: int) -> IndexShape:
        """What is kept of a block in a layer that chooses."""
        return IndexShape(
            widths=self.rule.widths(head_dim),
            landmarks=self.landmarks_per_block,
            values=head_dim if self.estimate_rest else 0,
            slopes=self.estimate_rest and self.rest_slopes,
            outlying=self.outlier_blocks > 0,
            copies=(block_size, head_dim) if self.copied_blocks else (0, 0),
            rounded=self.landmark_dtype == "int4",
            centred=self.centred,
            tiled=self.centred and self.tiled_at is not None,
            gathering=self._gathering(head_dim),
        )

    def _gathering(self, head_dim: int) -> Gathering | None:
        if self.few_blocks is None:
            return None
        return Gathering(self.rule.usual, self.rule.gather, self.rule.pair_widths(head_dim), self.few_blocks)

    @property
    def indexing_kernels(self) -> list[str]:
        """What an index on a CPU calls, by name."""
        exact, gathers = self.landmark_dtype != "int4", self.own_values is not None
        called = [] if exact else ["four_bit", "rounding"]
        return [*called, *["gathering"] * gathers, *["likeness"] * self.centred]

    @property
    def bounded(self) -> bool:
        return self.positions == "bounded"


Jobs = NDArray[np.int64]


@dataclass(frozen=True)
class Listed:
    """What attention of several layers does, for who does it with all that lies between.

    Attributes:
        jobs: of each layer (jobs, JOB_WORDS), in the order in which layers were given; if it is the list of an earlier
            step nothing in it has changed
        done: to be called when all of them are done
    """

    jobs: list[Jobs]
    done: Callable[[], None]


class Attention(Protocol):
    """Writes the new keys and values of a step into its sessions and attends to what each position may read."""

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step, scaling: float, softcap: float | None
    ) -> Tensor:
        """Attention of one layer.

        Args:
            q: unrotated queries (positions, query_heads, head_dim), the step's spans one after the other
            k, v: unrotated keys and values (positions, kv_heads, head_dim)

        Returns:
            (positions, query_heads, head_dim)
        """
        ...

    def listed(
        self, scalings: Mapping[int, float], q: Tensor, k: Tensor, v: Tensor, output: Tensor, step: Step
    ) -> Listed | None:
        """What layers will do with what will lie in these tensors; None for a step that goes layer by layer.

        Args:
            scalings: of each layer
            q, k, v, output: as a call takes and gives them, but on a CPU, contiguous, all fp32 or all bf16; the layers
                use them one after the other
        """
        ...
