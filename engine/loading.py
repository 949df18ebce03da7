"""From a model folder or hub name to an engine. Owns the order of loading; each part is somebody else's."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.config import EngineConfig
from engine.device import place
from engine.engine import Engine
from engine.errors import InvalidParameter
from engine.huggingface import load_model
from engine.requests import Quota
from engine.stats import StepReport


def load_engine(
    model: str,
    config: EngineConfig,
    *,
    observe: Callable[[StepReport], None] | None = None,
    quota: Callable[[str], Quota] | None = None,
) -> Engine:
    """An engine for a model folder or hub name; raises ModelError, InvalidParameter."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = place(config.device)
    if config.weights == "int8" and device.type != "cpu":
        raise InvalidParameter("weights", f"int8 is for a CPU, and the device is {device}; use auto, or device cpu")
    return Engine(load_model(model, config.dtype, device, config.weights), config, observe=observe, quota=quota)
