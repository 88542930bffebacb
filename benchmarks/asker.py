"""A client of a mesh as a process: `python -m benchmarks.asker`, in the directory of that mesh.

Owns: what a client can be asked to do, one line of JSON each.
Leaves to others: which questions make a benchmark (events, fanout, instances, startup).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import mesh
from benchmarks.drive import drive, summary
from benchmarks.host import lines, run, say
from benchmarks.peers import SMALL

Question = dict[str, Any]


async def _wait(n: Any, question: Question) -> Question:
    """Until so many instances of a service are known."""
    async with asyncio.timeout(question["timeout"]):
        if question["instances"]:
            await n.wait_for(question["service"], timeout=question["timeout"])
        # The public face waits for one; a benchmark of many looks.
        while not _enough(n, question):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    return {"at": time.monotonic()}


def _enough(n: Any, question: Question) -> bool:
    known = len(n.table.instances(question["service"]))
    return known >= question["instances"] if question["instances"] else not known


async def _loop(call: Callable[[Any], Awaitable[Any]], question: Question) -> Question:
    await drive(call, SMALL, question["callers"], question["warm_s"])
    return dict(await drive(call, SMALL, question["callers"], question["seconds"]))


async def _call(n: Any, question: Question) -> Question:
    """The closed loop of calls."""
    return await _loop(lambda body: n.call("echo.echo", body), question)


async def _scatter(n: Any, question: Question) -> Question:
    """The closed loop of scatters; each must be answered by every instance."""

    async def scatter(body: Any) -> None:
        outcomes = await n.scatter("echo.echo", body)
        good = sum(outcome.error is None for outcome in outcomes)
        if good != question["instances"]:
            raise SystemExit(f"{good} of {question['instances']} instances answered")

    return await _loop(scatter, question)


async def _emit(n: Any, question: Question) -> Question:
    """Events as fast as the subscriber handles them, then one at a time."""
    await n.call("listener.reset")
    # Until the subscription has reached the publisher, events go nowhere, by design.
    async with asyncio.timeout(10):
        while not await n.call("listener.seen"):
            await n.emit("bench.tick", time.monotonic())
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    await n.call("listener.reset")
    emitted, seen = 0, 0
    begin = time.perf_counter()
    end = begin + question["seconds"]
    while time.perf_counter() < end:
        for _ in range(250):
            await n.emit("bench.tick", time.monotonic())
        emitted += 250
        # Publishing is without backpressure: never be further ahead than this.
        while emitted - seen > 1_000 and time.perf_counter() < end + 1:
            seen = await n.call("listener.seen")
    while seen < emitted and time.perf_counter() < end + 2:
        seen = await n.call("listener.seen")
    spent = time.perf_counter() - begin if seen == emitted else question["seconds"]
    await n.call("listener.reset")
    singles = question["singles"]
    for number in range(singles):
        await n.emit("bench.tick", time.monotonic())
        async with asyncio.timeout(5):
            while await n.call("listener.seen") <= number:
                pass
    took = await n.call("listener.took")
    figures = summary(took, 1.0, 0.0)
    return {
        "emitted": emitted,
        "lost": emitted - seen,
        "events_per_s": seen / spent,
        "p50_us": figures["p50_us"],
        "p99_us": figures["p99_us"],
    }


VERBS: dict[str, Callable[[Any, Question], Awaitable[Question]]] = {
    "wait": _wait,
    "call": _call,
    "scatter": _scatter,
    "emit": _emit,
}


async def main() -> None:
    async with mesh.connect() as n:
        say(ready=True)
        stdin = await lines()
        while line := await stdin.readline():
            question = json.loads(line)
            say(**await VERBS[question["verb"]](n, question))


if __name__ == "__main__":
    run(main(), uvloop=True)
