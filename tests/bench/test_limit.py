"""The floor counts what a token reads."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from bench.limit import cache_bytes, weight_bytes
from bench.noise import Cairn
from engine import EngineConfig
from engine.huggingface import describe, register
from tests.models import save_model


def test_the_floor_counts_weights_index_and_blocks(tmp_path: Path) -> None:
    register()
    model = AutoModelForCausalLM.from_pretrained(save_model("llama", tmp_path / "model"))
    loaded = describe("tiny", model)
    embedded = model.get_input_embeddings().weight.numel()
    assert weight_bytes(loaded) == 4 * (sum(weight.numel() for weight in model.parameters()) - embedded)
    config = EngineConfig(block_size=16, blocks_per_head=4, recent_blocks=2, sink_blocks=1, dtype="float32")
    with torch.inference_mode():
        cairn = Cairn(loaded, config, 16 * 30, 4)
    layers, heads, dim = cairn.layout.layers, cairn.layout.kv_heads, cairn.layout.head_dim
    index, blocks = cache_bytes(cairn)
    assert index == layers * heads * 30 * 5 * (dim // 2 + 4), "five vectors of 4 bits, each with a scale"
    assert blocks == layers * heads * (4 + 2 + 1 + 1) * 2 * 16 * dim * 4, "keys and values of 8 blocks in fp32"
