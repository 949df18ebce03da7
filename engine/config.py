"""How an engine is set up: the operator's choices, completed by what the model says."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from cache import RULES, CacheLayout
from engine.attention import RetrievalSettings
from engine.errors import InvalidParameter
from engine.huggingface import Landmarks, LoadedModel
from engine.requests import Quota

OWN_VALUES = 1024
"""Far blocks: up to 16,000 tokens of the usual ones."""
TILED_AT = 8192
"""Blocks whose trained landmarks are all looked at: behind more two stretches are whole."""
DEFAULT_RULE = "moments"
"""With its estimate of the rest, the nearest to full attention for its bytes (docs/retrieval.md)."""
LOWEST = {
    "max_session_tokens": 1, "kv_bytes": 1, "host_kv_bytes": 1, "disk_kv_bytes": 1, "tenant_tokens": 1,
    "max_running": 1, "max_waiting": 0, "step_tokens": 1, "threads": 1,
    "block_size": 2, "blocks_per_head": 0, "recent_blocks": 0, "sink_blocks": 0, "landmarks_per_block": 1,
    "copied_blocks": 0, "outlier_blocks": 0, "least_blocks": 0, "dense_layers": 0,
    "own_values": 0,
}  # fmt: skip


@dataclass(frozen=True)
class EngineConfig:
    """The operator's choices; None leaves one to the model or to the machine.

    Attributes:
        max_session_tokens: text tokens that a session may hold; None is the model's trained length with absolute
            positions and what the cache holds with bounded ones
        kv_bytes: memory for keys, values and landmarks where attention reads: on a CPU host memory, of which None
            takes half of what is free, on a GPU its own, of which None takes three quarters
        host_kv_bytes: host memory below a GPU's; None takes half of what is free. On a CPU the same as `kv_bytes`;
            with both there is a window of `kv_bytes` over it, as on a GPU
        disk_kv_path: folder in which sessions outlive the server; None keeps them in memory alone
        disk_kv_bytes: for the files of blocks there; None takes half of what is free
        session_ttl: seconds without use after which a session is deleted, if it does not say itself; None never
        tenant_tokens: text tokens that all sessions of a tenant may hold together; None sets no limit
        max_running: requests that are computed together
        max_waiting: requests that may wait; one more is refused
        step_tokens: text tokens of one forward pass
        decode_share: what decoding requests keep of their tokens per second while a prompt is read
        landmarks: a landmark rule (cache/landmarks); None is the trained landmarks of the model, or `moments`
        block_size: positions of a block
        blocks_per_head: far blocks that each KV head fetches per position
        recent_blocks, sink_blocks: blocks that are always read
        landmarks_per_block: landmarks of a block
        copied_blocks: so many of the next best far blocks are read from copies in 4 bits
        outlier_blocks: further far blocks that are always read, those that their landmarks represent worst
        retrieval_top_p: fetch only until this share of the attention is covered, as the landmarks estimate it
        least_blocks: with `retrieval_top_p`, fetch at least so many
        estimate_rest: what is not read still counts, as its landmarks and mean values estimate it; None does so
            with the default rule
        rest_slopes: with it, mean values turn with the query; None lets them
        own_values: with `estimate_rest` and `rest_slopes`, up to so many far blocks are looked at one by one; of more,
            pairs first, and each section of eight has one mean value; None is OWN_VALUES where the rule can tell
        landmark_dtype: in which landmarks are kept, `int4` or `float32`; None is `int4` where the rule bears it
        dense_layers: in the first layers every block is read
        positions: `absolute` or `bounded`
        audit_rate: share of the tokens at which one layer and head is compared with exact attention
        dtype: of the weights, as transformers takes it
        weights: how linear layers keep them: `auto` as they are, `int8` in 8 bits with a scale for each row, on a CPU
        device: where model and cache lie: `cpu`, `cuda` or `cuda:1`; `auto` is a GPU if there is one
        prefix_cache: keep finished prompts for the next one with the same beginning
        threads: CPU threads of a forward pass; None leaves it to torch. Fewer than the cores are right where
            other work keeps some of them busy: a pass waits for its slowest thread
    """

    max_session_tokens: int | None = None
    kv_bytes: int | None = None
    host_kv_bytes: int | None = None
    disk_kv_path: str | None = None
    disk_kv_bytes: int | None = None
    session_ttl: float | None = None
    tenant_tokens: int | None = None
    max_running: int = 16
    max_waiting: int = 256
    step_tokens: int = 512
    decode_share: float = 0.75
    landmarks: str | None = None
    block_size: int | None = None
    blocks_per_head: int | None = None
    recent_blocks: int | None = None
    sink_blocks: int | None = None
    landmarks_per_block: int | None = None
    copied_blocks: int | None = None
    outlier_blocks: int | None = None
    retrieval_top_p: float | None = None
    least_blocks: int = 1
    estimate_rest: bool | None = None
    rest_slopes: bool | None = None
    own_values: int | None = None
    landmark_dtype: str | None = None
    dense_layers: int | None = None
    positions: str | None = None
    audit_rate: float = 0.0003
    dtype: str = "auto"
    weights: str = "auto"
    device: str = "auto"
    prefix_cache: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, low in LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InvalidParameter(name, f"must be at least {low}, not {value}")
        if self.retrieval_top_p is not None and not 0 < self.retrieval_top_p <= 1:
            raise InvalidParameter("retrieval_top_p", f"must lie above 0 and not above 1, not {self.retrieval_top_p}")
        if not 0.05 <= self.decode_share <= 0.95:  # beyond, prompts or answers would hardly move
            raise InvalidParameter("decode_share", f"must lie between 0.05 and 0.95, not {self.decode_share}")
        if not 0 <= self.audit_rate <= 1:
            raise InvalidParameter("audit_rate", f"must lie between 0 and 1, not {self.audit_rate}")
        if self.landmarks is not None and self.landmarks not in RULES:
            raise InvalidParameter("landmarks", f"must be one of {', '.join(RULES)}, not {self.landmarks!r}")
        if self.positions not in (None, "absolute", "bounded"):
            raise InvalidParameter("positions", f"must be absolute or bounded, not {self.positions!r}")
        if self.weights not in ("auto", "int8"):
            raise InvalidParameter("weights", f"must be auto or int8, not {self.weights!r}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise InvalidParameter("device", f"must be auto, cpu, cuda or cuda:0, cuda:1, …, not {self.device!r}")
        if self.landmark_dtype not in (None, "int4", "float32"):
            raise InvalidParameter("landmark_dtype", f"must be int4 or float32, not {self.landmark_dtype!r}")

    def quota(self, tenant: str) -> Quota:
        """What a tenant may keep, if nobody says otherwise."""
        return Quota(self.tenant_tokens)

    def retrieval(self, model: LoadedModel) -> RetrievalSettings:
        """What is read, for this model."""
        if model.landmarks is not None:
            return self._trained(model.landmarks)
        if self.landmarks == "trained":
            raise InvalidParameter("landmarks", f"{model.name} has no trained landmarks; use another rule")
        rule = self.landmarks or DEFAULT_RULE
        settings = RetrievalSettings(
            landmarks=rule,
            blocks_per_head=choose(self.blocks_per_head, 32),
            recent_blocks=choose(self.recent_blocks, 4),
            sink_blocks=choose(self.sink_blocks, 1),
            positions=self.positions or "absolute",
            landmarks_per_block=choose(self.landmarks_per_block, 1),
            copied_blocks=choose(self.copied_blocks, 0),
            outlier_blocks=choose(self.outlier_blocks, 0),
            top_p=self.retrieval_top_p,
            least_blocks=self.least_blocks,
            estimate_rest=self.landmarks is None if self.estimate_rest is None else self.estimate_rest,
            rest_slopes=self.rest_slopes is not False,
            landmark_dtype=self.landmark_dtype or ("int4" if RULES[rule].rounds else "float32"),
            dense_layers=choose(self.dense_layers, 0),
        )
        if self._gathers(settings):
            settings = replace(settings, own_values=choose(self.own_values, OWN_VALUES))
        elif self.own_values is not None:
            fit = ", ".join(name for name, rule in RULES.items() if rule.gathers)
            raise InvalidParameter(
                "own_values", f"needs estimate_rest, rest_slopes and one landmark a block of {fit}; leave it out"
            )
        self._check(settings, self._block_size)
        return settings

    @staticmethod
    def _gathers(settings: RetrievalSettings) -> bool:
        """Whether sections can stand for their blocks."""
        return settings.rule.gathers and settings.judges_by_slopes

    def _trained(self, trained: Landmarks) -> RetrievalSettings:
        """What is read by a model that was trained with landmarks."""
        self._refuse_for_trained()
        return RetrievalSettings(
            landmarks="trained",
            blocks_per_head=choose(self.blocks_per_head, trained.blocks_per_head),
            recent_blocks=trained.recent_blocks,
            sink_blocks=trained.sink_blocks,
            positions="bounded",
            top_p=self.retrieval_top_p,
            least_blocks=self.least_blocks,
            landmark_dtype=self.landmark_dtype or "int4",
            tiled_at=TILED_AT,
        )

    def _check(self, settings: RetrievalSettings, block_size: int) -> None:
        """Refuse settings that do not go together."""
        rule, landmarks = settings.rule, settings.landmarks_per_block
        if block_size % landmarks:
            raise InvalidParameter("landmarks_per_block", f"must divide the block size {block_size}, not {landmarks}")
        if settings.estimate_rest and not rule.estimates_mass:
            fit = ", ".join(name for name, rule in RULES.items() if rule.estimates_mass and name != "trained")
            raise InvalidParameter("estimate_rest", f"{rule.name} does not estimate a block's attention; use {fit}")
        if settings.landmark_dtype == "int4" and not rule.rounds:
            raise InvalidParameter("landmark_dtype", f"landmarks of {rule.name} do not bear rounding; use float32")
        if settings.copied_blocks and not rule.sees_content:
            raise InvalidParameter("copied_blocks", f"{rule.name} does not look at what stands in a block")
        if settings.top_p is not None and not rule.sees_content:
            raise InvalidParameter("retrieval_top_p", f"{rule.name} does not look at what stands in a block")

    def _refuse_for_trained(self) -> None:
        """The geometry of trained landmarks is part of the weights."""
        fixed = ("block_size", "recent_blocks", "sink_blocks", "landmarks_per_block", "outlier_blocks", "copied_blocks")
        for name in (*fixed, "estimate_rest", "rest_slopes", "dense_layers", "own_values"):
            if getattr(self, name) is not None:
                raise InvalidParameter(name, "is fixed by the model's training; leave it out")
        if self.landmarks not in (None, "trained") or self.positions == "absolute":
            raise InvalidParameter(
                "landmarks", "the model has trained landmarks with bounded positions; leave both out"
            )

    def layout(self, model: LoadedModel) -> CacheLayout:
        """Shapes of the cache, for this model."""
        return model.layout(model.landmarks.block_size if model.landmarks else self._block_size)

    @property
    def _block_size(self) -> int:
        return choose(self.block_size, 16)

    def disk_bytes(self, folder: Path, layout: CacheLayout) -> int:
        """Bytes for the files of blocks; raises InvalidParameter if not even two blocks fit."""
        inside = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        held = sum(512 * path.stat().st_blocks for path in folder.rglob("*.kv"))  # of the half that was free then
        budget = choose(self.disk_kv_bytes, (shutil.disk_usage(inside).free + held) // 2)
        if budget < 3 * layout.block_bytes:
            raise InvalidParameter(
                "disk_kv_bytes", f"must hold three blocks of {layout.block_bytes} bytes, not {budget}"
            )
        return budget

    def session_limit(self, model: LoadedModel, layout: CacheLayout, capacity: int, *, bounded: bool) -> int:
        """Text tokens that one session may hold."""
        fits = capacity * layout.text_per_block
        limit = fits if bounded else min(fits, model.max_positions)
        if self.max_session_tokens is None:
            return limit
        if not bounded and self.max_session_tokens > model.max_positions:
            raise InvalidParameter(
                "max_session_tokens",
                f"{model.name} was trained for {model.max_positions} positions; beyond them use positions=bounded",
            )
        return min(self.max_session_tokens, fits)


def choose(wanted: int | None, otherwise: int) -> int:
    return otherwise if wanted is None else wanted
