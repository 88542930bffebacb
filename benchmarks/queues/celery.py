"""What Celery's contestants have in common: the application, and publishing with it.

Owns: its settings, the best that its documentation offers for many small tasks.
Leaves to others: the pools (celery_solo, celery_prefork), the module that its worker imports (celery_app).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks import servers, tally
from benchmarks.children import python
from benchmarks.peers import Peer, Place
from benchmarks.queues import Publisher, asking, worker

#: Workers that talk to each other, and events for monitors, cost and serve nobody here.
QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=warning")


def application(place: Place) -> tuple[Any, Any]:
    """The application and its one task."""
    import celery  # type: ignore[import-untyped]

    app = celery.Celery("bench", broker=f"redis://127.0.0.1:{place.ports[0]}/0")
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        worker_disable_rate_limits=True,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
    )

    @app.task(name="bench.nothing", ignore_result=True, acks_late=True)  # type: ignore[untyped-decorator]
    def nothing() -> None:
        tally.add()

    return app, nothing


def peer(key: str, title: str, pool: str, *options: str) -> Peer:
    """A contestant that differs in its pool only."""
    return Peer(
        key=key,
        title=title,
        how=f"{pool}; Redis with appendfsync everysec, acks_late, results ignored, no gossip, mingle or events",
        modules=("celery", "redis", "hiredis"),
        programs=("redis-server",),
        install="pip install celery 'redis[hiredis]' && apt-get install redis-server",
        servers=lambda place: [servers.redis(place, "everysec")],
        answering=lambda place: worker(
            place, python("celery", "-A", "benchmarks.queues.celery_app", "worker", *options, *QUIET)
        ),
        asking=asking(key),
        package="celery",
    )


@asynccontextmanager
async def connect(place: Place) -> AsyncIterator[Publisher]:
    app, nothing = application(place)

    # Celery has no asyncio: it publishes one after the other, and the loop of this process waits for it.
    async def many(count: int) -> None:
        with app.producer_or_acquire() as producer:
            for _ in range(count):
                nothing.apply_async(producer=producer)

    async def one() -> None:
        await many(1)

    yield Publisher(one, many)
    app.close()
