"""aiozmq.rpc, whose attribute handler is the nearest to a service with methods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.drive import Call
from benchmarks.peers import Peer, Place

PEER = Peer(
    key="aiozmq_rpc",
    title="aiozmq.rpc",
    how="serve_rpc and connect_rpc, its own msgpack, ipc",
    modules=("aiozmq", "msgpack"),
    install="pip install aiozmq msgpack",
    package="aiozmq",
)


async def serve(place: Place) -> None:
    import aiozmq.rpc

    class Echo(aiozmq.rpc.AttrHandler):  # type: ignore[misc]
        @aiozmq.rpc.method  # type: ignore[untyped-decorator]
        async def echo(self, argument: Any) -> Any:
            return argument

    await aiozmq.rpc.serve_rpc(Echo(), bind=place.ipc("aiozmq"))
    await asyncio.Event().wait()


@asynccontextmanager
async def connect(place: Place) -> AsyncIterator[dict[str, Call]]:
    import aiozmq.rpc

    client = await aiozmq.rpc.connect_rpc(connect=place.ipc("aiozmq"))

    async def call(body: Any) -> Any:
        return await client.call.echo(body)

    yield {"small": call, "big": call}
    client.close()
    await client.wait_closed()
