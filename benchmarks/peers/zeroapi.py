"""zeroapi (imported as `zero`): typed functions over its ZeroMQ protocol, one worker process behind its broker."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.drive import Call
from benchmarks.peers import Peer, Place

PEER = Peer(
    key="zeroapi",
    title="zeroapi",
    how="ZeroServer with one worker process, AsyncZeroClient, msgspec, tcp on the loopback",
    modules=("zero",),
    install="pip install zeroapi",
    package="zeroapi",
)


# At the top of the module: its worker process finds them by name.
async def echo(argument: dict) -> dict:  # type: ignore[type-arg]  # zeroapi looks for the bare types
    return argument


async def blob(argument: bytes) -> bytes:
    return argument


def serve(place: Place) -> None:
    import zero

    logging.disable(logging.WARNING)
    server = zero.ZeroServer(host="127.0.0.1", port=place.ports[0])
    server.register_rpc(echo)
    server.register_rpc(blob)
    server.run(workers=1)


@asynccontextmanager
async def connect(place: Place) -> AsyncIterator[dict[str, Call]]:
    import zero

    client = zero.AsyncZeroClient("127.0.0.1", place.ports[0], default_timeout=10_000)

    async def small(body: dict) -> object:  # type: ignore[type-arg]
        return await client.call("echo", body)

    async def big(body: bytes) -> object:
        return await client.call("blob", body, return_type=bytes)

    yield {"small": small, "big": big}
    client.close()
