"""Plain models to fine-tune: a tokenizer without a landmark, and a random model of a family that fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.models import save_model
from training.tokenizer import CHAT_TEMPLATE

SPECIAL = ["<|begin|>", "<|user|>", "<|assistant|>", "<|end|>"]


def plain_tokenizer(text: str, *, begins: bool = False, chat: bool = True) -> Any:
    """Byte-level BPE of 320 entries; `begins` puts a token before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text[:20_000]], trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[1:3],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE if chat else None
    return fast


def save_base(folder: Path, text: str, family: str = "llama", **changes: Any) -> Path:
    """A random plain model with its tokenizer; `vocab_size` is just what the tokenizer has, if nothing is said."""
    tokenizer = plain_tokenizer(text)
    save_model(family, folder, **{"vocab_size": len(tokenizer), "num_hidden_layers": 3, **changes})
    tokenizer.save_pretrained(folder)
    return folder
