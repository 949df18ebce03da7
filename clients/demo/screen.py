"""All that the demo prints: compact on a terminal of 80 columns, and plain text in a log. Knows no HTTP calls."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from cairn_client import Passage
from rich.console import Console
from rich.text import Text

from clients.demo.asking import Told
from clients.demo.excerpt import excerpt
from clients.demo.facts import Fact, Hidden
from clients.demo.metrics import Metrics
from clients.demo.progress import Advance, rate, reading

INDENT = 10  # columns of the labels


class Screen:
    """What the user sees, and how long each phase took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._took: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a phase."""
        start = time.perf_counter()
        yield
        self._took[name] = time.perf_counter() - start

    def took(self, name: str) -> float:
        """Seconds of a phase that is over."""
        return self._took[name]

    def opening(self) -> None:
        self._console.print(Text("Cairn: a long text, read once, asked again and again", style="bold"))
        self._console.print()

    def server(self, name: str, url: str) -> None:
        self._row("server", f"{name} at {url}, ready after {self.took('server'):.1f} s")

    def text(self, title: str, characters: int, tokens: int, hidden: list[Hidden]) -> None:
        self._row("text", f"{title}: {tokens:,} tokens, {characters:,} characters, {self.took('text'):.1f} s")
        told = ", ".join(f"{item.fact.city} {item.fact.key} at {item.depth:.0%}" for item in hidden)
        self._row("hidden", told)

    @contextlib.contextmanager
    def reading(self, tokens: int) -> Iterator[Advance]:
        """The progress of reading the text, and a line at its end."""
        if not self._console.is_interactive:
            self._row("reading", "")
        with self.phase("reading"), reading(self._console, tokens) as advance:
            yield advance
        seconds = self.took("reading")
        self._row("read", f"{tokens:,} tokens in {seconds:.1f} s, {rate(tokens, seconds)}")

    def question(self, fact: Fact) -> None:
        self._console.print()
        self._row("asked", Text(fact.question, style="bold"))
        self._console.print(Text(f"{'answer':<{INDENT}}", style="cyan"), end="")

    def heard(self, piece: str) -> None:
        """A piece of the answer, as it comes; what a terminal would obey is not passed on."""
        shown = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in piece)
        self._console.print(Text(shown), end="", soft_wrap=True)

    def answered(self, fact: Fact, answer: Told, tokens_per_second: float) -> None:
        self._console.print()
        right = fact.answered_by(answer.text)
        verdict = Text("right", style="bold green") if right else Text(f"wrong: it is {fact.key}", style="bold red")
        self._row(
            "", verdict + Text(f", first token after {answer.first:.2f} s, complete after {answer.seconds:.2f} s")
        )
        saved = answer.cached_tokens / tokens_per_second
        cached = f"{answer.cached_tokens:,} of {answer.prompt_tokens:,} tokens cached"
        self._row("", f"{cached}, {saved:.1f} s saved (as measured above)")
        for number, passage in enumerate(answer.passages):
            self._passage("" if number else "it read", passage, fact, answer.prompt_tokens)
        if not answer.passages:
            self._row("", "the server did not tell which passages were read")

    def memory(self, metrics: Metrics, resident: float | None) -> None:
        """What memory and metrics say."""
        self._console.print()
        self._row("memory", "server process " + ("unknown" if resident is None else _size(resident)))
        blocks = metrics.by_label("cairn_kv_tier_blocks", "tier")
        for tier, used in metrics.by_label("cairn_kv_tier_usage_bytes", "tier").items():
            self._row("", f"KV on {tier}: {_size(used)} in {blocks.get(tier, 0):,.0f} blocks")
        for label, line in _told(metrics):
            self._row(label, line)

    def closing(self, wrong: list[Fact], asked: int) -> None:
        times = [f"{name} {seconds:.1f} s" for name, seconds in self._took.items()]
        self._row("time", ", ".join([*times, f"in all {sum(self._took.values()):.1f} s"]))
        self._console.print()
        if wrong:
            names = ", ".join(fact.city for fact in wrong)
            self._console.print(Text(f"{len(wrong)} of {asked} answers are wrong: {names}", style="bold red"))
        else:
            self._console.print(Text(f"All {asked} answers are right.", style="bold green"))

    def failed(self, message: str, log: str = "") -> None:
        self._console.print()
        self._console.print(Text(f"The demo can not go on: {message}", style="bold red"))
        if log:
            self._console.print(Text("The last lines of the server's log:"))
            self._console.print(Text(log), soft_wrap=True)

    def _passage(self, label: str, passage: Passage, fact: Fact, tokens: int) -> None:
        """Two rows or three: where and how much, and what is written there."""
        place = passage.start_token / max(1, tokens)
        span = f"tokens {passage.start_token:,} to {passage.end_token:,}"
        self._row(label, f"{passage.share:.1%} of attention to {span}, {place:.0%} into the text")
        part = excerpt(passage.text, fact)
        if not part.fact:
            part = excerpt(passage.text, fact, 64)  # one line is enough for what is not asked for
        # A log has no colours, so brackets mark the fact there.
        marked = part.fact if self._console.is_terminal or not part.fact else f"[[{part.fact}]]"
        self._row("", Text.assemble((part.before, "dim"), (marked, "black on yellow"), (part.after, "dim")))

    def _row(self, label: str, body: Text | str) -> None:
        """A line, or several under each other, to the right of its label."""
        text = Text(body) if isinstance(body, str) else body
        lines = text.wrap(self._console, max(20, self._console.width - INDENT))
        for line in lines:
            line.rstrip()
            head = Text(label.ljust(INDENT) if line else label, style="cyan")
            self._console.print(Text.assemble(head, line), soft_wrap=True)
            label = ""


def _told(metrics: Metrics) -> Iterator[tuple[str, str]]:
    """The counters that are worth a line; what the server does not tell is left out."""
    values = {
        "prompt": metrics.value("cairn_prompt_tokens_total"),
        "generated": metrics.value("cairn_generation_tokens_total"),
        "found in the cache": metrics.value("cairn_prefix_cache_hits_total"),
    }
    yield "tokens", ", ".join(f"{name} {value:,.0f}" for name, value in values.items() if value is not None)
    selected = metrics.value("cairn_retrieval_block_hits_total")
    each = metrics.mean("cairn_retrieval_blocks_selected")
    if selected is not None and each is not None:
        yield "retrieval", f"{selected:,.0f} blocks selected, {each:.1f} for a token and head on average"
    mean = metrics.mean("cairn_time_to_first_token_seconds")
    if mean is not None:
        yield "latency", f"{mean:.2f} s to the first token on average"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
