"""The examples of the client's README run as they stand, in their order, against the real server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import KEY, ROOT, Needs

README = (ROOT / "clients" / "python" / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number: int, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: Needs) -> None:
    for call, path in (("export", "export"), ("search", "search")):
        if f"sessions.{call}(" in EXAMPLES[number]:
            needs(path)
    (tmp_path / "README.md").write_text(README)
    for name, value in {"CAIRN_URL": url, "CAIRN_API_KEY": KEY}.items():
        monkeypatch.setenv(name, value)
    code = EXAMPLES[number].replace("http://127.0.0.1:8000", url)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
