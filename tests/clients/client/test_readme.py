"""The examples of the client's README run as they stand, in their order, against the real server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.clients.conftest import KEY, ROOT

README = (ROOT / "clients" / "python" / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(
    number: int,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "README.md").write_text(README)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAIRN_URL", url)
    monkeypatch.setenv("CAIRN_API_KEY", KEY)
    exec(compile(EXAMPLES[number].replace("http://127.0.0.1:8000", url), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
