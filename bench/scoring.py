"""Losses of a text's tokens: the plain model in sliding windows, the landmark model on the engine's cache.

Every scorer takes text tokens and returns, for each but the first, minus the logarithm of its probability given the
tokens before it. So scorers compare token by token. Knows no segment, no table and no kNN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from cache import BlockStore, DeviceTier, Session
from engine import (
    EngineConfig,
    ModelRunner,
    PaperAttention,
    RetrievalSettings,
    Span,
    Step,
    choose_attention,
    index_shapes,
    load_model,
)
from engine.attention import Attention, SharedAttention, Sharing
from engine.step import with_landmarks

BATCH = 8
"""Windows that go through the plain model together."""
LOGIT_ROWS = 2048
"""Rows of logits that are in memory at a time."""


class Scorer(Protocol):
    """See the module."""

    def losses(self, tokens: list[int]) -> Tensor:
        """Losses (len(tokens) - 1,) in nats."""
        ...


class PlainScorer:
    """An ordinary causal model in windows of its trained length, or on the whole text at once.

    Args:
        folder: of the model
        window: tokens that go in together; None takes the whole text
        stride: so many tokens the window moves on; a token is scored where the fewest, but at least
            window - stride + 1, tokens stand before it
    """

    def __init__(self, folder: str, window: int | None, stride: int) -> None:
        logging.disable_progress_bar()  # rows are printed as they come
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        self._window, self.stride = window, stride

    def losses(self, tokens: list[int]) -> Tensor:
        return self.state_losses(self.states(tokens), tokens)

    @torch.inference_mode()
    def states(self, tokens: list[int]) -> Tensor:
        """Final hidden states (len(tokens) - 1, width), each of which predicts the next token."""
        count = len(tokens) - 1
        window = min(self._window or count, count)
        starts = self.starts(count)
        padded = torch.tensor(tokens[:count] + [0] * (starts[-1] + window - count))
        states = torch.empty(len(padded), self._model.config.hidden_size)
        for first in range(0, len(starts), BATCH):
            some = starts[first : first + BATCH]
            batch = torch.stack([padded[start : start + window] for start in some])  # (windows, window)
            for start, row in zip(some, self._model.model(batch, use_cache=False).last_hidden_state, strict=True):
                fresh = window - self.stride if start else 0
                states[start + fresh : start + window] = row[fresh:]
        return states[:count]

    def starts(self, count: int) -> list[int]:
        """Where the windows over `count` states begin."""
        beyond = max(0, count - (self._window or count))
        return [self.stride * i for i in range(-(-beyond // self.stride) + 1)]

    @torch.inference_mode()
    def state_losses(self, states: Tensor, tokens: list[int]) -> Tensor:
        """Losses (states,) of the tokens that follow."""
        targets = torch.tensor(tokens[1:])
        pieces = range(0, len(states), LOGIT_ROWS)
        cut = [slice(i, i + LOGIT_ROWS) for i in pieces]
        return torch.cat([surprise(self._model.lm_head(states[piece]), targets[piece]) for piece in cut])


@dataclass(frozen=True)
class Reading:
    """How the landmark model reads what lies behind.

    Attributes:
        blocks_per_head: far blocks that each head fetches for each token; 0 reads the local window (and the sink) only
        sharing: who must agree on them
        paper: in the paper's own cutting instead of the served one
    """

    blocks_per_head: int
    sharing: Sharing = Sharing()  # noqa: RUF009 - frozen
    paper: bool = False


class LandmarkScorer:
    """A model with trained landmarks, on a session of its own for each text.

    Args:
        folder: of the model
        reading: what it fetches
        context: slots of the rows that it was trained on, which cut the paper's chunks
    """

    def __init__(self, folder: str, reading: Reading, context: int) -> None:
        config = EngineConfig(dtype="float32", landmark_dtype="float32")  # the choice is the paper's to the last bit
        self._model = load_model(folder, "float32")
        if self._model.landmarks is None:
            raise SystemExit(f"{folder} has no trained landmarks; give the model of the recipe books-landmark")
        self._landmark = self._model.landmarks.token_id
        self._layout, self._settings = config.layout(self._model), config.retrieval(self._model)
        self._fetch = reading.blocks_per_head
        self._chunk = chunk_blocks(self._settings, reading, context, self._layout.block_size)
        self._runner = ModelRunner(self._model, self._attention(reading))

    def _attention(self, reading: Reading) -> Attention:
        """The fastest implementation of what is asked."""
        model, layout, sharing = self._model, self._layout, reading.sharing
        if reading.paper:
            settings = RetrievalSettings("trained", reading.blocks_per_head, 0, 0, "bounded")
            shared = {"shared_selection": sharing.tokens, "shared_heads": sharing.heads}
            return PaperAttention(model.layers, layout, settings, **shared)
        if sharing != Sharing():
            return SharedAttention(model.layers, layout, self._settings, sharing)
        return choose_attention(model, self._settings, layout)

    def losses(self, tokens: list[int]) -> Tensor:
        layout = self._layout
        store = BlockStore(DeviceTier(layout, layout.block_bytes * layout.blocks(len(tokens))))
        session = Session("text", store, index_shapes(self._model, self._settings, layout))
        session.append(tokens)
        step = self._chunk * layout.text_per_block
        ends = [*range(step, len(tokens) - 1, step), len(tokens) - 1]
        return torch.cat([self._advance(session, tokens, end) for end in ends])

    def _advance(self, session: Session, tokens: list[int], end: int) -> Tensor:
        """Read on up to text token `end`; losses of the tokens that follow those read."""
        start = session.computed
        session.reserve(end)
        ids = with_landmarks(tokens[start:end], start, self._landmark, self._layout)
        span = Span(session, start, end, ids, self._fetch)
        logits = self._runner.run(Step([span]), predicting(ids, self._landmark))
        return surprise(logits, torch.tensor(tokens[start + 1 : end + 1]))


def chunk_blocks(settings: RetrievalSettings, reading: Reading, context: int, block_size: int) -> int:
    """Blocks of a chunk. In the paper's cutting, `context - context mod b - (k + 1) b` slots; in ours, where it matters
    only for a shared choice, as many as are always read."""
    if reading.paper:
        return max(1, context // block_size - reading.blocks_per_head - 1)
    return max(1, settings.recent_blocks)


def predicting(ids: list[int], landmark: int) -> list[int]:
    """Rows that predict text: a landmark stands in for the text token before it."""
    return [i for i, _ in enumerate(ids) if i + 1 == len(ids) or ids[i + 1] != landmark]


def surprise(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the log-probability (rows,) of targets (rows,) under logits (rows, vocabulary)."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
