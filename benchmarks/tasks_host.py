"""A publisher of tasks as a process: `python -m benchmarks.tasks_host KEY PLACE`.

Owns: the two loads of `tasks` and their lines of JSON.
Leaves to others: the contestant and its worker (queues), counting what ran (tally).

It writes `{"ready": true}` once a task has run, then answers each line `{"verb", "seconds", "warm_s"}` with figures:
    many    so many tasks as take about `seconds`, from the first publish to the end of the last run
    one     one task at a time, from before its publish to the end of its run
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict

from benchmarks.drive import Figures, summary
from benchmarks.host import lines, run, say
from benchmarks.peers import Place
from benchmarks.queues import ROSTER, Publisher
from benchmarks.tally import Tallies

#: What a contestant may take between two tasks before it is called stuck.
STUCK_S = 20.0
#: Enough to know a contestant's speed within a factor of two.
FIRST = 200
#: Of tasks one at a time, however long they take: one that waits two seconds for a busy disk, as Redis may, must not be
#: all that a short load sees.
FEWEST = 50


class Flood(TypedDict):
    """What many tasks gave: `published_per_s` is the publisher's speed alone, `cpu_us` its processor time per task."""

    tasks: int
    tasks_per_s: float
    published_per_s: float
    cpu_us: float


async def _ran(tallies: Tallies, count: int) -> float:
    """The instant at which the last of `count` tasks had run; SystemExit when they stop running, or too many did."""
    seen, moved_at = tallies.read()[0], time.monotonic()
    while True:
        now, ran_at = tallies.read()
        if now > count:
            raise SystemExit(f"{count} tasks were published and {now} ran")
        if now == count:
            return ran_at
        if now > seen:
            seen, moved_at = now, time.monotonic()
        elif time.monotonic() - moved_at > STUCK_S:
            raise SystemExit(f"{count} tasks were published, {now} ran, and none for {STUCK_S:g} s")
        # The worker writes the instant: how late it is read changes nothing.
        await asyncio.sleep(0.001)


async def _flood(publisher: Publisher, tallies: Tallies, count: int) -> Flood:
    before, _ = tallies.read()
    cpu, begin = time.process_time(), time.monotonic()
    await publisher.many(count)
    published = time.monotonic()
    spent_cpu = time.process_time() - cpu
    end = await _ran(tallies, before + count)
    return {
        "tasks": count,
        "tasks_per_s": count / (end - begin),
        "published_per_s": count / (published - begin),
        "cpu_us": spent_cpu / count * 1e6,
    }


async def _many(publisher: Publisher, tallies: Tallies, question: dict[str, Any]) -> Flood:
    """Find out how fast it is, then as many tasks as take the time that was asked for."""
    speed = (await _flood(publisher, tallies, FIRST))["tasks_per_s"]
    speed = (await _flood(publisher, tallies, max(FIRST, round(speed * question["warm_s"]))))["tasks_per_s"]
    gc.collect()
    return await _flood(publisher, tallies, max(FIRST, round(speed * question["seconds"])))


async def _one(publisher: Publisher, tallies: Tallies, question: dict[str, Any]) -> Figures:
    warm_until = time.monotonic() + question["warm_s"]
    while time.monotonic() < warm_until:
        await _flood(publisher, tallies, 1)
    took: list[float] = []
    cpu, begin = time.process_time(), time.monotonic()
    while time.monotonic() - begin < question["seconds"] or len(took) < FEWEST:
        before, _ = tallies.read()
        published_at = time.monotonic()
        await publisher.one()
        took.append(await _ran(tallies, before + 1) - published_at)
    return summary(took, time.monotonic() - begin, time.process_time() - cpu)


VERBS: dict[str, Callable[[Publisher, Tallies, dict[str, Any]], Awaitable[Figures | Flood]]] = {
    "many": _many,
    "one": _one,
}


async def _first(publisher: Publisher, tallies: Tallies) -> None:
    """Until a task has run: whoever it needs is up then."""
    async with asyncio.timeout(30):
        while not tallies.read()[0]:
            try:
                await asyncio.wait_for(publisher.one(), 10)
            except Exception:
                # Not up yet. A contestant that is broken shows when the time is over.
                await asyncio.sleep(0.05)
            else:
                await _ran_at_all(tallies, 10)
    # One that was given up may have come through: let it run before anything is counted.
    await asyncio.sleep(0.2)


async def _ran_at_all(tallies: Tallies, timeout: float) -> None:
    end = time.monotonic() + timeout
    while not tallies.read()[0] and time.monotonic() < end:  # noqa: ASYNC110 - another process writes, there is no event
        await asyncio.sleep(0.01)


async def _ask(key: str, place: Place) -> None:
    tallies = Tallies(place.directory)
    async with ROSTER.module(key).connect(place) as publisher:
        await _first(publisher, tallies)
        say(ready=True)
        stdin = await lines()
        while line := await stdin.readline():
            question = json.loads(line)
            say(**await VERBS[question["verb"]](publisher, tallies, question))


def main(argv: list[str]) -> None:
    key, where = argv
    run(_ask(key, Place.from_argument(where)), ROSTER.module(key).PEER.uvloop)


if __name__ == "__main__":
    main(sys.argv[1:])
