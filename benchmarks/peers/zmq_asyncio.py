"""zmq.asyncio as its documentation shows it: awaitable sockets, one message per call."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack

from benchmarks.drive import Call
from benchmarks.peers import Peer, Place

PEER = Peer(
    key="zmq_asyncio",
    title="zmq.asyncio",
    how="ROUTER and DEALER of zmq.asyncio, one message per call, msgpack, ipc",
    modules=("zmq", "msgpack"),
    install="pip install pyzmq msgpack",
    package="pyzmq",
)


async def serve(place: Place) -> None:
    import zmq.asyncio

    socket = zmq.asyncio.Context().socket(zmq.ROUTER)
    # A ROUTER drops what goes over the mark, without a word: 1,000 callers would wait forever.
    socket.set_hwm(100_000)
    socket.bind(place.ipc("zmq"))
    busy: set[asyncio.Task[None]] = set()

    async def answer(peer: bytes, number: bytes, request: bytes) -> None:
        _, argument = msgpack.unpackb(request)
        await socket.send_multipart([peer, number, msgpack.packb(argument)])

    while True:
        task = asyncio.create_task(answer(*await socket.recv_multipart()))
        busy.add(task)
        task.add_done_callback(busy.discard)


@asynccontextmanager
async def connect(place: Place) -> AsyncIterator[dict[str, Call]]:
    import zmq.asyncio

    socket = zmq.asyncio.Context().socket(zmq.DEALER)
    socket.linger = 0
    socket.set_hwm(100_000)
    socket.connect(place.ipc("zmq"))
    loop, numbers = asyncio.get_running_loop(), itertools.count()
    waiting: dict[bytes, asyncio.Future[Any]] = {}

    async def listen() -> None:
        while True:
            number, answer = await socket.recv_multipart()
            future = waiting.pop(number)
            if not future.cancelled():
                future.set_result(msgpack.unpackb(answer))

    async def call(body: Any) -> Any:
        number, future = next(numbers).to_bytes(8, "big"), loop.create_future()
        waiting[number] = future
        await socket.send_multipart([number, msgpack.packb(("echo.echo", body))])
        return await future

    listening = asyncio.create_task(listen())
    try:
        yield {"small": call, "big": call}
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
