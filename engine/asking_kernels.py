"""What asks for the first rows of a matrix that a thread will multiply, while it waits for others to be done."""

from __future__ import annotations

import functools
from typing import Any

import torch
from numba import types
from numba.extending import intrinsic

from cache import job, kernels
from engine.linear_kernels import ask_lines

team = kernels("team")
ASKED = 4096
"""Bytes: as far ahead as products ask themselves."""


@intrinsic  # type: ignore[untyped-decorator]
def ask_for(context: Any, start: Any) -> Any:
    """Ask for ASKED bytes from an address on."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        ask_lines(b, arguments[0], ASKED)
        return context.get_dummy_value()

    return types.void(types.intp), generate


def ask_bytes(arguments: int, first: int, last: int) -> None:
    """Ask for a matrix's rows from `first` on; words: its address, its rows, its channels, whatever follows."""
    ask_for(team.read(arguments) + first * team.read(arguments + 16))


def ask_short(arguments: int, first: int, last: int) -> None:
    """The same of numbers of 16 bits."""
    ask_for(team.read(arguments) + 2 * first * team.read(arguments + 16))


def ask_wide(arguments: int, first: int, last: int) -> None:
    """The same of fp32."""
    ask_for(team.read(arguments) + 4 * first * team.read(arguments + 16))


@functools.cache
def ask_job(dtype: torch.dtype) -> int:
    """Address of what asks for rows of such weights, as a job."""
    return job({1: ask_bytes, 2: ask_short, 4: ask_wide}[dtype.itemsize])
