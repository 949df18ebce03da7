"""Write a trained model as an ordinary transformers folder whose config tells its landmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast


def export(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    landmarks: dict[str, int] | None,
) -> None:
    """Save weights, tokenizer and config of a model of ours, whose special tokens are the tokenizer's.

    Args:
        landmarks: the token and its geometry, which the engine reads from `config.json`; None for a plain model
    """
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.bos_token_id = None
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = None
    write(folder, model, tokenizer, landmarks)


def write(folder: Path, model: PreTrainedModel, tokenizer: Any, landmarks: dict[str, int] | None) -> None:
    """Save a model as `export` does, with the special tokens that it came with."""
    if landmarks is not None:
        model.config.landmarks = landmarks
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which a server under another user could not read
