"""The ways to read that `bench.recall` compares: what is set, and how a budget of blocks becomes a setting.

The first ones choose without looking, or only estimate; then come the published rules, then what is added to one. Block
size, recent blocks and the sink are the same for all, so at one budget they differ in what they choose alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine import EngineConfig

BLOCK, RECENT, SINKS = 16, 4, 1


@dataclass(frozen=True)
class Way:
    """One line of the table.

    Attributes:
        name: as printed
        source: whose rule it is
        settings: what the engine is told, beside block size, recent blocks and sink
        spends: what the budget buys: `blocks` that each head chooses, `copies` of them in 4 bits, `both`, a block for
            four copies, a longer `window`, `nothing`, or `everything` whatever the budget
        block_size: where it differs from the others'
    """

    name: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    spends: str = "blocks"
    block_size: int = BLOCK

    def config(self, blocks: int, positions: str) -> EngineConfig:
        """The engine's settings for a budget of so many blocks of BLOCK positions."""
        per_block = BLOCK // self.block_size if self.block_size <= BLOCK else 1
        size = self.block_size
        window = blocks if self.spends == "window" else 0
        bought = blocks * BLOCK // size
        chosen = {"blocks": bought, "both": bought // 5, "everything": 4096}.get(self.spends, 0)
        copied = {"copies": bought, "both": bought - chosen}.get(self.spends, 0)
        outliers = int(self.settings.get("outlier_blocks", 0))
        settings: dict[str, Any] = {
            "kv_bytes": 1 << 30,
            "dtype": "float32",
            "block_size": size,
            "recent_blocks": (RECENT + window) * BLOCK // size if per_block else RECENT,
            "sink_blocks": max(1, SINKS * BLOCK // size),
            "positions": positions,
            **self.settings,
            "blocks_per_head": max(0, chosen - outliers),
            "copied_blocks": copied,
        }
        return EngineConfig(**settings)


EVERYTHING = "full attention"
REST: dict[str, Any] = {"estimate_rest": True}

WAYS = (
    Way(EVERYTHING, "all blocks", {"landmarks": "mean"}, spends="everything"),
    Way("window and sinks", "StreamingLLM", {"landmarks": "mean"}, spends="window"),
    Way("random blocks", "BigBird", {"landmarks": "random"}),
    Way("dilated window", "Longformer", {"landmarks": "dilated"}),
    Way("hashing", "Reformer", {"landmarks": "lsh"}),
    Way("pooled summaries", "Linformer-like", {"landmarks": "mean", **REST, "rest_slopes": False}, spends="nothing"),
    Way("block-mean gating", "Combiner", {"landmarks": "combiner"}),
    Way("random features of the rest", "Performer", {"landmarks": "performer", **REST, "rest_slopes": False}),
    Way("every key", "Memorizing Transformer", {"landmarks": "mean"}, block_size=2),
    Way("mean", "MoBA", {"landmarks": "mean"}),
    Way("box", "Quest", {"landmarks": "box"}),
    Way("box-mean", "ArkVale", {"landmarks": "box-mean"}),
    Way("moments", "ours", {"landmarks": "moments"}),
    Way("two means", "LServe", {"landmarks": "mean", "landmarks_per_block": 2}),
    Way("two clusters", "RetroInfer's idea", {"landmarks": "clusters", "landmarks_per_block": 2}),
    Way("box, outliers", "+ ShadowKV", {"landmarks": "box", "outlier_blocks": 1}),
    Way("box-mean, dense first layer", "+ Quest", {"landmarks": "box-mean", "dense_layers": 1}),
    Way("mean, rest without slopes", "+ RetroInfer", {"landmarks": "mean", **REST, "rest_slopes": False}),
    Way("moments, rest without slopes", "ours", {"landmarks": "moments", **REST, "rest_slopes": False}),
    Way("mean, rest", "ours", {"landmarks": "mean", **REST}),
    Way("box-mean, rest", "ours", {"landmarks": "box-mean", **REST}),
    Way("two clusters, rest", "ours", {"landmarks": "clusters", "landmarks_per_block": 2, **REST}),
    Way("moments, rest", "ours", {"landmarks": "moments", **REST}),
    Way("moments, rest, in fp32", "ours", {"landmarks": "moments", **REST, "landmark_dtype": "float32"}),
    Way("moments, rest, outliers", "ours", {"landmarks": "moments", **REST, "outlier_blocks": 1}),
    Way("moments, rest, top-p", "+ Twilight", {"landmarks": "moments", **REST, "retrieval_top_p": 0.95}),
    Way("moments of halves, rest", "ours", {"landmarks": "moments", "landmarks_per_block": 2, **REST}),
    Way("moments of quarters, rest", "ours", {"landmarks": "moments", "landmarks_per_block": 4, **REST}),
    Way("copies by box", "Quest, and copies", {"landmarks": "box"}, spends="copies"),
    Way("copies by box-mean", "ArkVale, and copies", {"landmarks": "box-mean"}, spends="copies"),
    Way("copies by moments, rest", "ours", {"landmarks": "moments", **REST}, spends="copies"),
    Way("blocks and copies by moments, rest", "ours", {"landmarks": "moments", **REST}, spends="both"),
    Way("box, blocks of 32", "Quest", {"landmarks": "box"}, block_size=32),
    Way("box-mean, blocks of 32", "ArkVale", {"landmarks": "box-mean"}, block_size=32),
    Way("moments, rest, blocks of 32", "ours", {"landmarks": "moments", **REST}, block_size=32),
    Way("moments of quarters, rest, blocks of 32", "ours",
        {"landmarks": "moments", "landmarks_per_block": 4, **REST}, block_size=32),
)  # fmt: skip
