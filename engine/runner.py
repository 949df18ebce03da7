"""`ModelRunner`: a step goes through the model once and logits come out. Knows no queue and no sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.attention import Attention
from engine.huggingface import LoadedModel
from engine.step import Step


class ModelRunner:
    """Runs steps; the attention writes into the sessions of the spans and reads from them."""

    def __init__(self, model: LoadedModel, attention: Attention) -> None:
        self._model, self._device = model.model, model.model.device
        self._attention = attention

    @torch.inference_mode()
    def run(self, step: Step, rows: list[int] | None = None) -> Tensor:
        """Logits (len(rows), vocabulary) fp32 at these rows of the flattened step, on the CPU; None gives all rows.

        A row at a landmark predicts the text token after it. Tokens are drawn on the CPU, wherever the model runs.
        """
        try:
            return self._run(step, rows)
        finally:
            step.spans[0].session.store.let_go()

    def _run(self, step: Step, rows: list[int] | None) -> Tensor:
        ids = [token for span in step.spans for token in span.token_ids]
        tokens = torch.tensor([ids], device=self._device)
        everywhere = rows is None or rows == list(range(len(ids)))
        output = self._model(
            input_ids=tokens,
            position_ids=torch.zeros_like(tokens),
            use_cache=False,
            logits_to_keep=0 if everywhere else torch.tensor(rows, device=tokens.device),
            cairn_attention=self._attention,
            cairn_step=step,
        )
        for span in step.spans:
            span.session.advance(span.end)
        logits = output.logits[0].float().cpu()
        assert isinstance(logits, Tensor)
        return logits
