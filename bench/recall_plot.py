"""`python -m bench.recall_plot RESULT.json --output docs/recall.svg`: the table of a recall result, and its plot.

The plot shows the divergence from full attention against the bytes read, one line per way to read; the table is
markdown, one row per way, for one length and budget after the other.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FAINT = ("StreamingLLM", "BigBird", "Longformer", "Reformer", "Linformer-like", "Combiner", "Performer")
"""Ways that are there to compare with; drawn grey."""


def name_of(row: Row) -> str:
    return f"{row['way']} ({row['source']})"


def by_way(rows: list[Row], length: int) -> dict[str, list[Row]]:
    """The rows of one length by way, cheapest first."""
    ways: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["length"] == length:
            ways[name_of(row)].append(row)
    return {name: sorted(found, key=lambda row: row["bytes"]) for name, found in ways.items()}


def plot(rows: list[Row], output: Path) -> None:
    """Divergence against bytes read, one panel per length; ways that were measured at one budget are grey."""
    import matplotlib as mpl  # loaded on demand: the table needs no plot

    mpl.use("svg")
    from matplotlib import lines, pyplot, ticker

    read = [row for row in rows if row["bytes"] < 1]
    lengths = sorted({row["length"] for row in read})
    counts = Counter(name_of(row) for row in read)
    coloured = [name for name in counts if counts[name] > 1 and not any(source in name for source in FAINT)]
    # C7 is grey, and there are ten: those of ours, which come last, begin again with the darkest ones
    colours = {
        name: f"C{number + (number > 6)}" if number < 9 else "kbmg"[number % 4] for number, name in enumerate(coloured)
    }
    figure, panels = pyplot.subplots(1, len(lengths), figsize=(5.5 * len(lengths) + 3, 5.5), squeeze=False)
    for panel, length in zip(panels[0], lengths, strict=True):
        for name, found in by_way(read, length).items():
            style = {"color": colours.get(name, "0.75"), "linewidth": 1.6 if name in colours else 1.0}
            shares = [100 * row["bytes"] for row in found]
            panel.plot(shares, [row["kl"] for row in found], marker="o", markersize=4, label=name, **style)
        panel.axhline(0.01, color="black", linewidth=0.6, linestyle=":")
        panel.set(xscale="log", yscale="log", xlabel="bytes read per token, % of all keys and values")
        panel.set(ylabel="KL from full attention, nats per token", title=f"{length:,} tokens")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.set_minor_formatter(ticker.NullFormatter())
        panel.set_xticks([5, 10, 20, 30])
    handles = [lines.Line2D([], [], color=colour, marker="o", markersize=4) for colour in colours.values()]
    figure.legend(handles, list(colours), fontsize=8, loc="center left", bbox_to_anchor=(0.99, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None}, bbox_inches="tight")


def table(rows: list[Row], length: int, budget: float, by: str = "blocks") -> str:
    """One budget, of blocks or of bytes, at one length as markdown."""
    lines = [
        "| way | bytes | mass | error | KL | one key's digits | eight keys' digits |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row["length"] == length and row["budget"] == budget and row.get("by", "blocks") == by:
            shares = " | ".join(f"{row[name]:.1%}" for name in ("bytes", "mass"))
            found = " | ".join(f"{row[name]:.0%}" for name in ("keys", "many"))
            lines.append(
                f"| {row['way']} ({row['source']}) | {shares} | {row['error']:.3f} | {row['kl']:.4f} | {found} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="what bench.recall has written")
    parser.add_argument("--output", type=Path, help="draw the plot here")
    options = parser.parse_args()
    rows = [row for path in options.results for row in json.loads(path.read_text())["rows"]]
    for length in sorted({row["length"] for row in rows}):
        budgets = {(row.get("by", "blocks"), row["budget"]) for row in rows if row["length"] == length}
        for by, budget in sorted(budgets):
            print(f"\n{length:,} tokens, {budget:.0%} of the {by}\n\n{table(rows, length, budget, by)}")
    if options.output:
        plot(rows, options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
