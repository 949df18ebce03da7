"""Results of a bench as JSON, with the machine they were measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write `result` and where and when it was measured; do nothing without a path."""
    if path is None:
        return
    machine = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    path.write_text(json.dumps(result | {"machine": machine}, indent=1) + "\n")
