"""`python -m bench.conformance DIR…`: the paper's own inference, compared with logits from the authors' code.

Each folder holds `case.json`, a Llama (`config.json`, `model.safetensors`) and `expected.safetensors`
(`token_ids` with landmarks in place, `logits` for every position). Exits non-zero if a case is out of tolerance.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.report import write_json
from cache import BlockStore, CacheLayout, DeviceTier, IndexShape, Session
from engine import LoadedModel, ModelRunner, PaperAttention, RetrievalSettings, Span, Step, load_model

CLOSE, SHARE_CLOSE, MEDIAN = 1e-3, 0.99, 1e-4


@dataclass(frozen=True)
class Verdict:
    """Differences of one case, over the positions: largest difference of each position's logits."""

    case: str
    positions: int
    maximum: float
    median: float
    share_close: float

    @property
    def passed(self) -> bool:
        return self.share_close >= SHARE_CLOSE and self.median <= MEDIAN


def compare(folder: Path) -> Verdict:
    """Run one case."""
    case = json.loads((folder / "case.json").read_text())
    expected = load_file(folder / "expected.safetensors")
    logits = paper_logits(load_model(str(folder), "float32"), case, expected["token_ids"].flatten().tolist())
    differences = (logits - expected["logits"].view_as(logits)).abs().amax(-1)
    return Verdict(
        folder.name,
        len(differences),
        float(differences.max()),
        float(differences.median()),
        float((differences <= CLOSE).float().mean()),
    )


def paper_logits(model: LoadedModel, case: dict[str, Any], token_ids: list[int]) -> Tensor:
    """Logits (positions, vocabulary): the prompt in chunks, the rest one position at a time."""
    # The case's tokens already hold the landmarks, so to the cache they are all text.
    layout = CacheLayout(len(model.layers), model.kv_heads, model.head_dim, case["block_length"])
    settings = RetrievalSettings("trained", case["blocks_per_head"], 0, 0, "bounded")
    shared = case["selection"] == "chunk"
    attention = PaperAttention(model.layers, layout, settings, shared_selection=shared)
    runner = ModelRunner(model, attention)
    store = BlockStore(DeviceTier(layout, layout.block_bytes * layout.blocks(len(token_ids))))
    session = Session("case", store, [IndexShape((model.head_dim,))] * layout.layers)
    session.append(token_ids)
    logits = []
    for start, end in cuts(case["prompt_length"], case["prefill_chunk"], len(token_ids)):
        session.reserve(end)
        span = Span(session, start, end, token_ids[start:end], case["blocks_per_head"])
        logits.append(runner.run(Step([span])))
    return torch.cat(logits)


def cuts(prompt: int, chunk: int, total: int) -> list[tuple[int, int]]:
    """The prompt's chunks, then single positions."""
    chunks = [(start, min(start + chunk, prompt)) for start in range(0, prompt, chunk)]
    return chunks + [(at, at + 1) for at in range(prompt, total)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    verdicts = [compare(folder) for folder in options.folders]
    print(f"{'case':<16}{'positions':>10}{'maximum':>12}{'median':>12}{'within 1e-3':>13}")
    for v in verdicts:
        print(f"{v.case:<16}{v.positions:>10}{v.maximum:>12.1e}{v.median:>12.1e}{v.share_close:>13.2%}")
    write_json(options.json, {"rows": [asdict(v) | {"passed": v.passed} for v in verdicts]})
    return 0 if all(v.passed for v in verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
