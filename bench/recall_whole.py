"""Full attention as transformers computes it, for `bench.recall` to compare with."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


class Whole:
    """A plain model that reads everything, at true positions: an oracle that has nothing of ours, and quick."""

    def __init__(self, path: str) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()

    @torch.no_grad()
    def logits(self, tokens: list[int], last: int) -> Tensor:
        """Logits (last, vocabulary) at the last positions."""
        logits: Tensor = self._model(torch.tensor([tokens]), use_cache=False, logits_to_keep=last).logits
        return logits[0]

    def answered(self, text: list[int], questions: list[tuple[list[int], list[int]]]) -> list[bool]:
        """For each token of the answers whether it is the likeliest one after all before it."""
        results = []
        for question, answer in questions:
            said = self.logits(text + question + answer, len(answer) + 1)[:-1].argmax(-1).tolist()
            results += [token == true for token, true in zip(said, answer, strict=True)]
        return results


@functools.cache
def whole_model(model: str) -> Whole:
    """Once in each process."""
    return Whole(model)
