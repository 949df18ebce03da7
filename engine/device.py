"""Where model and cache lie, and how much memory is free there. Asks the system; decides nothing about sessions."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from engine.errors import InvalidParameter


def place(wanted: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`; raises InvalidParameter if there is none."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return torch.device("cuda" if cards else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= cards:
        built = "" if torch.version.cuda else ", and this torch is built without CUDA"
        raise InvalidParameter("device", f"{wanted}: {cards} GPUs were found{built}; use cpu")
    return device


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that are free on a device; without one in host memory, also within a container's limit."""
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text))
    return free
