"""What a usual decoder layer does besides attention, as two lists of jobs for the team: before it, and after it; and
what a model does behind its layers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache import SideBySide, Task, Tasks
from engine.pairs import piece_of
from engine.rounded import RoundedLinear, matrix_of
from engine.usual import LANES, Parts, Product, epsilon_of

PRODUCT_OUTPUT = 5
"""Word of a product's job."""
ADDED, GATED = 128, 32
"""Times 16 numbers that a thread claims at once, where it adds or gates them."""


class Rooms(threading.local):
    """What the layers of a model work in, one after the other: each thread has its own.

    Args:
        widths: numbers of a row, by name
        rows: as many fit into where they are, always; for more a room becomes another one
    """

    def __init__(self, widths: dict[str, int], dtype: torch.dtype, rows: int) -> None:
        self._rooms = {name: torch.empty(rows * width, dtype=dtype) for name, width in widths.items()}

    def rows(self, name: str, rows: int, width: int) -> Tensor:
        """(rows, width)"""
        if self._rooms[name].numel() < rows * width:
            dtype = self._rooms.pop(name).dtype  # its memory first, for most likely the new one is larger
            self._rooms[name] = torch.empty(rows * width, dtype=dtype)
        return self._rooms[name][: rows * width].view(rows, width)


class RowTasks:
    """Lays out tasks for so many rows, on one thread."""

    def __init__(self, width: int, weights: torch.dtype, rows: int) -> None:
        from engine import layer_kernels

        self.rows, self._jobs = rows, layer_kernels.jobs(width, weights)
        self._kept: list[Tensor] = []  # what else lies at addresses that tasks have, whatever a model gets instead

    def norm(self, norm: Any, x: Tensor, to: Tensor, rows: int) -> Task:
        weight, epsilon = self._keep(norm.weight), epsilon_of(norm)
        bits = int(np.float64(epsilon).view(np.int64))
        words = (x.data_ptr(), weight.data_ptr(), to.data_ptr(), len(weight), bits)
        return Task(self._jobs.norm, words, range(len(words)), rows)

    def _products(self, x: Tensor, *all_layers: tuple[Product, Tensor]) -> SideBySide:
        """What layers make of the same input, each in its place."""
        piece = piece_of(*(matrix_of(layer) for layer, _ in all_layers))
        return SideBySide([replace(self._product(layer, x, to), piece=piece) for layer, to in all_layers])

    def _product(self, layer: Product, x: Tensor, to: Tensor) -> Task:
        weight, scales = self._keep(matrix_of(layer)), layer.scales if isinstance(layer, RoundedLinear) else None
        outputs, channels = weight.shape
        more = [0 if each is None else self._keep(each).data_ptr() for each in (layer.bias, scales)]
        words = (weight.data_ptr(), outputs, channels, x.data_ptr(), self.rows, to.data_ptr(), *more)
        return Task(self._jobs.multiply, words, range(len(words)), outputs, piece_of(weight), self._jobs.ask)

    def _keep(self, weight: Tensor) -> Tensor:
        self._kept.append(weight.detach())
        return self._kept[-1]

    def add(self, one: Tensor, other: Tensor, to: Tensor) -> Task:
        return self._elementwise(self._jobs.add, one, other, to, ADDED)

    def gate(self, one: Tensor, other: Tensor, to: Tensor) -> Task:
        """SiLU of one, times the other."""
        return self._elementwise(self._jobs.swish, one, other, to, GATED)

    def _elementwise(self, job: int, one: Tensor, other: Tensor, to: Tensor, piece: int) -> Task:
        words = (one.data_ptr(), other.data_ptr(), to.data_ptr())
        return Task(job, words, range(len(words)), other.numel() // LANES, piece)


class LayerTasks(RowTasks):
    """A layer's tasks.

    Attributes:
        given: what goes in, and what comes out in its place (rows, channels)
        q, k, v, attended: what attention gets and gives (rows, heads, head_dim)
        before, after: attention
    """

    def __init__(self, parts: Parts, head_dim: int, rooms: Rooms, rows: int) -> None:
        super().__init__(parts.dtype.itemsize, matrix_of(parts.q).dtype, rows)
        room = {name: rooms.rows(name, rows, width) for name, width in widths_of(parts).items()}
        q, k, v, normed, gate, up = (room[name] for name in ("q", "k", "v", "normed", "gate", "up"))
        self.given, self.attended = given, attended = room["given"], room["attended"].view(rows, -1, head_dim)
        self.q, self.k, self.v = (x.view(rows, -1, head_dim) for x in (q, k, v))
        of_heads = (parts.q_norm, q), (parts.k_norm, k)
        self.before = Tasks([
            self.norm(parts.before, given, normed, rows),
            self._products(normed, (parts.q, q), (parts.k, k), (parts.v, v)),
            *(self.norm(norm, x, x, x.numel() // head_dim) for norm, x in of_heads if norm is not None),
        ])  # fmt: skip
        self.after = Tasks([
            self._product(parts.o, attended, normed),
            self.add(given, normed, room["stream"]),
            self.norm(parts.after, room["stream"], normed, rows),
            self._products(normed, (parts.gate, gate), (parts.up, up)),
            self.gate(gate, up, gate),
            self._product(parts.down, gate, normed),
            self.add(room["stream"], normed, given),
        ])  # fmt: skip


class EndTasks(RowTasks):
    """What follows after the last layer: a norm, and the output layer.

    Attributes:
        given: what goes in (rows, channels)
        tasks: their product has to be told where to go
    """

    def __init__(self, norm: Any, head: Product, rooms: Rooms, rows: int) -> None:
        super().__init__(norm.weight.itemsize, matrix_of(head).dtype, rows)
        self.given, normed = (rooms.rows(name, rows, len(norm.weight)) for name in ("given", "normed"))
        self._outputs, self._dtype = len(matrix_of(head)), norm.weight.dtype
        nowhere = torch.empty(0)
        self.tasks = Tasks([self.norm(norm, self.given, normed, rows), self._product(head, normed, nowhere)])

    def aimed(self) -> Tensor:
        """Where the product will be: (rows, outputs)."""
        product = torch.empty(self.rows, self._outputs, dtype=self._dtype)
        self.tasks.put(1, PRODUCT_OUTPUT, product.data_ptr())
        return product


def rooms_of(all_parts: Sequence[Parts], rows: int) -> Rooms:
    """For layers of such parts."""
    widths = [widths_of(parts) for parts in all_parts]
    return Rooms({name: max(each[name] for each in widths) for name in widths[0]}, all_parts[0].dtype, rows)


def widths_of(parts: Parts) -> dict[str, int]:
    """Numbers of a row of what a layer works in."""
    hidden, inner = matrix_of(parts.down).shape
    heads = {name: len(matrix_of(layer)) for name, layer in (("q", parts.q), ("k", parts.k), ("v", parts.v))}
    return {
        "given": hidden,
        "normed": hidden,
        "stream": hidden,
        "gate": inner,
        "up": inner,
        **heads,
        "attended": heads["q"],
    }
