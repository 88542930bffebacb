"""Outgoing calls and streams through interceptors: the same interface as the client, with a chain in front.

Owns: choosing the chain of a call, its deadline, and the awaitable that the caller gets.
Leaves to others: making the call (client), the interceptors themselves (interceptors), declaring them
(service.interceptors).

A process without outgoing interceptors uses the client itself. Calls of the framework to its own processes (the store,
the methods of every worker) are never intercepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, Protocol

from mesh.calls.answers import decode_any
from mesh.calls.client import Client
from mesh.calls.context import CURRENT, inherited
from mesh.calls.expiry import Expiries
from mesh.calls.interceptors import Hook, OutgoingCall, Proceed, compose
from mesh.calls.options import NO_OPTIONS, CallOptions
from mesh.calls.request import Call, Decode, Stream
from mesh.clock import Clock
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
        options: CallOptions = NO_OPTIONS,
        *,
        decode: Decode = decode_any,
    ) -> Call: ...

    def stream(
        self,
        target: str,
        body: Any,
        encoding: int = 0,
        options: CallOptions = NO_OPTIONS,
        *,
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
        self._now = clock.now
        self._loop = asyncio.get_running_loop()
        self._expiries = Expiries(clock)
        self._fresh: list[InterceptedCall] = []
        self._chains: dict[tuple[Hook, ...], Proceed[OutgoingCall]] = {}

    def call(
        self,
        target: str,
        body: Any,
        encoding: int = 0,
        options: CallOptions = NO_OPTIONS,
        *,
        decode: Decode = decode_any,
    ) -> Call:
        """See Client.call."""
        chain = self._chain(target)
        if chain is None:
            return self._client.call(target, body, encoding, options, decode=decode)
        call = InterceptedCall(
            chain, self._outgoing(target, body, encoding, options, decode, False), self._expiries, self._loop
        )
        if not self._fresh:
            self._loop.call_soon(self._look_after)
        self._fresh.append(call)
        return call

    def stream(
        self,
        target: str,
        body: Any,
        encoding: int = 0,
        options: CallOptions = NO_OPTIONS,
        *,
        decode: Decode = decode_any,
    ) -> Stream:
        """See Client.stream."""
        chain = self._chain(target)
        if chain is None:
            return self._client.stream(target, body, encoding, options, decode=decode)
        return InterceptedStream(chain, self._outgoing(target, body, encoding, options, decode, True))

    def _look_after(self) -> None:
        """Once per turn of the loop: begin the new calls that were not awaited, and watch the deadlines of all."""
        fresh, self._fresh = self._fresh, []
        for call in fresh:
            if not call.done():
                call.begin()
                self._expiries.watch(call, call.due_at)

    def close(self) -> None:
        """Stop watching deadlines."""
        self._expiries.close()

    def _chain(self, target: str) -> Proceed[OutgoingCall] | None:
        inner = OUTGOING.get()
        hooks = self._hooks + inner if inner else self._hooks
        if not hooks or _INSIDE.get() or target.startswith(("$", "mesh-")):
            return None
        chain = self._chains.get(hooks)
        if chain is None:
            chain = self._chains[hooks] = compose(hooks, self._send)
        return chain

    def _outgoing(
        self, target: str, body: Any, encoding: int, options: CallOptions, decode: Decode, stream: bool
    ) -> OutgoingCall:
        long = stream or options.source is not None
        deadline_at = inherited(self._now() + self._client.timeout_of(target, options.timeout, stream=long))
        return OutgoingCall(
            target,
            body,
            encoding,
            deadline_at,
            dict(options.meta) if options.meta else {},
            options.key,
            options.instance,
            options.idempotent,
            options.trace,
            decode,
            stream,
            CURRENT.get(),
            options.source,
            options.window,
        )

    async def _send(self, call: OutgoingCall) -> Any:
        options = CallOptions(
            float(call.deadline_at - self._now()),
            call.key,
            call.instance,
            call.meta or None,
            call.trace,
            call.idempotent,
            call.source,
            call.window,
        )
        if call.stream:
            return self._client.stream(call.target, call.body, call.encoding, options, decode=call.decode)
        return await self._client.call(call.target, call.body, call.encoding, options, decode=call.decode)


class InterceptedCall(Call):
    """A call with interceptors around it.

    When it is awaited at once, as nearly all calls are, the interceptors run in the task that awaits it. Otherwise they
    run in a task of their own, from the next turn of the loop on. A task for every call would cost 4 µs.
    """

    __slots__ = ("_chain", "_context", "_expiries", "_outgoing", "_reason", "_runner", "begun", "due_at")

    def __init__(
        self,
        chain: Proceed[OutgoingCall],
        outgoing: OutgoingCall,
        expiries: Expiries,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(loop=loop)
        self.begun = False
        self.slot = 0
        #: When the interceptors are stopped.
        self.due_at = outgoing.deadline_at + GRACE_S
        self._expiries = expiries
        self._context = copy_context()
        self._chain = chain
        self._outgoing = outgoing
        #: The task in which the interceptors run.
        self._runner: asyncio.Task[Any] | None = None
        #: The error with which `_stop` ends the call, once it has cancelled that task.
        self._reason: BaseException | None = None

    def __await__(self) -> Generator[Any, None, Any]:
        if self.begun or self.done():
            return (yield from super().__await__())
        self.begun = True
        self._runner = asyncio.current_task()
        token = _INSIDE.set(True)
        try:
            answer = yield from self._chain(self._outgoing).__await__()
        except BaseException as exc:
            error = self._failed(exc)
            if not self.cancelled():
                self.exception()  # the task that awaits it gets it
            if error is exc:
                raise
            raise error from None
        finally:
            try:
                _INSIDE.reset(token)
            except ValueError:
                pass  # a coroutine that is never finished is closed in another context
        return self._succeeded(answer)

    def add_done_callback(self, fn: Callable[..., object], *, context: Context | None = None) -> None:
        """See asyncio.Future. What waits in this way needs the call to run by itself."""
        self.begin()
        super().add_done_callback(fn, context=context)

    def begin(self) -> None:
        """Run the interceptors in a task of their own, unless they run already."""
        if not self.begun and not self.done():
            self.begun = True
            name = f"mesh.outgoing {self._outgoing.target}"
            self._runner = self.get_loop().create_task(self._run(), name=name, context=self._context)

    async def _run(self) -> None:
        _INSIDE.set(True)
        try:
            answer = await self._chain(self._outgoing)
        except BaseException as exc:
            self._failed(exc)
        else:
            self._succeeded(answer)

    def _succeeded(self, answer: Any) -> Any:
        if self._reason is not None:
            self._over()
        else:
            self._runner = None
            if self.slot:
                self._expiries.forget(self)
        if not self.done():
            self.set_result(answer)
        return answer

    def _failed(self, exc: BaseException) -> BaseException:
        """End with the exception of the chain; return the one that the caller gets."""
        reason = self._over()
        if reason is not None and isinstance(exc, asyncio.CancelledError):
            exc = reason
        if not self.done():
            if isinstance(exc, asyncio.CancelledError):
                asyncio.Future.cancel(self)
            else:
                self.set_exception(exc)
        return exc

    def _over(self) -> BaseException | None:
        """The interceptors have ended; returns why they were stopped, if they were."""
        self._expiries.forget(self)
        runner, self._runner = self._runner, None
        reason, self._reason = self._reason, None
        if reason is not None and runner is not None:
            runner.uncancel()  # `_stop` cancelled the interceptors, and not the task that runs them
        return reason

    def expire(self) -> None:
        """The deadline is over, and an interceptor still holds the call."""
        if not self.done():
            self._stop(DeadlineExceeded(f"{self._outgoing.target}: its interceptors did not end by the deadline"))

    def cancel(self, msg: Any = None) -> bool:
        """Give up the call, its interceptors and its handler."""
        if self.done():
            return False
        if self._runner is None:
            self.begun = True
            return asyncio.Future.cancel(self, msg)
        self._stop(asyncio.CancelledError())
        return True

    def _stop(self, reason: BaseException) -> None:
        if self._runner is not None and self._reason is None:
            self._reason = reason
            self._runner.cancel()


class InterceptedStream(Stream):
    """A stream with interceptors that run in a task of their own until they return the iterator over the items."""

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
