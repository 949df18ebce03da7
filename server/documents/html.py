"""HTML: what a reader of the page sees, laid out as text: headings, paragraphs, lists, tables; links as their words.

The parser is Python's own: it builds no tree, so depth costs nothing, and looks nothing up. What it calls is here.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

from server.documents.base import Extracted, Limits, Unreadable
from server.documents.decoding import decode

HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
APART = {"p", "ul", "ol", "dl", "table", "blockquote", "pre", "figure", "hr", "title", *HEADINGS}
"""A blank line before and after."""
LINES = set(
    "address article aside body caption dd details div dt fieldset figcaption footer form header html legend li main "
    "nav option section summary tbody tfoot thead tr".split()
)
"""A line of their own."""
LISTS = ("ul", "ol")
UNSEEN = {"script", "style", "template", "svg", "iframe", "noembed", "noframes", "object"}
META = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w:.-]{1,40})""", re.IGNORECASE)
SPACES = re.compile(r"[ \t\n\r\f]+")


def read(data: bytes, charset: str | None, limits: Limits) -> Extracted:
    """The page's text."""
    named = META.search(data[:1024])
    text, encoding = decode(data, charset or (named[1].decode() if named else None))
    page = Page()
    page.feed(text)
    page.close()
    shown = page.text()
    if not shown:
        raise Unreadable("document_without_text", "the page shows no text; what scripts would write is not seen")
    return Extracted(shown, encoding=encoding)


class Page(HTMLParser):
    """Collects what is shown."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._breaks = 0  # newlines due before the next text
        self._row = 0  # those of them that are due to the row, if it has no text yet
        self._space = False  # a space is due
        self._marker = ""  # due before the next text: a bullet, a heading's signs, the border of a cell
        self._lists: list[int | None] = []  # the number of each open list's last item; None for a list of bullets
        self._cells: list[int] = []  # how many cells the row of each open table has had
        self._fresh = False  # in a cell that has no text yet, which no block needs to break
        self._preformatted = 0
        self._unseen: list[str] = []

    def text(self) -> str:
        """All of it, ending in a newline; empty if there is nothing."""
        lines = [line.rstrip(" ") for line in "".join(self._parts).split("\n")]
        whole = "\n".join(lines).strip("\n")
        return whole and whole + "\n"

    # -- what the parser finds -------------------------------------------------------------------------------

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._unseen and not self._shown_again(tag):
            self._unseen += [tag] * (tag == self._unseen[0])
        elif tag in UNSEEN:
            self._unseen.append(tag)
        elif tag == "br":
            self._breaks = min(self._breaks + 1, 2)
        elif tag == "img":
            self._add(dict(attrs).get("alt") or "")
        elif tag in ("td", "th"):
            self._open_cell()
        else:
            self._open_block(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if self._unseen:
            if tag == self._unseen[-1]:
                self._unseen.pop()
            return
        if tag in ("td", "th"):
            self._breaks, self._fresh = self._row, False
            return
        self._break(tag, nested=tag in LISTS and len(self._lists) > 1)
        if tag in LISTS and self._lists:
            self._lists.pop()
        elif tag == "table" and self._cells:
            self._cells.pop()
        elif tag == "pre" and self._preformatted:
            self._preformatted -= 1
            self._parts[-1:] = [part.rstrip("\n") for part in self._parts[-1:]]
        elif tag in HEADINGS or tag == "li":
            self._marker = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in UNSEEN:  # <script/> would be one that never ends
            self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self._add(data)

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """What is no known section is a comment, as in browsers."""
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:
            return self.parse_bogus_comment(i)

    # -- how it is laid out ----------------------------------------------------------------------------------

    def _shown_again(self, tag: str) -> bool:
        """A drawing that nobody closed ends where the page goes on."""
        if self._unseen[0] == "svg" and tag in APART | {"div", "section", "body"}:
            self._unseen.clear()
        return not self._unseen

    def _open_block(self, tag: str, attributes: dict[str, str | None]) -> None:
        self._break(tag, nested=tag in LISTS and bool(self._lists))
        if tag in HEADINGS:
            self._marker = HEADINGS[tag]
        elif tag in LISTS:
            start = attributes.get("start") or "1"
            self._lists.append(int(start) - 1 if tag == "ol" and start.isdecimal() and len(start) < 10 else None)
        elif tag == "li":
            self._marker = self._next_item()
        elif tag == "table":
            self._cells.append(0)
        elif tag == "tr" and self._cells:
            self._cells[-1], self._row = 0, self._breaks
        elif tag == "pre":
            self._preformatted += 1

    def _next_item(self) -> str:
        if not self._lists:
            return "- "
        number = self._lists[-1]
        if number is not None:
            self._lists[-1] = number + 1
        return "  " * (len(self._lists) - 1) + ("- " if number is None else f"{number + 1}. ")

    def _open_cell(self) -> None:
        if not self._cells:
            self._break("tr")
            return
        self._breaks = self._row
        if self._cells[-1]:
            self._flush()
            self._parts.append(" | ")
        self._cells[-1] += 1
        self._fresh, self._space = True, False

    def _break(self, tag: str, *, nested: bool = False) -> None:
        lines = 2 if tag in APART else 1 if tag in LINES else 0
        if nested or (self._fresh and tag not in ("tr", "table")):
            lines = min(lines, 0 if self._fresh else 1)
        self._breaks = max(self._breaks, lines)

    def _add(self, data: str) -> None:
        if self._preformatted:
            if shown := data.removeprefix("\n") if self._breaks or not self._parts else data:
                self._put(shown)
            return
        words = SPACES.sub(" ", data)
        if words.startswith(" "):
            self._space = True
        if words.strip(" "):
            self._put(words.strip(" "))
            self._space = words.endswith(" ")

    def _put(self, text: str) -> None:
        started = bool(self._breaks) or not self._parts
        self._flush()
        if self._space and not started and not self._fresh:
            self._parts.append(" ")
        self._parts.append(self._marker + text)
        self._marker, self._space, self._fresh = "", False, False

    def _flush(self) -> None:
        """The breaks that are due."""
        if self._parts:
            self._parts.append("\n" * self._breaks)
        self._breaks = self._row = 0
