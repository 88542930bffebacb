"""The items that a caller sends with one request: a client stream, from the caller's iterator to the link.

Owns: the task that iterates, and its flow control.
Leaves to others: encoding the items (sources), the handler's half (inbound), the request (request), choosing an
instance (client).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import copy_context
from typing import Any, Protocol

from mesh.errors import TooLarge
from mesh.protocol.codec import Buffer
from mesh.protocol.stream import Outflow

#: The items of a client stream, encoded: bodies with their encodings.
Source = AsyncIterator[tuple[Buffer, int]]


class Flow(Protocol):
    """The request that the items belong to."""

    id: int
    order: Any

    def done(self) -> bool: ...
    def source_failed(self, error: Exception) -> None: ...


class Outbound:
    """The caller's half of one client stream.

    Nothing is read from the iterator before the handler begins to read, so a request that an instance refuses can be
    sent to another one.

    Attributes:
        begun: whether an item may have been taken from the iterator.
    """

    __slots__ = ("_context", "_credited", "_flow", "_outflow", "_source", "_task", "begun")

    def __init__(self, flow: Flow, source: Source) -> None:
        self.begun = False
        self._flow = flow
        self._source = source
        self._outflow = Outflow(0)
        self._credited: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        # The iterator runs in the context of the code that makes the call, not in that of the link.
        self._context = copy_context()

    def grant(self, items: int) -> None:
        """The handler reads: it takes `items` more.

        Raises:
            ProtocolViolation: the grant is not legal.
        """
        self._outflow.grant(items)
        if self._task is None:
            self.begun = True
            self._task = asyncio.get_running_loop().create_task(
                self._send(), name=f"mesh.outbound {self._flow.order.route.target}", context=self._context
            )
        elif self._credited is not None and not self._credited.done():
            self._credited.set_result(None)

    def stop(self) -> None:
        """The request has ended: take no more items, and close the iterator."""
        if self._task is not None and not self._task.done() and self._task is not asyncio.current_task():
            self._task.cancel()

    async def _send(self) -> None:
        flow = self._flow
        peer = flow.order.handle.peer
        most = peer.caller.max_body
        source = self._source
        try:
            while True:
                while not self._outflow.take():
                    self._credited = asyncio.get_running_loop().create_future()
                    await self._credited
                try:
                    body, encoding = await anext(source)
                except StopAsyncIteration:
                    if not flow.done():
                        peer.end(flow.id)
                    return
                if flow.done():
                    return
                if len(body) > most:
                    target = flow.order.route.target
                    raise TooLarge(f"{target}: an item of {len(body)} bytes; its workers accept at most {most}")
                peer.item(flow.id, body, encoding)
        except Exception as exc:
            if not flow.done():
                flow.source_failed(exc)
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()
