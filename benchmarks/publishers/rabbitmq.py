"""RabbitMQ through aio-pika: a durable queue, persistent messages, publisher confirms."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgpack

from benchmarks import servers
from benchmarks.peers import Peer, Place
from benchmarks.publishers import Publisher, asking

QUEUE = "bench"


def peer(key: str, title: str, queue: str) -> Peer:
    """A contestant that differs in its queue only."""
    return Peer(
        key=key,
        title=title,
        how=f"aio-pika, {queue}, persistent messages, publisher confirms, tcp on the loopback",
        modules=("aio_pika",),
        programs=("rabbitmq-server", "epmd"),
        install="pip install aio-pika && apt-get install rabbitmq-server",
        servers=lambda place: [servers.epmd(place)],
        answering=servers.rabbitmq,
        asking=asking(key),
        package="aio-pika",
    )


PEER = peer("rabbitmq", "RabbitMQ", "a durable classic queue (its default)")


@asynccontextmanager
async def publisher(place: Place, arguments: dict[str, Any]) -> AsyncIterator[Publisher]:
    """Connect, declare the queue with these arguments."""
    import aio_pika

    connection = await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{place.ports[0]}/")
    channel = await connection.channel(publisher_confirms=True)
    await channel.declare_queue(QUEUE, durable=True, arguments=arguments)

    async def one(body: Any) -> None:
        message = aio_pika.Message(msgpack.packb(body), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key=QUEUE)

    async def stored() -> int:
        queue = await channel.declare_queue(QUEUE, passive=True)
        return int(queue.declaration_result.message_count or 0)

    # AMQP has no batch: its confirms are what makes many at once cheap, and the callers side by side use them.
    yield Publisher(one, stored=stored)
    await connection.close()


def connect(place: Place) -> AbstractAsyncContextManager[Publisher]:
    return publisher(place, {})
