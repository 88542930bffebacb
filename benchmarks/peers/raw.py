"""The bare limit: plain ZeroMQ sockets on the loop's reader, msgpack, and nothing else.

What one loop tick produced for a peer travels as one frame of MessagePack arrays. There are no deadlines, no errors,
no cancelling, no limits, no types and no reconnecting: what mesh costs on top of this is what its features cost.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgpack

from benchmarks.drive import Call
from benchmarks.peers import Peer, Place

PEER = Peer(
    key="raw",
    title="raw coalesced loop",
    how="plain pyzmq on the loop's reader, one frame per tick and peer, msgpack, ipc; no features",
    modules=("zmq", "msgpack"),
    install="pip install pyzmq msgpack",
    package="pyzmq",
)

#: Frames read before the loop gets its turn again.
BUDGET = 64


class Wire:
    """A socket driven by its file descriptor; `heard(peer, message)` is told of every message."""

    def __init__(self, socket: Any, heard: Callable[[bytes, list[Any]], None], routed: bool) -> None:
        import zmq

        self._socket, self._heard, self._routed = socket, heard, routed
        self._again, self._now = zmq.Again, zmq.NOBLOCK
        self._waiting: dict[bytes, list[tuple[Any, ...]]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(socket.getsockopt(zmq.FD), self._read)
        self._loop.call_soon(self._read)

    def tell(self, peer: bytes, message: tuple[Any, ...]) -> None:
        """Send with all else that this tick has for that peer."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        queue = self._waiting.get(peer)
        if queue is None:
            self._waiting[peer] = [message]
        else:
            queue.append(message)
        # A big body gains nothing by company, and the other side may work on it while the next one is packed.
        if type(message[-1]) is bytes:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for peer, messages in waiting.items():
            frame = msgpack.packb(messages)
            if self._routed:
                self._socket.send_multipart((peer, frame), self._now)
            else:
                self._socket.send(frame, self._now)
        # A send takes the edge of the descriptor with it: what came meanwhile would never be told of.
        self._read()

    def _read(self) -> None:
        socket, heard, now = self._socket, self._heard, self._now
        try:
            for _ in range(BUDGET):
                peer = socket.recv(now) if self._routed else b""
                for message in msgpack.unpackb(socket.recv(now)):
                    heard(peer, message)
        except self._again:
            return
        self._loop.call_soon(self._read)


def _open(kind: str) -> Any:
    import zmq

    socket: Any = zmq.Context.instance().socket(getattr(zmq, kind))
    socket.set_hwm(100_000)
    socket.linger = 0
    return socket


async def _echo(argument: Any) -> Any:
    return argument


async def serve(place: Place) -> None:
    socket = _open("ROUTER")
    socket.bind(place.ipc("raw"))
    loop = asyncio.get_running_loop()
    methods = {"echo.echo": _echo}

    async def answer(peer: bytes, number: int, name: str, argument: Any) -> None:
        wire.tell(peer, (number, await methods[name](argument)))

    def heard(peer: bytes, message: list[Any]) -> None:
        # The loop holds a task only weakly; these end within the tick, and a raw loop keeps no book of them.
        loop.create_task(answer(peer, *message))  # noqa: RUF006

    wire = Wire(socket, heard, routed=True)
    await asyncio.Event().wait()


@asynccontextmanager
async def connect(place: Place) -> AsyncIterator[dict[str, Call]]:
    socket = _open("DEALER")
    socket.connect(place.ipc("raw"))
    loop, numbers = asyncio.get_running_loop(), itertools.count()
    waiting: dict[int, asyncio.Future[Any]] = {}

    def heard(_: bytes, message: list[Any]) -> None:
        future = waiting.pop(message[0])
        if not future.cancelled():
            future.set_result(message[1])

    wire = Wire(socket, heard, routed=False)

    async def call(body: Any) -> Any:
        number, future = next(numbers), loop.create_future()
        waiting[number] = future
        wire.tell(b"", (number, "echo.echo", body))
        return await future

    yield {"small": call, "big": call}
