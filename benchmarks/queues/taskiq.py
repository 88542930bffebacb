"""What taskiq's contestants have in common: the broker with its one task, and publishing with it.

Owns: its settings.
Leaves to others: the kinds of broker (taskiq_stream, taskiq_list), the module that its worker imports (taskiq_app).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks import servers, tally
from benchmarks.children import python
from benchmarks.peers import Command, Peer, Place
from benchmarks.queues import Publisher, asking, side_by_side, worker

#: Which class of taskiq_redis the worker takes.
BROKER = "BENCH_BROKER"


def broker(place: Place, kind: str) -> tuple[Any, Any]:
    """A broker of this class, and its one task."""
    import taskiq_redis

    made = getattr(taskiq_redis, kind)(f"redis://127.0.0.1:{place.ports[0]}/0")

    @made.task(task_name="bench.nothing")  # type: ignore[untyped-decorator]
    async def nothing() -> None:
        tally.add()

    return made, nothing


def peer(key: str, title: str, kind: str, what: str) -> Peer:
    """A contestant that differs in its broker only."""

    def serve(place: Place) -> Command:
        command = worker(
            place,
            python("taskiq", "worker", "benchmarks.queues.taskiq_app:broker", "--workers=1", "--log-level=WARNING"),
        )
        return Command(command.name, command.arguments, env={**command.env, BROKER: kind})

    return Peer(
        key=key,
        title=title,
        how=f"{kind}, {what}; one worker process, uvloop, no result backend; Redis with appendfsync everysec",
        modules=("taskiq", "taskiq_redis", "redis", "hiredis"),
        programs=("redis-server",),
        install="pip install taskiq taskiq-redis 'redis[hiredis]' && apt-get install redis-server",
        servers=lambda place: [servers.redis(place, "everysec")],
        answering=serve,
        asking=asking(key),
        package="taskiq",
    )


@asynccontextmanager
async def publisher(place: Place, kind: str) -> AsyncIterator[Publisher]:
    """A client with a broker of this class."""
    made, nothing = broker(place, kind)
    await made.startup()
    yield Publisher(nothing.kiq, side_by_side(nothing.kiq))
    await made.shutdown()
