"""NATS JetStream through nats-py, a stream in files, as nats-server comes: it writes each message and syncs later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgpack

from benchmarks import servers
from benchmarks.peers import Peer, Place
from benchmarks.publishers import Publisher, asking


def peer(key: str, title: str, sync: str, synced: bool, programs: tuple[str, ...] = ()) -> Peer:
    """A contestant that differs in when the disk is waited for."""
    return Peer(
        key=key,
        title=title,
        how=f"nats-py, file storage, one replica, tcp on the loopback; {sync}",
        modules=("nats",),
        programs=("nats-server", *programs),
        install="pip install nats-py && apt-get install nats-server",
        answering=lambda place: servers.jetstream(place, synced),
        asking=asking(key),
        package="nats-py",
    )


PEER = peer(
    "jetstream",
    "JetStream",
    "nats-server's default: confirmed when written, synced every 2 minutes, so a power cut loses what was confirmed",
    synced=False,
)


@asynccontextmanager
async def connect(place: Place) -> AsyncIterator[Publisher]:
    import nats

    connection = await nats.connect(f"nats://127.0.0.1:{place.ports[0]}")
    stream = connection.jetstream()
    await stream.add_stream(name="BENCH", subjects=["bench.*"], storage="file")

    async def one(body: Any) -> None:
        await stream.publish("bench.nothing", msgpack.packb(body))

    async def batch(bodies: Sequence[Any]) -> None:
        await asyncio.gather(*[await stream.publish_async("bench.nothing", msgpack.packb(body)) for body in bodies])

    async def stored() -> int:
        return int((await stream.stream_info("BENCH")).state.messages)

    yield Publisher(one, batch, stored)
    await connection.close()
