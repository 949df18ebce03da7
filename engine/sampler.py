"""`Sampler`: one row of logits -> one token. Greedy, or drawn with the request's own generator."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import ConstraintFailed, EngineError
from engine.requests import Scored, Token
from engine.sampling import SamplingParams
from engine.sequence import Sequence

GREEDY_BELOW = 1e-5
"""A temperature below this is taken for 0: by a smaller one logits would be divided to infinity."""


class Sampler:
    """Draws the tokens of one choice.

    Args:
        params: the request's
        index: the choice's number; with a seed, choices draw from seed, seed + 1, …
        hidden: token ids that are never drawn (landmarks)
    """

    def __init__(self, params: SamplingParams, index: int, hidden: list[int]) -> None:
        self._params = params
        self._index = index
        self._hidden = hidden
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed((params.seed + index) % (1 << 63))

    def sample(self, logits: Tensor, prompt: list[int], generated: list[int], allowed: bytes | None = None) -> Token:
        """The next token from logits (vocabulary,) fp32.

        Args:
            prompt, generated: the tokens so far; only penalties look at them
            allowed: the tokens that may come, as `Constraint` tells; everything that shifts or narrows the draw
                works on these alone, log-probabilities are told over all
        """
        params = self._params
        logits = logits.clone()
        logits[self._hidden] = -torch.inf
        possible = logits if allowed is None else _only(logits, allowed)
        adjusted = self._penalise(self._bias(possible), prompt, generated)
        if adjusted.max().isnan():
            raise EngineError("the model's logits are not numbers")
        if adjusted.max() == -torch.inf:
            raise ConstraintFailed("no token of the vocabulary can go on with this answer")
        if params.temperature < GREEDY_BELOW:
            token = int(adjusted.argmax())
        else:
            shares = self._narrow((adjusted / params.temperature).softmax(-1))
            token = int(torch.multinomial(shares, 1, generator=self._generator))
        return self._token(token, logits)

    def _bias(self, logits: Tensor) -> Tensor:
        if self._params.logit_bias:
            logits = logits.clone()
            tokens = torch.tensor(list(self._params.logit_bias))
            logits[tokens] += torch.tensor(list(self._params.logit_bias.values()))
        return logits

    def _penalise(self, logits: Tensor, prompt: list[int], generated: list[int]) -> Tensor:
        """OpenAI's presence and frequency penalties, and CTRL's repetition penalty (arXiv 1909.05858)."""
        params = self._params
        if params.repetition_penalty != 1.0:
            seen = torch.tensor(list({*prompt, *generated}))
            found = logits[seen]
            logits = logits.index_copy(
                0, seen, torch.where(found > 0, found / params.repetition_penalty, found * params.repetition_penalty)
            )
        if generated and (params.presence_penalty or params.frequency_penalty):
            counts = torch.bincount(torch.tensor(generated), minlength=len(logits)).float()
            logits = logits - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)
        return logits

    def _narrow(self, shares: Tensor) -> Tensor:
        """Zero what top-k, top-p and min-p leave out; shares (vocabulary,) need not sum to 1 after."""
        params = self._params
        if params.min_p:
            shares = shares.masked_fill(shares < params.min_p * shares.max(), 0.0)
        if 0 < params.top_k < len(shares):
            shares = shares.masked_fill(shares < shares.topk(params.top_k).values[-1], 0.0)
        if params.top_p < 1.0:
            ordered, tokens = (shares / shares.sum()).sort(descending=True)
            beyond = ordered.cumsum(0) - ordered >= params.top_p
            beyond[0] = False  # the first token always stays: a tiny top_p is 0 in 32 bits
            shares = shares.index_fill(0, tokens[beyond], 0.0)
        return shares

    def _token(self, token: int, logits: Tensor) -> Token:
        """The token with its log-probability under the model: before constraint, penalties and temperature."""
        if self._params.logprobs is None:
            return Token(self._index, token)
        return told(self._index, token, logits, self._params.logprobs)


def told(index: int, token: int, logits: Tensor, alternatives: int) -> Token:
    """A token with its log-probability, from logits (vocabulary,), and so many of the most likely ones."""
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(alternatives)
    pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Token(index, token, float(logprobs[token]), pairs)


def score(sequence: Sequence, logits: Tensor, hidden: list[int]) -> Scored:
    """The tokens of the prompt that are told by logits (tokens computed in this step, vocabulary)."""
    session, alternatives = sequence.session, sequence.generation.sampling.prompt_logprobs
    assert alternatives is not None
    start, first = session.computed - len(logits), sequence.scored  # what was lost and is computed again was told
    sequence.scored = max(first, session.computed)
    logits = logits.index_fill(1, torch.tensor(hidden, dtype=torch.int64, device=logits.device), -torch.inf)
    rows = zip(session.tokens[first + 1 : sequence.scored + 1], logits[first - start :], strict=False)
    scored = [told(0, token, row, alternatives) for token, row in rows]
    return Scored(tuple(scored if first else [Token(0, session.tokens[0]), *scored]))


def _only(logits: Tensor, allowed: bytes) -> Tensor:
    """Logits (vocabulary,) with minus infinity where a token may not come."""
    possible = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    given = torch.frombuffer(bytearray(allowed[: len(logits)]), dtype=torch.uint8)
    possible[: len(given)] = (given != 0).to(logits.device)
    return logits.masked_fill(~possible, -torch.inf)
