"""How threads share the jobs of a compiled call without a hand-over through Python, which takes longer than a job.

A *box* belongs to a team: words that lie in cache lines of their own. Its leader puts a job into it and opens it;
whoever stands by joins, and all claim pieces of the job until none is left. Then the leader closes the box, waits for
those who joined, and puts the next job in. A helper who is late, or whom the system has taken off its core, joins
nothing, and the leader does all of the work. A helper with nothing to join goes away after a while.

Each thread has a part of a job's numbers for itself, for what lies side by side in memory is read faster by one; who
is done with it claims from the others' parts. A job of one piece is done by the leader alone, and nobody is told.

A *job* is six numbers: the address of a compiled function, the address of its arguments, the numbers that it is to be
done for (first, last), how many of them to claim at once, and the address of a function that asks for what the first of
some numbers reads, or 0. Both functions take the arguments' address and a range of numbers. Who is done with a job that
reads asks for where its part of the next one begins, so that memory has work while threads wait for each other.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache.compiling import compiled
from cache.lane_kernels import I32, I64

LINE = 64
STATE, DONE, AWAKE, JOB, END, PARTS = (LINE * i for i in range(6))
"""Bytes to the words of a box: who joined, or CLOSED; how many of those who joined are done; how many stand by; where
the job is; where the last one ends; and of each thread's part the next number to claim, and that after its last one."""
CLOSED = 1 << 40
JOB_BYTES = 48
ASK = 40
"""Bytes to the function that asks."""
PAUSES = 16
"""Between two looks into a box: a third of a microsecond."""
X86 = platform.machine() in ("x86_64", "AMD64")


def word(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, I64.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def read(context: Any, address: Any) -> Any:
    """A word, and after it whatever was written before it was."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.load_atomic(word(b, arguments[0]), "acquire", 8)

    return types.intp(types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def write(context: Any, address: Any, value: Any) -> Any:
    """Write a word after everything that was written before."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        b.store_atomic(arguments[1], word(b, arguments[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def add(context: Any, address: Any, value: Any) -> Any:
    """Add to a word; what it was before."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.atomic_rmw("add", word(b, arguments[0]), arguments[1], "seq_cst")

    return types.intp(types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def replace(context: Any, address: Any, old: Any, new: Any) -> Any:
    """Write a word if it is still the old one, and tell whether it was."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        address, old, new = arguments
        return b.extract_value(b.cmpxchg(word(b, address), old, new, "seq_cst", "seq_cst"), 1)

    return types.boolean(types.intp, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def breathe(context: Any) -> Any:
    """Wait a moment, and let others onto this core."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        if X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            pause = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.sse2.pause")
            for _ in range(PAUSES):
                b.call(pause, [])
        b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(I32, []), "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic  # type: ignore[untyped-decorator]
def call(context: Any, function: Any, arguments: Any, first: Any, last: Any) -> Any:
    """Call a job's function for numbers first, …, last - 1."""

    def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
        b.call(b.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@compiled
def begins(job: int, part: int, threads: int) -> int:
    """The first number of a thread's part: parts are of whole pieces."""
    first, last, piece = read(job + 16), read(job + 24), read(job + 32)
    pieces = (last - first + piece - 1) // piece
    return min(last, first + pieces * part // threads * piece)


@compiled
def take_part(box: int, mine: int, threads: int) -> None:
    """Claim pieces of the job in the box, and do them, until none is left; those of one's own part first."""
    job = read(box + JOB)
    function, arguments, piece = read(job), read(job + 8), read(job + 32)
    for turn in range(threads):
        part = box + PARTS + LINE * ((mine + turn) % threads)
        last = read(part + 8)
        while read(part) < last:
            start = add(part, piece)
            if start < last:
                call(function, arguments, start, min(start + piece, last))
    ask_ahead(box, job, mine, threads)


@compiled
def ask_ahead(box: int, job: int, mine: int, threads: int) -> None:
    """Ask for where one's part begins of the next job that reads, if this one does."""
    following, end = job + JOB_BYTES, read(box + END)
    if read(job + ASK):
        while following < end and not read(following + ASK):
            following += JOB_BYTES
        if following < end:
            start = begins(following, mine, threads)
            call(read(following + ASK), read(following + 8), start, read(following + 24))


@compiled
def lead(box: int, jobs: int, count: int, threads: int) -> None:
    """Do jobs one after the other, with whoever stands by."""
    write(box + END, jobs + count * JOB_BYTES)
    for number in range(count):
        job = jobs + number * JOB_BYTES
        first, last = read(job + 16), read(job + 24)
        if threads == 1 or last - first <= read(job + 32):
            call(read(job), read(job + 8), first, last)
            ask_ahead(box, job, 0, threads)
            continue
        for part in range(threads):
            write(box + PARTS + LINE * part, begins(job, part, threads))
            write(box + PARTS + LINE * part + 8, begins(job, part + 1, threads))
        write(box + JOB, job)
        write(box + DONE, 0)
        write(box + STATE, 0)
        take_part(box, 0, threads)
        joined = add(box + STATE, CLOSED)
        while read(box + DONE) < joined:
            breathe()


@compiled
def anything(box: int, threads: int) -> bool:
    """Whether a piece is left to claim."""
    left = 0
    for part in range(threads):
        left += max(0, read(box + PARTS + LINE * part + 8) - read(box + PARTS + LINE * part))
    return left > 0


@compiled
def call_up(box: int, helpers: int) -> int:
    """How many helpers have to be woken for all to stand by; they count as such from now on."""
    missing = helpers - read(box + AWAKE)
    add(box + AWAKE, missing)
    return missing


@compiled
def stand_by(box: int, patience: int, threads: int) -> None:
    """Take part in what comes, until nothing came for so many looks."""
    looks = 0
    while looks < patience:
        state = read(box + STATE)
        if state < CLOSED and anything(box, threads) and replace(box + STATE, state, state + 1):
            take_part(box, state + 1, threads)
            add(box + DONE, 1)
            looks = 0
        else:
            breathe()
            looks += 1
    add(box + AWAKE, -1)


def warm_up() -> None:
    """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
    words = np.zeros((PARTS + 2 * LINE) // 8, np.int64)
    box = words.ctypes.data
    call_up(box, 0)
    stand_by(box, 0, 1)
    lead(box, 0, 0, 1)
