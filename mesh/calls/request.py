"""One call or stream: the object that the user awaits, and the state that the client keeps across attempts.

Owns: the two objects and their ends. Leaves to others: choosing an instance, retrying (client), bytes (pool).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from mesh.calls.answers import Answer
from mesh.calls.outbound import Outbound, Source
from mesh.errors import BadReply, Cancelled, DeadlineExceeded, MeshError, Unavailable, from_wire
from mesh.protocol.stream import WINDOW, Inflow

Decode = Callable[[Any, int], Any]


class Client(Protocol):
    """The methods of mesh.calls.client.Client that a request calls when it ends, or its instance is lost."""

    def settled(self, request: Any, order: Order, code: str) -> None: ...
    def gave_up(self, request: Any, code: str) -> None: ...
    def was_refused(self, request: Any, error: MeshError) -> None: ...
    def was_lost(self, request: Any, sent: bool, reason: str) -> None: ...


class Order(msgspec.Struct, eq=False):
    """A request and its attempts so far. (A Struct, because one is made for every call.)

    Attributes:
        route: the service and method.
        body, encoding, trace, meta: sent to the instance.
        deadline_at: when the user stops waiting.
        began_at, sent_at: instants of the first and of the latest attempt.
        parked_at: since when the request waits for an instance.
        idempotent: whether it may be repeated when an answer is lost.
        key: selects the preferred instance by rendezvous hashing.
        instance: id of the only instance to call.
        tried: instances that refused or lost the request -> the number of the connection on which they did.
        trouble: the error of the last failed attempt.
        handle: the instance that has the request now; None while it waits for one.
    """

    route: Any
    body: Any
    encoding: int
    deadline_at: float
    began_at: float
    sent_at: float
    idempotent: bool
    trace: str | None = None
    meta: Mapping[str, str] | None = None
    key: str | None = None
    instance: str | None = None
    handle: Any = None
    tried: dict[str, int] | None = None
    attempts: int = 0
    parked_at: float = 0.0
    trouble: MeshError | None = None

    def too_late(self) -> MeshError:
        """The error when the deadline has passed; depends on whether an instance had the request."""
        after = f"{self.deadline_at - self.began_at:.2g} s"
        if self.handle is None:
            if self.trouble is not None:
                return self.trouble
            where = f"instance {self.instance}" if self.instance else f"instance of {self.route.group.name}"
            return Unavailable(f"{self.route.target}: no {where} within {after}{self.route.group.trouble}")
        return DeadlineExceeded(f"{self.route.target}: no answer within {after}")


class Call(asyncio.Future[Any]):
    """A call under way: await it for the answer, cancel it to stop the handler.

    The call begins when this object is made, not when it is awaited.

    Raises, when awaited: the MeshError that the call ended with.
    """

    # No __init__, for speed: the client sets the attributes of each call.
    __slots__ = ("client", "decode", "id", "order", "slot")

    client: Client
    order: Order
    decode: Decode
    id: int
    slot: int

    # --- called by the link -----------------------------------------------------------------------------

    def replied(self, message: list[Any]) -> None:
        self.client.settled(self, self.order, "")
        if not self.done():
            try:
                value = self.decode(message[2], message[3] if len(message) > 3 else 0)
                if len(message) > 4 and type(value) is Answer:
                    value = value._replace(meta=message[4])
            except MeshError as error:
                self.fail(error)
            except Exception as exc:
                # The validation of a type may raise anything; other calls on the link must not fail because of it.
                self.fail(BadReply(f"{self.order.route.target}: the answer was refused: {exc!r}"))
            else:
                self.set_result(value)

    def errored(self, wire: dict[str, Any]) -> None:
        error = from_wire(wire)
        self.client.settled(self, self.order, error.code)
        self.fail(error)

    def refused(self, wire: dict[str, Any]) -> None:
        self.client.was_refused(self, from_wire(wire))

    def link_lost(self, sent: bool, reason: str) -> None:
        self.client.was_lost(self, sent, reason)

    def item(self, message: list[Any]) -> None:
        raise AssertionError("the protocol rejects items of a call")

    def ended(self) -> None:
        raise AssertionError("the protocol rejects the end of a stream for a call")

    def credited(self, items: int) -> None:
        raise AssertionError("the protocol rejects credit for a call")

    # --- its ends -----------------------------------------------------------------------------------------

    def fail(self, error: MeshError) -> None:
        """End with an error, if it has not ended."""
        if not self.done():
            error.from_call = True
            self.set_exception(error)

    def expire(self) -> None:
        """Its deadline is over."""
        error = self.order.too_late()
        self.client.gave_up(self, error.code)
        self.fail(error)

    def cancel(self, msg: Any = None) -> bool:
        """Give up the call and stop its handler."""
        if self.done():
            return False
        self.client.gave_up(self, "cancelled")
        return super().cancel(msg)


class Flow:
    """A stream under way: the half that the link holds.

    Attributes:
        outbound: the items that the caller sends; None for a stream to the caller only.
    """

    __slots__ = (
        "_ended",
        "_error",
        "_items",
        "_waiter",
        "client",
        "decode",
        "id",
        "inflow",
        "order",
        "outbound",
        "slot",
    )

    def __init__(
        self, client: Client, order: Order, decode: Decode, source: Source | None = None, window: int = WINDOW
    ) -> None:
        self.client = client
        self.order = order
        self.decode = decode
        self.id = 0
        self.slot = 0
        self.inflow = Inflow(window)
        self._items: deque[list[Any]] = deque()
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.outbound = None if source is None else Outbound(self, source)

    # --- called by the user's half ------------------------------------------------------------------------

    async def next(self) -> Any:
        """The next item, decoded; StopAsyncIteration at the end, or the error that ended the stream."""
        while not self._items:
            if self._ended:
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._items.popleft()
        grant = self.inflow.consumed()
        if grant and not self._ended and self.order.handle is not None:
            self.order.handle.peer.grant(self.id, grant)
        value = self.decode(message[2], message[3] if len(message) > 3 else 0)
        if len(message) > 4 and type(value) is Answer:
            value = value._replace(meta=message[4])
        return value

    @property
    def begun(self) -> bool:
        """Whether items have gone in either direction: then the request cannot be repeated elsewhere."""
        return self.inflow.begun or (self.outbound is not None and self.outbound.begun)

    def stop(self) -> None:
        """Stop reading, and stop the handler. Harmless when the stream has ended."""
        if not self._ended:
            self.client.gave_up(self, "cancelled")
            self._end(Cancelled(f"{self.order.route.target}: the stream was closed by its reader"))
        self._items.clear()

    # --- called by the link ---------------------------------------------------------------------------------

    def item(self, message: list[Any]) -> None:
        self.inflow.arrived()
        self._items.append(message)
        self._wake()

    def ended(self) -> None:
        self.client.settled(self, self.order, "")
        self._end(None)

    def errored(self, wire: dict[str, Any]) -> None:
        error = from_wire(wire)
        self.client.settled(self, self.order, error.code)
        self._end(error)

    def refused(self, wire: dict[str, Any]) -> None:
        self.client.was_refused(self, from_wire(wire))

    def link_lost(self, sent: bool, reason: str) -> None:
        self.client.was_lost(self, sent, reason)

    def replied(self, message: list[Any]) -> None:
        """The one answer of a client stream."""
        self._items.append(message)
        self.ended()

    def credited(self, items: int) -> None:
        assert self.outbound is not None  # the protocol rejects credit for other streams
        self.outbound.grant(items)

    # --- its ends -------------------------------------------------------------------------------------------

    def fail(self, error: MeshError) -> None:
        """End with an error, after the items received so far."""
        self._end(error)

    def source_failed(self, error: Exception) -> None:
        """The iterator of the items to send raised: cancel the handler, and raise the same where the answer is
        awaited."""
        self.client.gave_up(self, "cancelled")
        self._end(error)

    def done(self) -> bool:
        """Whether the stream has ended; received items may still be unread."""
        return self._ended

    def expire(self) -> None:
        """Its deadline is over."""
        error = self.order.too_late()
        self.client.gave_up(self, error.code)
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if not self._ended:
            self._ended = True
            if isinstance(error, MeshError):
                error.from_call = True
            self._error = error
            if self.outbound is not None:
                self.outbound.stop()
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Stream:
    """The user's half of a stream: an asynchronous iterator over its items.

    Leaving the iteration early stops the handler: at once with `aclose()` or `async with`, otherwise when this object
    is garbage collected. (The link refers to the other half only, so that an abandoned stream can be collected.)

    Raises, when iterated: the MeshError that the stream ended with, after the items before it.
    """

    __slots__ = ("_flow",)

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        return await self._flow.next()

    async def aclose(self) -> None:
        """Close the stream and stop the handler. Harmless when the stream has ended."""
        self._flow.stop()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._flow.stop()

    def __del__(self) -> None:
        self._flow.stop()
