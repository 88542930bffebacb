"""The contestants that run tasks: one small file each, of the shape of `peers`.

Owns: the list, what their workers find in the environment, and their client process.
Leaves to others: the shape (peers), their servers (servers), driving them (tasks_host), counting (tally).

A contestant's file imports what it needs inside its functions, so that one that is not installed can still be named.
It has:
    PEER                     what it is called, how it is run, what it needs
    connect(place)           an asynchronous context that yields a Publisher
The worker of each runs one task, "bench.nothing", that counts itself and does nothing else.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import tally
from benchmarks.children import python
from benchmarks.peers import Command, Place, Roster

ROSTER = Roster("benchmarks.queues", ("mesh", "taskiq_stream", "taskiq_list", "celery_solo", "celery_prefork"))

#: Where the worker of a contestant finds its place.
PLACE = "BENCH_PLACE"
#: Callers side by side where a contestant publishes with asyncio; with taskiq, 16 to 256 of them differ by noise.
CALLERS = 64


@dataclass(frozen=True)
class Publisher:
    """A connected client.

    Attributes:
        one: publishes a task; returns when the contestant has confirmed it as it does.
        many: publishes so many, as fast as the contestant allows with a bounded number under way.
    """

    one: Callable[[], Awaitable[Any]]
    many: Callable[[int], Awaitable[Any]]


def side_by_side(one: Callable[[], Awaitable[Any]], callers: int = CALLERS) -> Callable[[int], Awaitable[None]]:
    """`many` for a contestant whose `one` may be awaited many times at once."""

    async def many(count: int) -> None:
        left = iter(range(count))

        async def caller() -> None:
            for _ in left:
                await one()

        await asyncio.gather(*(caller() for _ in range(callers)))

    return many


def worker(place: Place, arguments: list[str]) -> Command:
    """The worker process of a contestant."""
    return Command("worker", arguments, env={PLACE: place.as_argument(), tally.VARIABLE: str(place.directory)})


def place_of_worker() -> Place:
    """Asked by the modules that a contestant's own command imports."""
    return Place.from_argument(os.environ[PLACE])


def asking(key: str) -> Callable[[Place], Command]:
    """The client process of one contestant."""
    return lambda place: Command("client", python("benchmarks.tasks_host", key, place.as_argument()))
