"""Perplexities of rows that scored the same tokens, their errors, and how they are printed. Knows no model.

The unit of every error is a piece: as many tokens as the shortest text has. Errors are standard errors over the pieces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

LATE_STRIDE, LATE_TOKENS = 4096, 256


@dataclass(frozen=True)
class Cell:
    """One row at one length.

    Attributes:
        perplexity: of a token
        error: its standard error
        change: by how many per cent it differs from the baseline's, on the same tokens
        change_error: the standard error of that, from paired differences
    """

    perplexity: float
    error: float
    change: float
    change_error: float


@dataclass(frozen=True)
class Result:
    """One row.

    Attributes:
        cells: by length, over all scored tokens
        late: by length, over the tokens that have a long past whatever the text's length (`late_part`)
        tokens, late_tokens: how many were scored
        mixings: share and temperature of a kNN-LM by length; empty for the others
    """

    name: str
    cells: dict[str, Cell]
    late: dict[str, Cell]
    tokens: int
    late_tokens: int
    seconds: float
    mixings: dict[str, Any]


def summary(
    name: str, losses: Tensor, baseline: Tensor, lengths: tuple[int, ...], seconds: float, mixings: dict[str, Any]
) -> Result:
    """A row from losses (segments, lengths, pieces, tokens of a piece)."""
    late, late_baseline = late_part(losses), late_part(baseline)
    cells = {str(length): cell(losses[:, i], baseline[:, i]) for i, length in enumerate(lengths)}
    late_cells = {str(length): cell(late[:, i], late_baseline[:, i]) for i, length in enumerate(lengths)}
    count = len(lengths)
    return Result(name, cells, late_cells, losses.numel() // count, late.numel() // count, round(seconds, 1), mixings)


def late_part(losses: Tensor) -> Tensor:
    """The last tokens of each 4096 but the first, so that the same tokens have a past as long as the text allows.

    Losses (segments, lengths, pieces, tokens) -> (segments, lengths, late pieces, at most 256). In texts of 512, 2048
    and 4096 tokens they have 256, 1792 and 3840 tokens before them, in texts of 16384 at least 7936. Segments of
    fewer than 8192 tokens give their last piece.
    """
    pieces, piece = losses.shape[2], losses.shape[3] + 1
    stride = max(1, LATE_STRIDE // piece)
    chosen = list(range(2 * stride - 1, pieces, stride)) or [pieces - 1]
    return losses[:, :, chosen, -min(LATE_TOKENS, piece // 2) :]


def cell(losses: Tensor, baseline: Tensor) -> Cell:
    """Mean and errors over pieces; losses of both (segments, pieces, tokens)."""
    mean, error = mean_and_error(losses)
    change, change_error = mean_and_error(losses - baseline)
    perplexity, ratio = math.exp(mean), math.exp(change)
    return Cell(perplexity, perplexity * error, 100 * (ratio - 1), 100 * ratio * change_error)


def mean_and_error(losses: Tensor) -> tuple[float, float]:
    """Mean of losses (segments, pieces, tokens), and its standard error over the pieces."""
    pieces = losses.double().mean(-1).flatten()
    error = float(pieces.std()) / math.sqrt(len(pieces)) if len(pieces) > 1 else math.nan
    return float(pieces.mean()), error


# -- printing ------------------------------------------------------------------------------------------------


def heading(lengths: tuple[int, ...]) -> str:
    columns = "".join(f"{length:>20,}" for length in lengths)
    return f"perplexity of a token, and its change against the first row\n{'read in texts of':<42}{columns}"


def line(result: Result) -> str:
    columns = "".join(f"{c.perplexity:>10.2f} {c.change:>+6.2f}%  " for c in result.cells.values())
    return f"{result.name:<42}{columns}{result.seconds:>8.0f} s"


def markdown(result: dict[str, Any]) -> str:
    """The tables of a result file, of this bench or of the pass keys'."""
    return curve(result["rows"]) if "asked" in result["rows"][0] else perplexities(result)


def curve(rows: list[dict[str, Any]]) -> str:
    """Right answers by length."""
    lines = [
        f"| {row['tokens']:,} | {row['right'] / row['asked']:.0%} ({row['right']} of {row['asked']}) |" for row in rows
    ]
    return "\n".join(["| tokens | pass keys found |\n|---|---|", *lines])


def perplexities(result: dict[str, Any]) -> str:
    """Both tables."""
    rows = result["rows"]
    books, tokens, late = ", ".join(result["books"]), rows[0]["tokens"], rows[0]["late_tokens"]
    machine = result["machine"]
    notes = [f"Tuned on {result['tuned_on']}: {mixing_note(row)}.\n" for row in rows if row["mixings"]]
    parts = [
        f"{machine['date'][:10]}, {machine['cores']} cores. {books}: {result['segments']} segments of "
        f"{result['lengths'][-1]:,} tokens each.\n",
        f"**All tokens** ({tokens:,}), read in texts of\n",
        table(rows, "cells"),
        f"\n**The same tokens with more before them** ({late:,}), read in texts of\n",
        table(rows, "late"),
        "",
        *notes,
    ]
    return "\n".join(parts)


def table(rows: list[dict[str, Any]], part: str) -> str:
    lengths = list(rows[0][part])
    head = "| | " + " | ".join(f"{int(length):,}" for length in lengths) + " |\n|---|" + "---|" * len(lengths)
    lines = [f"| {row['name']} | " + " | ".join(map(entry, row[part].values())) + " |" for row in rows]
    return "\n".join([head, *lines])


def entry(cell: dict[str, float]) -> str:
    """Perplexity, and what differs from the baseline with its error."""
    if cell["change"] == 0:
        return f"{cell['perplexity']:.2f} ± {cell['error']:.2f}"
    return f"{cell['perplexity']:.2f} ({cell['change']:+.1f} ± {cell['change_error']:.1f}%)"


def mixing_note(row: dict[str, Any]) -> str:
    pairs = row["mixings"].items()
    return "; ".join(f"{int(length):,}: share {m['share']}, temperature {m['temperature']:g}" for length, m in pairs)
