"""Sums of products of bytes are the same integers, whatever a processor has for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from llvmlite import binding, ir

from cache import kernels

four_bits, lanes, listed, products = (kernels(name) for name in ("four_bit", "lane", "listed", "product"))
WAYS = pytest.mark.parametrize("way", products.KNOWN, ids=lambda way: way.product or "plain")
SLICES = pytest.mark.parametrize("slices", [1, 3, 8, 40])
LARGEST = pytest.mark.parametrize("largest", [True, False], ids=["largest", "any"])


def bytes_of(shape: tuple[int, ...], largest: bool, what: int) -> np.ndarray:
    """Any bytes, or such that all numbers in them are as large as can be."""
    return np.full(shape, what, np.uint8) if largest else np.random.default_rng(6).integers(0, 256, shape, np.uint8)


def asked(queries: int, channels: int, largest: bool) -> np.ndarray:
    """Queries in 8 bits, the largest of which have both signs."""
    numbers = np.random.default_rng(7).integers(-127, 128, (queries, channels), np.int8)
    signs = np.resize(np.array([[127], [-127]], np.int8), (queries, 1))
    return np.ascontiguousarray(np.broadcast_to(signs, numbers.shape)) if largest else numbers


def call(kernel: Any, *arguments: Any) -> Any:
    """Arrays by their addresses."""
    names = ", ".join(f"a{number}" for number in range(len(arguments)))
    made: Callable[..., Any] = eval(f"lambda {names}: kernel({names})", {"kernel": kernel})
    return numba.njit(made)(*(x.ctypes.data if isinstance(x, np.ndarray) else x for x in arguments))


@WAYS
@SLICES
@LARGEST
@pytest.mark.parametrize("queries", [1, 2, 4, 8])
@pytest.mark.parametrize("tiles", [1, 7])
def test_products_with_rows(way: Any, slices: int, largest: bool, queries: int, tiles: int) -> None:
    words, numbers = bytes_of((tiles, slices, 16, 4), largest, 0x77), asked(queries, 8 * slices, largest)
    starts, ones = np.arange(-queries, queries, 2, dtype=np.int32), np.ones(16 * tiles, np.float32)
    found = np.zeros((queries, tiles, 16), np.float32)
    kernel = four_bits.rows_kernel(queries, way=way)
    call(kernel, words, tiles, slices, numbers, 8 * slices, starts, ones, ones, found, 64 * tiles)
    nibbles = np.stack((words & 15, words >> 4), axis=-2).astype(np.int64) ^ 8  # (tiles, slices, lanes, halves, bytes)
    factors = numbers.astype(np.int64).reshape(queries, slices, 2, 4)
    assert np.array_equal(found, starts[:, None, None] + np.einsum("tslhb,qshb->qtl", nibbles, factors))


@WAYS
@SLICES
@LARGEST
@pytest.mark.parametrize("many", [0, 1, 4, 11])
def test_products_with_tiles_that_lie_anywhere(way: Any, slices: int, largest: bool, many: int) -> None:
    """Each has scales of its own, one comes twice, and behind the last one nothing lies."""
    ahead, generator = 3, np.random.default_rng(8)
    words, numbers = bytes_of((13, slices, 16, 4), largest, 0x77), asked(1, 8 * slices, largest)
    scales, start, size = generator.random((13, 16), np.float32), np.array([-5], np.int32), np.array([0.5], np.float32)
    order = np.resize(generator.permutation(13)[:10], many)
    lying = np.zeros((many + ahead, listed.LISTED), np.int64)
    lying[:many, 0] = words.ctypes.data + order * words[0].nbytes
    lying[:many, 1] = scales.ctypes.data + order * scales[0].nbytes
    found = np.full((many + 1, 16), -7, np.float32)
    call(listed.listed_kernel(ahead, way=way), lying, many, slices, numbers, start, size, found)
    nibbles = np.stack((words & 15, words >> 4), axis=-2).astype(np.int64) ^ 8  # (tiles, slices, lanes, halves, bytes)
    sums = start[0] + np.einsum("tslhb,shb->tl", nibbles, numbers.astype(np.int64).reshape(slices, 2, 4))
    expected = sums.astype(np.float32) * (scales * size)
    assert np.array_equal(found[:many], expected[order])
    assert (found[many:] == -7).all()


@WAYS
@LARGEST
@pytest.mark.parametrize("queries", [1, 2, 4, 8])
@pytest.mark.parametrize("groups", [1, 7])
def test_rows_by_weights(way: Any, largest: bool, queries: int, groups: int) -> None:
    """Of 11 slices 8 are weighed with one scale and 3 with the next one."""
    words, weights = bytes_of((11, groups, 16, 4), largest, 0x77), asked(queries, 128, largest)
    starts, sizes = np.arange(32 * queries, dtype=np.int32).reshape(queries, 32), np.ones((queries, 32), np.float32)
    found = np.ones((queries, groups, 16), np.float32)
    kernel = four_bits.channels_kernel(queries, way=way)
    call(kernel, words, groups, 11, 8, weights, starts, sizes, 128, found, 64 * groups)
    nibbles = np.stack((words & 15, words >> 4), axis=-2).astype(np.int64) ^ 8  # (slices, groups, lanes, halves, bytes)
    factors = weights.astype(np.int64)[:, :88].reshape(queries, 11, 2, 4)
    sums = np.einsum("sglhb,qshb->qgl", nibbles, factors)
    assert np.array_equal(found, 1 + starts[:, :2].sum(1)[:, None, None] + sums)


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        ("avx512vnni", ["vpdpbusd", "%zmm"]),
        ("avxvnni", ["vpdpbusd", "%ymm"]),
        ("avx512bw", ["vpmaddubsw", "vpmaddwd", "%zmm"]),
        ("avx2", ["vpmaddubsw", "vpmaddwd", "%ymm"]),
    ],
)
def test_other_processors_have_the_instructions_that_kernels_ask_for(feature: str, expected: list[str]) -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module, whole = ir.Module(), ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [whole] * 3), "products")
    builder, (words, count, to) = ir.IRBuilder(function.append_basic_block()), function.args
    sums = products.Sums(builder, 1, 15, products.WAYS[feature])
    sums.begin([lanes.same(lanes.WHOLES, 0)])
    with sums.steps(count, 1) as step:
        word = lanes.load(builder, lanes.at(builder, words, step), lanes.WHOLES)
        sums.add(0, 0, word, word)
    lanes.store(builder, sums.end()[0], to)
    builder.ret_void()
    target = binding.Target.from_triple("x86_64-unknown-linux-gnu")
    machine = target.create_target_machine(features=f"+{feature}" + ",+avx512f" * ("512" in feature))
    code = machine.emit_assembly(binding.parse_assembly(str(module)))
    assert all(each in code for each in expected)
