"""A first request waits for no compiler: what it needs was compiled, or loaded, before the engine was ready."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import RetrievalParams, config
from tests.engine.running import running
from tests.models import random_tokens, save_model

LONG = 1500


def kernels_of() -> dict[str, int]:
    """How often each kernel of this process was compiled or loaded."""
    from numba.core.registry import CPUDispatcher

    from cache.compiling import JOBS

    made = {made._pyfunc.__qualname__: 1 for made in JOBS}
    for each in gc.get_objects():
        if isinstance(each, CPUDispatcher) and each.py_func.__module__.split(".")[0] in ("cache", "engine"):
            made[f"{each.py_func.__module__}.{each.py_func.__qualname__}"] = len(each.signatures)
    return made


def first_requests(folder: str, dtype: str) -> None:
    """A long prompt, an answer, and others beside it, in a process that did nothing else."""
    config.TILED_AT = 0  # so behind many blocks
    with running(Path(folder), dtype=dtype) as run:
        before = kernels_of()
        run.ask(random_tokens(LONG), max_tokens=20, retrieval=RetrievalParams(provenance=True))
        together = [run.submit(random_tokens(LONG, seed), max_tokens=20) for seed in (0, 1, 2)]
        for request in together:
            request.result()
        after = kernels_of()
    print(sorted(name for name, count in after.items() if before.get(name) != count))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("landmarks", [True, False])
def test_a_first_request_compiles_nothing(landmarks: bool, dtype: str, tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path, landmarks=landmarks, num_key_value_heads=4)
    code = f"from tests.engine.test_warm_up import first_requests; first_requests({str(folder)!r}, {dtype!r})"
    told = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr
