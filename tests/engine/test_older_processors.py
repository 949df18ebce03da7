"""Kernels that a processor without instructions for bf16 needs do not ask for those: LLVM would end the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OLDER = {"haswell": "+avx2,+fma,-avx512f,-avx512bf16", "skylake-avx512": "-avx512bf16"}


@pytest.mark.parametrize(("width", "weights"), [(4, "float32"), (4, "int8"), (2, "bfloat16"), (2, "int8")])
@pytest.mark.parametrize("processor", OLDER)
def test_layers_are_compiled_for_an_older_processor(processor: str, width: int, weights: str, tmp_path: Path) -> None:
    told = {
        "NUMBA_CPU_NAME": processor,
        "NUMBA_CPU_FEATURES": OLDER[processor],
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    code = f"import torch; from engine import layer_kernels; layer_kernels.jobs({width}, torch.{weights})"
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **told}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
