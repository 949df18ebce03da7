"""The rehearsal: a model that was just loaded runs on four tokens, and shows what it hands to attention.

Two passes, one with position 0 for every token and one with real positions. Attention returns the values alone, so
that positions can reach nothing but queries and keys. Each layer's rotation is the one that turns the first pass's
queries and keys into the second's: the convention is seen on the model, never taken from its name, and a model that
does something else with positions is refused. Each layer's window is read off the model's own mask. Knows no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.rotation import Rotation
from engine.temperature import Temperature

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

REHEARSAL = "cairn-rehearsal"
TOKENS = 4
LONGEST = 131_072
"""Positions above are not rehearsed: there transformers' own float32 angles are no measure."""
TOLERANCE = 0.03
"""Largest relative difference that counts as equal; bfloat16 rounds to 0.005, a wrong rotation is off by 1."""
HARMLESS = frozenset(
    "dropout is_causal sliding_window softcap scaling position_ids use_cache output_attentions output_hidden_states "
    "output_router_logits return_dict past_key_values cache_position logits_to_keep s_aux".split()
)
"""Arguments of an attention call that change nothing, or that the engine obeys."""
FAR = 1 << 20
"""A position from which masks are looked at; a window that reaches further is none."""

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""transformers' mask function: batch, head, query and key indices to whether the query sees the key."""


@dataclass(frozen=True)
class Handed:
    """What one layer handed to attention.

    Attributes:
        q, k, v: (tokens, heads, head_dim)
        sees: what its mask was made of
        void: (heads,) scores of what takes attention and has no value, if the layer has any
    """

    q: Tensor
    k: Tensor
    v: Tensor
    sees: Sees
    void: Tensor | None


@dataclass(frozen=True)
class RehearsedLayer:
    """What a layer turned out to be.

    Attributes:
        window: a query sees only this many latest positions, itself included; None sees all
        head_dim: channels of its keys or of its values, the larger
        void, temperature: see LayerGeometry
    """

    rotation: Rotation
    window: int | None
    kv_heads: int
    head_dim: int
    void: Tensor | None
    temperature: Temperature | None


@dataclass
class Recorder:
    """What the layers handed over in one pass."""

    layers: dict[int, Handed] = field(default_factory=dict)

    def add(self, layer: int, handed: Handed) -> None:
        if layer in self.layers:
            raise ModelError(f"layer {layer} attends more than once, which the cache has no place for")
        self.layers[layer] = handed


def register() -> None:
    """Make the rehearsal's attention and masks known to transformers under `REHEARSAL`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(REHEARSAL, record)
    AttentionMaskInterface.register(REHEARSAL, mask)


class Mask(Tensor):
    """Stands in for a mask (1, 1, tokens, tokens) and remembers what it was to be made of."""

    sees: Sees


def mask(*, q_length: int, mask_function: Sees, **_: Any) -> Tensor:
    """transformers' maker of masks."""
    made = torch.zeros(1, 1, q_length, q_length).as_subclass(Mask)
    made.sees = mask_function
    return made


def record(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **told: Any
) -> tuple[Tensor, None]:
    """An attention function in which each token sees itself: query (1, heads, tokens, head_dim), and so on."""
    recorder = told.pop("cairn_recorder", None)
    if not isinstance(recorder, Recorder) or not isinstance(module.layer_idx, int):
        raise ModelError("it keeps from its attention layers what transformers' models pass on to them")
    unknown = sorted(name for name, given in told.items() if given is not None and name not in HARMLESS)
    if unknown:
        raise ModelError(f"its attention needs {', '.join(unknown)}, which Cairn does not compute")
    if not isinstance(attention_mask, Mask) or not hasattr(attention_mask, "sees"):
        raise ModelError("it makes masks of its own, which Cairn can not read")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, head_dim)
    recorder.add(module.layer_idx, Handed(q, k, v, attention_mask.sees, told.get("s_aux")))
    return v.repeat_interleave(q.shape[1] // k.shape[1], dim=1)[None], None


def rehearse(model: PreTrainedModel) -> list[RehearsedLayer]:
    """Every layer of a model that was loaded with `REHEARSAL` attention; raises ModelError."""
    last = min(int(model.config.max_position_embeddings), LONGEST) - 1
    positions = torch.tensor([min(2, last), last // 7, last // 2, last], device=model.device)
    still, expected = run(model, torch.zeros_like(positions))
    moved, logits = run(model, positions)
    if difference(logits, expected) > TOLERANCE:
        raise ModelError("positions change more than its queries and keys, which Cairn can not undo")
    count = model.config.num_hidden_layers
    if sorted(still) != list(range(count)):
        raise ModelError(f"only {len(still)} of its {count} layers are attention, which is all that Cairn keeps")
    turns = list(candidates(model))  # as the long pass left them: that is how the model treats its longest texts
    return [learn(layer, still[layer], moved[layer], positions, turns) for layer in range(count)]


@torch.inference_mode()
def run(model: PreTrainedModel, positions: Tensor) -> tuple[dict[int, Handed], Tensor]:
    """What the layers hand over, and the logits (tokens, vocabulary), last token first."""
    ids = torch.arange(1, TOKENS + 1, device=positions.device) * (model.config.vocab_size - 1) // (TOKENS + 1)
    recorder = Recorder()
    output = model(
        input_ids=ids[None],
        position_ids=positions[None],
        attention_mask=torch.ones_like(ids)[None],  # else transformers takes the jumps for several texts
        use_cache=False,
        logits_to_keep=torch.arange(TOKENS - 1, -1, -1, device=positions.device),
        cairn_recorder=recorder,
    )
    return recorder.layers, output.logits[0]


@dataclass(frozen=True)
class Turn:
    """What positions may do to queries and keys."""

    rotation: Rotation
    temperature: Temperature | None

    def misfit(self, still: Handed, moved: Handed, positions: Tensor) -> float:
        """How far it is from explaining what the two passes handed over."""
        q, k = (self.rotation(x.float(), positions[:, None]) for x in (still.q, still.k))
        if self.temperature is not None:
            q = q * self.temperature(positions)[:, None, None]
        return max(difference(q, moved.q), difference(k, moved.k))


def candidates(model: PreTrainedModel) -> Iterator[Turn]:
    """Each rotation with the temperature that the config tells, then without; the first one wins where both fit."""
    told = temperature(model.config)
    for kind in (told, None) if told else (None,):
        for rotation in rotations(model):
            yield Turn(rotation, kind)


def temperature(config: PretrainedConfig) -> Temperature | None:
    """What a config says of queries that grow with their position."""
    told = getattr(config, "rope_parameters", None) or {}
    beta, length = told.get("llama_4_scaling_beta"), told.get("original_max_position_embeddings")
    return Temperature(float(beta), int(length)) if beta and length else None


def rotations(model: nn.Module) -> Iterator[Rotation]:
    """No rotation, and each of the model's frequencies in each convention."""
    yield Rotation(None)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and "original" not in name:
                for frequencies in (buffer.double(), -buffer.double()):
                    yield Rotation(frequencies)
                    yield Rotation(frequencies, interleaved=True)


def learn(layer: int, still: Handed, moved: Handed, positions: Tensor, turns: list[Turn]) -> RehearsedLayer:
    """The layer whose rotation explains what the two passes handed over."""
    kv_heads, head_dim = still.k.shape[1:]
    fitting = [turn for turn in turns if turn.rotation.channels <= head_dim]
    errors = [turn.misfit(still, moved, positions) for turn in fitting]
    best = min(range(len(fitting)), key=errors.__getitem__)
    if errors[best] > TOLERANCE:
        raise ModelError(f"layer {layer} applies its positions in a way that Cairn does not know")
    widest = max(head_dim, still.v.shape[2])
    found, seen = fitting[best], window(layer, still.sees)
    return RehearsedLayer(found.rotation, seen, kv_heads, widest, void(layer, still), found.temperature)


def window(layer: int, sees: Sees) -> int | None:
    """How many latest positions a query sees, itself included; None for all."""
    zero, latest = torch.zeros((), dtype=torch.long), torch.arange(-1, FAR)  # -1 is the future
    seen = [sees(zero, zero, query, query - latest) for query in (torch.tensor(FAR - 1), torch.tensor(FAR + 12_345))]
    count = int(seen[0].sum())
    expected = (latest >= 0) & (latest < count)
    if not count or not all(torch.equal(found.expand_as(expected), expected) for found in seen):
        raise ModelError(
            f"layer {layer} sees neither all before a position nor a sliding window, but chunks or the like"
        )
    return count if count < FAR else None


def void(layer: int, handed: Handed) -> Tensor | None:
    """The learned scores that a layer gives to nothing, one for each query head."""
    if handed.void is None:
        return None
    if handed.void.shape != handed.q.shape[1:2]:
        raise ModelError(f"layer {layer} has attention sinks of a shape that Cairn does not know")
    return handed.void.detach().float()


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of a token, relative to its length: (tokens, …) both."""
    found, expected = found.float().flatten(1), expected.float().flatten(1)
    lengths = expected.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return float(((found - expected).norm(dim=1) / lengths).nan_to_num(torch.inf).max())
