"""Redis Streams: XADD to an append-only file that is synced before the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgpack

from benchmarks import servers
from benchmarks.peers import Peer, Place
from benchmarks.publishers import Publisher, asking

PEER = Peer(
    key="redis_stream",
    title="Redis XADD",
    how="redis-py, hiredis, a connection for each caller, appendfsync always, tcp on the loopback; batch: a pipeline",
    modules=("redis", "hiredis"),
    programs=("redis-server",),
    install="pip install 'redis[hiredis]' && apt-get install redis-server",
    answering=lambda place: servers.redis(place, "always"),
    asking=asking("redis_stream"),
    package="redis",
)


@asynccontextmanager
async def connect(place: Place) -> AsyncIterator[Publisher]:
    import redis.asyncio

    # A connection for each caller: side by side they share one sync of the file.
    client = redis.asyncio.Redis(port=place.ports[0], max_connections=1_000)

    async def one(body: Any) -> None:
        await client.xadd("bench", {"body": msgpack.packb(body)})

    async def batch(bodies: Sequence[Any]) -> None:
        pipeline = client.pipeline(transaction=False)
        for body in bodies:
            pipeline.xadd("bench", {"body": msgpack.packb(body)})
        await pipeline.execute()

    async def stored() -> int:
        return int(await client.xlen("bench"))

    yield Publisher(one, batch, stored)
    await client.aclose()
