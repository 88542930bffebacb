"""nats-py request and reply through a nats-server that is started here, on a free port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack

from benchmarks.drive import Call
from benchmarks.peers import Command, Peer, Place


def _server(place: Place) -> list[Command]:
    # A request of 1 MiB and its envelope is over the default limit of 1 MiB.
    config = place.directory / "nats.conf"
    config.write_text(f"host: 127.0.0.1\nport: {place.ports[0]}\nmax_payload: 8MB\n")
    return [Command("nats-server", ["nats-server", "-c", str(config)], port=place.ports[0])]


PEER = Peer(
    key="nats_py",
    title="nats-py",
    how="request and reply through nats-server, msgpack, tcp on the loopback",
    modules=("nats",),
    programs=("nats-server",),
    install="pip install nats-py && apt-get install nats-server",
    servers=_server,
    package="nats-py",
)


async def serve(place: Place) -> None:
    import nats

    connection = await nats.connect(f"nats://127.0.0.1:{place.ports[0]}")

    async def echo(message: Any) -> None:
        await message.respond(msgpack.packb(msgpack.unpackb(message.data)))

    await connection.subscribe("echo.echo", queue="echo", cb=echo)
    await asyncio.Event().wait()


@asynccontextmanager
async def connect(place: Place) -> AsyncIterator[dict[str, Call]]:
    import nats

    connection = await nats.connect(f"nats://127.0.0.1:{place.ports[0]}")

    async def call(body: Any) -> Any:
        answer = await connection.request("echo.echo", msgpack.packb(body), timeout=10)
        return msgpack.unpackb(answer.data)

    yield {"small": call, "big": call}
    await connection.close()
