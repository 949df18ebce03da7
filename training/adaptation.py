"""A plain model made ready to learn landmarks: checks, the landmark's token, LoRA, and writing the result.

Knows no data and no optimiser.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from engine import LayerGeometry, ModelError, load_model
from training import blockwise
from training.attention import LandmarkSettings
from training.export import write
from training.reader import Blockwise
from training.records import InputError
from training.tokenizer import LANDMARK


@dataclass
class Adaptation:
    """A model that is being fine-tuned; its weights are fp32.

    Attributes:
        model: the transformers model, or peft's around it
        tokenizer: transformers', with the landmark as a special token
        token_id: of the landmark
        dtype: of the weights that it came with, and that it is saved in
        lora: rank; 0 trains all weights
    """

    model: Any
    tokenizer: Any
    layers: list[LayerGeometry]
    kv_heads: int
    settings: LandmarkSettings
    token_id: int
    dtype: torch.dtype
    lora: int

    def slots(self, text: Tensor) -> Tensor:
        """Text tokens (rows, text) with a landmark after each `block_size - 1` of them: (rows, slots)."""
        return self._closed(text, self.token_id)

    def slot_weights(self, weights: Tensor) -> Tensor:
        """Loss weights (rows, text) of text tokens as those of slots: nobody learns to say the landmark."""
        return self._closed(weights, 0)

    def _closed(self, x: Tensor, last: float) -> Tensor:
        blocks = x.unflatten(1, (-1, self.settings.block_size - 1))
        return torch.nn.functional.pad(blocks, (0, 1), value=last).flatten(1)

    def logits(self, slots: Tensor, crowd: int = 0) -> Tensor:
        """Logits (rows, slots, vocabulary) of what will be served."""
        plan = Blockwise(self.layers, self.kv_heads, self.settings, crowd)
        return self.model(slots, position_ids=torch.zeros_like(slots), use_cache=False, blockwise=plan).logits

    def plain_logits(self, tokens: Tensor) -> Tensor:
        """Logits (rows, tokens, vocabulary) of full attention over text tokens without landmarks."""
        self.model.set_attn_implementation("eager")
        logits = self.model(tokens, use_cache=False).logits
        self.model.set_attn_implementation(blockwise.NAME)
        logits[..., self.token_id] = -torch.inf  # the model as it came has no such token
        return logits

    def trained(self) -> dict[str, Tensor]:
        """Parameters that learn, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def tables(self) -> list[Tensor]:
        """Embedding, and the head if it has weights of its own."""
        modules = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        return [p for module in modules if module is not None for p in module.parameters()]

    def save(self, folder: Path) -> None:
        """An ordinary transformers folder, LoRA merged; nothing can be trained afterwards."""
        if self.lora:
            self.model = self.model.merge_and_unload()
        landmarks = {"token_id": self.token_id, **asdict(self.settings)}
        write(folder, self.model.to(self.dtype), self.tokenizer, landmarks)


def adapt(base: str, settings: LandmarkSettings, lora: int, seed: int) -> Adaptation:
    """Load a model and give it a landmark; raises InputError."""
    torch.manual_seed(seed)  # LoRA starts from random numbers
    try:
        loaded = load_model(base, "float32")
    except ModelError as error:
        raise InputError(str(error)) from error
    if loaded.landmarks is not None:
        raise InputError(
            f"{base} already has trained landmarks, in blocks of {loaded.landmarks.block_size}; give a plain model"
        )
    check_positions(settings, loaded.max_positions)
    tokenizer = load_tokenizer(base)
    token_id = add_landmark(loaded.model, tokenizer)
    blockwise.register()
    loaded.model.set_attn_implementation(blockwise.NAME)
    dtype = AutoConfig.from_pretrained(base).dtype or torch.float32
    model = with_lora(loaded.model, token_id, lora) if lora else loaded.model
    return Adaptation(model, tokenizer, loaded.layers, loaded.kv_heads, settings, token_id, dtype, lora)


def check_positions(settings: LandmarkSettings, trained: int) -> None:
    """No distance may be one that the model never saw."""
    farthest = (settings.recent_blocks + 2) * settings.block_size
    if farthest > trained:
        raise InputError(
            f"{settings.recent_blocks} recent blocks of {settings.block_size} reach {farthest} positions back, but the "
            f"model knows {trained}; take fewer --recent-blocks or a smaller --block-size"
        )


def load_tokenizer(base: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{base} has no tokenizer that can be read ({error}); put tokenizer.json beside its weights"
        ) from error
    if not tokenizer.is_fast or not len(tokenizer):
        raise InputError(f"{base} has no fast tokenizer; put tokenizer.json beside its weights")
    return tokenizer


def add_landmark(model: PreTrainedModel, tokenizer: Any) -> int:
    """The landmark's token id. Tables grow only if they lack its row; the row starts as the mean of the others."""
    tokenizer.add_tokens([LANDMARK], special_tokens=True)
    token_id = int(tokenizer.convert_tokens_to_ids(LANDMARK))
    rows = model.get_input_embeddings().weight.shape[0]
    if token_id >= rows:
        model.resize_token_embeddings(token_id + 1, mean_resizing=False)
    head = model.get_output_embeddings()
    tables = {id(m.weight): m.weight for m in (model.get_input_embeddings(), head) if m is not None}
    known = min(rows, len(tokenizer) - 1)  # tables may be padded with rows that mean nothing
    with torch.no_grad():
        for table in tables.values():
            table[token_id] = table[:known].mean(0)
        if head is not None and getattr(head, "bias", None) is not None:
            head.bias[token_id] = head.bias[:known].mean()
    return token_id


def with_lora(model: PreTrainedModel, token_id: int, rank: int) -> Any:
    """Low-rank updates of all linear layers, and the landmark's own embedding."""
    from peft import LoraConfig, get_peft_model  # seconds of import, needed only here

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        trainable_token_indices=[token_id],
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers a question by its old name, and knows experts that are no linear layers here
        warnings.simplefilter("ignore")
        return get_peft_model(model, config)
