"""The closed loop: so many callers, each sending its next call when the last one is answered.

Owns: how a load is put on a contestant and how its figures are worked out. Every Python contestant is driven by this
    one function; `peers/moleculer/client.js` says the same in JavaScript.
Leaves to others: what a call is (peers), which loads there are (loads).

One pass gives throughput and latency: a call's end is the next one's beginning, so that the clock is read once per
call. That costs 0.1 µs, the same for all.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypedDict

Call = Callable[[Any], Awaitable[Any]]


class Figures(TypedDict):
    """What one load on one contestant gave; times in microseconds."""

    calls: int
    calls_per_s: float
    p50_us: float
    p99_us: float
    cpu_us: float


def rank(ordered: Sequence[float], q: float) -> float:
    """The value below or at which a share `q` of `ordered` (ascending, not empty) lies: nearest rank."""
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def summary(took: Sequence[float], seconds: float, cpu_s: float) -> Figures:
    """Figures of `len(took)` calls that took so many seconds each, over `seconds` of wall clock."""
    ordered = sorted(took)
    calls = len(ordered)
    return {
        "calls": calls,
        "calls_per_s": calls / seconds,
        "p50_us": rank(ordered, 0.5) * 1e6,
        "p99_us": rank(ordered, 0.99) * 1e6,
        "cpu_us": cpu_s / calls * 1e6,
    }


async def drive(call: Call, body: Any, callers: int, seconds: float) -> Figures:
    """Keep `callers` calls of `call(body)` under way for `seconds`; every call begun is awaited.

    `cpu_us` is this process's processor time per call, all its threads.
    """
    clock = time.perf_counter
    took: list[float] = []
    cpu = time.process_time()
    begin = clock()
    end = begin + seconds

    async def caller() -> None:
        add = took.append
        at = clock()
        while at < end:
            await call(body)
            now = clock()
            add(now - at)
            at = now

    await asyncio.gather(*(caller() for _ in range(callers)))
    return summary(took, clock() - begin, time.process_time() - cpu)
