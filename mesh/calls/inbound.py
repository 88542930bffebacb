"""The items that a caller sends to one handler: a client stream, as its handler reads it.

Owns: the asynchronous iterator that a handler gets for its parameter `AsyncIterator[T]`, and its flow control.
Leaves to others: the caller's half (outbound), which messages are legal (protocol), running the handler (handling).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from mesh.errors import BadArguments, ProtocolViolation
from mesh.protocol.callee import Callee
from mesh.protocol.stream import Inflow
from mesh.transport.contract import Channel

#: Items that a caller may send ahead of the handler. Chunks of bodies have up to 256 KiB: 4 MiB for each upload.
WINDOW: Final = 16

Decode = Callable[[Any, int], Any]


class BadItem(BadArguments):
    """An item of a client stream does not have the annotated type. The handler gets the error; the caller caused it."""


class Conversation(Protocol):
    """The part of a caller's link that a client stream uses."""

    callee: Callee
    channel: Channel


class Inbound:
    """An asynchronous iterator over the items of one call, decoded.

    The caller gets its first credit when the handler begins to read: a handler that answers without reading receives
    nothing. When the caller fails or disconnects, the handler is cancelled, so an iteration that ends is complete.

    Raises, when iterated:
        BadItem: an item does not have the annotated type.
    """

    __slots__ = ("_call", "_conversation", "_decode", "_ended", "_inflow", "_items", "_waiter")

    def __init__(self, conversation: Conversation, call: int, decode: Decode) -> None:
        self._conversation = conversation
        self._call = call
        self._decode = decode
        self._inflow: Inflow | None = None
        self._items: deque[list[Any]] = deque()
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    # --- called by the link -----------------------------------------------------------------------------

    def arrived(self, message: list[Any]) -> None:
        """An item arrived.

        Raises:
            ProtocolViolation: the caller had no credit for it, or has ended its stream.
        """
        if self._ended or self._inflow is None:
            raise ProtocolViolation(f"item: sent {'after end' if self._ended else 'without credit'}")
        self._inflow.arrived()
        self._items.append(message)
        self._wake()

    def ended(self) -> None:
        """The caller has sent its last item.

        Raises:
            ProtocolViolation: it had ended its stream before.
        """
        if self._ended:
            raise ProtocolViolation("end: sent twice")
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- called by the handler --------------------------------------------------------------------------

    def __aiter__(self) -> Inbound:
        return self

    async def __anext__(self) -> Any:
        if self._inflow is None:
            self._inflow = Inflow(WINDOW)
            self._grant(WINDOW)
        while not self._items:
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._items.popleft()
        grant = self._inflow.consumed()
        if grant and not self._ended:
            self._grant(grant)
        return self._decode(message[2], message[3] if len(message) > 3 else 0)

    def _grant(self, items: int) -> None:
        self._conversation.callee.grant(self._call, items)
        self._conversation.channel.wake()
