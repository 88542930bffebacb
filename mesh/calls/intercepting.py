"""Outgoing calls and streams through interceptors: the same interface as the client, with a chain in front.

Owns: choosing the chain of a call, its deadline, and the awaitable that the caller gets.
Leaves to others: making the call (client), the interceptors themselves (interceptors), declaring them
(service.interceptors).

A process without outgoing interceptors uses the client itself. Calls of the framework to its own processes (the store,
the methods of every worker) are never intercepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any, Final, Protocol

from mesh.calls.answers import decode_any
from mesh.calls.checks import Duration
from mesh.calls.client import Client
from mesh.calls.context import CURRENT
from mesh.calls.interceptors import Hook, OutgoingCall, Proceed, compose
from mesh.calls.request import Call, Decode, Stream
from mesh.clock import Clock, Timer
from mesh.errors import DeadlineExceeded, SetupError

#: The hooks of the service and the method that run; they are inside of those of the process.
OUTGOING: Final[ContextVar[tuple[Hook, ...]]] = ContextVar("mesh_outgoing", default=())

#: Whether the code runs in an outgoing interceptor: the calls that it makes itself are not intercepted, as they would
#: reach the same interceptor again.
_INSIDE: Final[ContextVar[bool]] = ContextVar("mesh_in_outgoing", default=False)

#: Seconds after the deadline at which the chain itself is cut off. The call inside of it ends at the deadline, with an
#: error that tells more.
GRACE_S: Final = 0.05


class Calls(Protocol):
    """The calling interface that the verbs of a node use; see Client for arguments and errors."""

    def call(
        self,
        target: str,
        body: Any,
        encoding: int = 0,
        *,
        timeout: Duration | None = None,
        key: str | None = None,
        instance: str | None = None,
        meta: dict[str, str] | None = None,
        trace: str | None = None,
        idempotent: bool | None = None,
        decode: Decode = decode_any,
    ) -> Call: ...

    def stream(
        self,
        target: str,
        body: Any,
        encoding: int = 0,
        *,
        timeout: Duration | None = None,
        key: str | None = None,
        instance: str | None = None,
        meta: dict[str, str] | None = None,
        trace: str | None = None,
        idempotent: bool | None = None,
        decode: Decode = decode_any,
    ) -> Stream: ...


class InterceptedClient:
    """`call` and `stream` of a client through the interceptors of the process and of the running service."""

    def __init__(self, client: Client, hooks: tuple[Hook, ...], clock: Clock) -> None:
        """Args:
        hooks: the outgoing interceptors of the whole process; the first is the outermost.
        """
        self._client = client
        self._hooks = hooks
        self._clock = clock
        self._chains: dict[tuple[Hook, ...], Proceed[OutgoingCall]] = {}

    def call(
        self,
        target: str,
        body: Any,
        encoding: int = 0,
        *,
        timeout: Duration | None = None,
        key: str | None = None,
        instance: str | None = None,
        meta: dict[str, str] | None = None,
        trace: str | None = None,
        idempotent: bool | None = None,
        decode: Decode = decode_any,
    ) -> Call:
        """See Client.call."""
        chain = self._chain(target)
        if chain is None:
            return self._client.call(
                target,
                body,
                encoding,
                timeout=timeout,
                key=key,
                instance=instance,
                meta=meta,
                trace=trace,
                idempotent=idempotent,
                decode=decode,
            )
        call = self._outgoing(target, body, encoding, timeout, key, instance, meta, trace, idempotent, decode, False)
        return InterceptedCall(chain, call, self._clock)

    def stream(
        self,
        target: str,
        body: Any,
        encoding: int = 0,
        *,
        timeout: Duration | None = None,
        key: str | None = None,
        instance: str | None = None,
        meta: dict[str, str] | None = None,
        trace: str | None = None,
        idempotent: bool | None = None,
        decode: Decode = decode_any,
    ) -> Stream:
        """See Client.stream."""
        chain = self._chain(target)
        if chain is None:
            return self._client.stream(
                target,
                body,
                encoding,
                timeout=timeout,
                key=key,
                instance=instance,
                meta=meta,
                trace=trace,
                idempotent=idempotent,
                decode=decode,
            )
        call = self._outgoing(target, body, encoding, timeout, key, instance, meta, trace, idempotent, decode, True)
        return InterceptedStream(chain, call)

    def _chain(self, target: str) -> Proceed[OutgoingCall] | None:
        hooks = self._hooks + OUTGOING.get()
        if not hooks or _INSIDE.get() or target.startswith(("$", "mesh-")):
            return None
        chain = self._chains.get(hooks)
        if chain is None:
            chain = self._chains[hooks] = compose(hooks, self._send)
        return chain

    def _outgoing(
        self,
        target: str,
        body: Any,
        encoding: int,
        timeout: Duration | None,
        key: str | None,
        instance: str | None,
        meta: dict[str, str] | None,
        trace: str | None,
        idempotent: bool | None,
        decode: Decode,
        stream: bool,
    ) -> OutgoingCall:
        context = CURRENT.get()
        deadline_at = self._clock.now() + self._client.timeout_of(target, timeout, stream=stream)
        if context is not None:
            deadline_at = min(deadline_at, context.deadline_at)
        return OutgoingCall(
            target,
            body,
            encoding,
            deadline_at=deadline_at,
            meta=dict(meta or ()),
            key=key,
            instance=instance,
            idempotent=idempotent,
            trace=trace,
            decode=decode,
            stream=stream,
            context=context,
        )

    async def _send(self, call: OutgoingCall) -> Any:
        send = self._client.stream if call.stream else self._client.call
        sent = send(
            call.target,
            call.body,
            call.encoding,
            timeout=float(call.deadline_at - self._clock.now()),
            key=call.key,
            instance=call.instance,
            meta=call.meta or None,
            trace=call.trace,
            idempotent=call.idempotent,
            decode=call.decode,
        )
        return sent if isinstance(sent, Stream) else await sent


class InterceptedCall(Call):
    """A call whose interceptors run in a task of their own."""

    __slots__ = ("_expiry", "_target", "_task", "_waited_s")

    def __init__(self, chain: Proceed[OutgoingCall], call: OutgoingCall, clock: Clock) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop=loop)
        self._target = call.target
        self._waited_s = call.deadline_at - clock.now()
        self._task = loop.create_task(self._run(chain, call), name=f"mesh.outgoing {call.target}")
        self._expiry: Timer = clock.call_at(call.deadline_at + GRACE_S, self.expire)

    async def _run(self, chain: Proceed[OutgoingCall], call: OutgoingCall) -> None:
        _INSIDE.set(True)
        try:
            answer = await chain(call)
        except asyncio.CancelledError:
            if not self.done():
                asyncio.Future.cancel(self)
        except BaseException as exc:
            if not self.done():
                self.set_exception(exc)
        else:
            if not self.done():
                self.set_result(answer)
        finally:
            self._expiry.cancel()

    def expire(self) -> None:
        """The deadline is over, and an interceptor still holds the call."""
        if not self.done():
            self.fail(DeadlineExceeded(f"{self._target}: no answer within {self._waited_s:.2g} s"))
            self._task.cancel()

    def cancel(self, msg: Any = None) -> bool:
        """Give up the call, its interceptors and its handler."""
        if self.done():
            return False
        self._task.cancel(msg)
        return asyncio.Future.cancel(self, msg)


class InterceptedStream(Stream):
    """A stream whose interceptors run in a task of their own until they return the iterator over the items."""

    __slots__ = ("_items", "_opening", "_target")

    def __init__(self, chain: Proceed[OutgoingCall], call: OutgoingCall) -> None:
        self._target = call.target
        self._items: AsyncIterator[Any] | None = None
        self._opening = asyncio.get_running_loop().create_task(
            _opened(chain, call), name=f"mesh.outgoing {call.target}"
        )

    async def __anext__(self) -> Any:
        if self._items is None:
            items = await self._opening
            if not hasattr(items, "__aiter__"):
                raise SetupError(
                    f"{self._target}: an interceptor returned {type(items).__name__} for a stream; return the iterator "
                    "that `proceed` returned, or an async generator"
                )
            self._items = aiter(items)
        return await anext(self._items)

    async def aclose(self) -> None:
        """Close the stream, its interceptors and its handler. Harmless when the stream has ended."""
        if not self._opening.done():
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        elif not self._opening.cancelled() and self._opening.exception() is None:
            close = getattr(self._items or self._opening.result(), "aclose", None)
            if close is not None:
                await close()

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._opening.done():
            self._opening.cancel()
        elif not self._opening.cancelled():
            self._opening.exception()  # retrieved, so that asyncio does not report it


async def _opened(chain: Proceed[OutgoingCall], call: OutgoingCall) -> Any:
    _INSIDE.set(True)
    return await chain(call)
