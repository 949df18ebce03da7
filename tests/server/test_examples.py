"""Every example of the guides, of docs/api.md and of the README runs, against the real server."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cache import RULES
from tests.server.examples import ADDRESS, ROOT, Example, Reader, check, examples
from tests.server.pdfs import pdf_of

GUIDES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "guides").glob("*.md"))
PAGES = [*GUIDES, "docs/api.md", "README.md"]
NOT_RUN = {
    "docs/guides/add-a-landmark-rule.md": 1,
    "docs/guides/an-agent-with-long-sessions.md": 1,
    "docs/guides/operate-it.md": 2,
    "docs/guides/serve-a-model.md": 2,
    "docs/api.md": 2,
}
"""How many examples of a page no test runs."""
TEXT = "The pass key for Lisbon is 71432. Remember it.\n" + "The sea was calm, and nobody came. " * 40


@pytest.fixture
def reader(cairn: httpx.Client, tmp_path: Path) -> Iterator[Reader]:
    """In a folder with what the pages take for granted: a book, a file or two."""
    folder = tmp_path / "reader"
    folder.mkdir()
    for name in ("book.txt", "README.md"):
        (folder / name).write_text(TEXT)
    for name in ("book.pdf", "manual.pdf"):
        (folder / name).write_bytes(
            pdf_of(*["The pass key for Lisbon is 71432.\nRemember it.", *["The sea was calm.\n" * 30] * 8])
        )
    for name in ("models", "bench"):
        (folder / name).symlink_to(ROOT / name)
    reader = Reader(folder, cairn.base_url.netloc.decode())
    yield reader
    reader.leave()


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples use curl")
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CAIRN_API_KEY", "CAIRN_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("CAIRN_URL", f"http://{reader.address}")
    kept = dict(RULES)
    try:
        for example in filter(lambda each: each.runs, examples(page)):
            if example.mark == "serve" and example.code.strip() not in ("cairn serve", "make serve"):
                reader.address = f"127.0.0.1:{port()}"
            reader.follow(example)
    finally:
        RULES.clear()
        RULES.update(kept)


@pytest.mark.parametrize("page", PAGES)
def test_what_does_not_run_is_counted_and_says_why(page: str) -> None:
    marks = [example.mark for example in examples(page) if not example.runs]
    assert len(marks) == NOT_RUN.get(page, 0)
    assert all(re.fullmatch(r"no-run: .{5,}", mark) for mark in marks), marks
    assert {example.mark for example in examples(page) if example.runs} <= {"", "serve"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", (ROOT / page).read_text()):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor[1:] in anchors(path.read_text()), f"{target}{anchor}"


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_guides_are_linked_from_the_readme_and_from_each_other() -> None:
    readme = (ROOT / "README.md").read_text()
    for guide in GUIDES:
        assert f"({guide})" in readme
        assert any(f"({Path(guide).name})" in (ROOT / other).read_text() for other in GUIDES if other != guide)


@pytest.mark.parametrize(
    ("kind", "shown", "printed"),
    [
        ("json", '{"a": [{"b": 1}], "c": {…}}', '{"a": [], "c": {}}'),
        ("json", '{"a": 1}', '{"b": 1}'),
        ("json", '{"a": "x"}', '{"a": 1}'),
        ("text", "key 71432 of …", "key abc of all"),
        ("text", "one\ntwo", "two\none"),
    ],
)
def test_another_shape_is_seen(kind: str, shown: str, printed: str) -> None:
    with pytest.raises(AssertionError):
        check(kind, shown, printed, "here")


def test_a_failing_example_is_seen(reader: Reader) -> None:
    for code in ("false", "curl -s localhost:8000/v1/sessions/none", "false | true"):
        with pytest.raises(AssertionError):
            reader.follow(Example("here", 1, "sh", "", code))
    with pytest.raises(NameError):
        reader.follow(Example("here", 1, "python", "", "nothing"))
    assert ADDRESS.search("http://127.0.0.1:8000/v1")
