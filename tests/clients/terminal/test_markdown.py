"""Markdown that comes in pieces looks as if it had come at once, and what is printed for good is not changed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from clients.terminal.markdown import Writing, split

ANSWER = """# Title

Some *words* that go on for a while,
over two lines.

```python
def one():

    return 1
```

- a list
- of two

The end, with \x1b[31mno colour."""


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_it_is_split_only_where_nothing_can_change(size: int) -> None:
    parts, rest = [], ""
    for at in range(0, len(ANSWER), size):
        complete, rest = split(rest + ANSWER[at : at + size])
        parts += [complete] if complete else []
    assert "".join(parts) + rest == ANSWER
    assert all(part.count("```") % 2 == 0 for part in parts)
    assert rest.startswith("The end")


def test_what_is_left_on_the_screen() -> None:
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=False)
    with Writing(console) as writing:
        writing.waiting("reading 5 of 10 tokens")
        for at in range(0, len(ANSWER), 7):
            writing.feed(ANSWER[at : at + 7])
    shown = out.getvalue()
    assert "\x1b" not in shown
    for part in ("Title", "Some words that go on for a while", "    return 1", "• of two", "The end, with"):
        assert shown.count(part) == 1
    assert "reading" not in shown
