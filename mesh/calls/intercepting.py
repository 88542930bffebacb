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

from msgspec.structs import replace

from mesh.calls.answers import decode_any
from mesh.calls.client import Client
from mesh.calls.context import CURRENT
from mesh.calls.interceptors import Hook, OutgoingCall, Proceed, compose
from mesh.calls.options import NO_OPTIONS, CallOptions
from mesh.calls.request import Call, Decode, Stream
from mesh.clock import Clock, Timer
from mesh.config.policies import PolicySettings
from mesh.errors import BadRequest, DeadlineExceeded, SetupError

#: The hooks of the service and the method that run; they are inside of those of the process.
OUTGOING: Final[ContextVar[tuple[Hook, ...]]] = ContextVar("mesh_outgoing", default=())

#: Whether the code runs in an outgoing interceptor: the calls that it makes itself are not intercepted, as they would
#: reach the same interceptor again.
_INSIDE: Final[ContextVar[bool]] = ContextVar("mesh_in_outgoing", default=False)

#: Targets that begin so belong to the framework.
_OWN: Final = ("$", "mesh-")

#: The chain itself is cut off this many seconds after the deadline, or up to twice as many. The call inside of it ends
#: at the deadline, with an error that tells more.
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


class Policies(Protocol):
    """The policies of the methods that a process calls; see mesh.resilience."""

    def hooks(self, target: str) -> tuple[Hook, ...]: ...
    def of(self, target: str) -> PolicySettings: ...


class InterceptedClient:
    """`call` and `stream` of a client through the interceptors of the process and of the running service."""

    def __init__(self, client: Client, hooks: tuple[Hook, ...], clock: Clock, policies: Policies | None = None) -> None:
        """Args:
        hooks: the outgoing interceptors of the whole process; the first is the outermost.
        policies: of the methods that are called, inside of all interceptors.
        """
        self._policies = policies
        self._client = client
        self._hooks = hooks
        self._clock = clock
        self._now = clock.now
        self._loop = asyncio.get_running_loop()
        #: The calls that began in this turn of the loop, and those of earlier turns.
        self._fresh: list[InterceptedCall] = []
        self._open: set[InterceptedCall] = set()
        self._due = self._deadline_of  # bound once, not for every call
        self._timer: Timer | None = None
        self._outermost = compose(hooks, self._send) if hooks else None
        self._chains: dict[tuple[Hook, ...], Proceed[OutgoingCall]] = {}
        self._by_target: dict[str, tuple[tuple[Hook, ...], Proceed[OutgoingCall]]] = {}

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
        if self._policies is not None and options.source is None and not target.startswith(_OWN):
            chain = self._with_policies(target, chain)
            if options.timeout is None and (timeout_s := self._policies.of(target).timeout_s) is not None:
                options = replace(options, timeout=timeout_s)
        if chain is None:
            return self._client.call(target, body, encoding, options, decode=decode)
        call = InterceptedCall(loop=self._loop)
        call.outgoing = OutgoingCall(
            target, body, encoding, options, decode, False, CURRENT.get(), self._now(), self._due
        )
        call.chain = chain
        call.context = copy_context()
        call.open = self._open
        call.begun = False
        call.runner = call.reason = None
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
        outgoing = OutgoingCall(target, body, encoding, options, decode, True, CURRENT.get(), self._now(), self._due)
        return InterceptedStream(chain, outgoing)

    def _look_after(self) -> None:
        """Once per turn of the loop: begin the new calls that were not awaited, and watch the deadlines of all."""
        fresh, self._fresh = self._fresh, []
        for call in fresh:
            if not call.begun:
                call.begin()
        self._open.update([call for call in fresh if not call.done()])
        if self._timer is None:
            self._timer = self._clock.call_at(self._now() + GRACE_S, self._sweep)

    def _sweep(self) -> None:
        """Stop the calls that interceptors still hold after their deadline."""
        now = self._now()
        for call in tuple(self._open):
            try:
                late = call.outgoing.due_at + GRACE_S <= now
            except BadRequest:  # no deadline can be known; the client will say why when it gets the call
                continue
            if late:
                self._open.discard(call)
                call.expire()
        self._timer = self._clock.call_at(now + GRACE_S, self._sweep) if self._open else None

    def close(self) -> None:
        """Stop watching deadlines."""
        self._open.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _chain(self, target: str) -> Proceed[OutgoingCall] | None:
        if _INSIDE.get() or target.startswith(_OWN):
            return None
        inner = OUTGOING.get()
        if not inner:
            return self._outermost
        hooks = self._hooks + inner
        chain = self._chains.get(hooks)
        if chain is None:
            chain = self._chains[hooks] = compose(hooks, self._send)
        return chain

    def _with_policies(self, target: str, chain: Proceed[OutgoingCall] | None) -> Proceed[OutgoingCall] | None:
        """The chain with the policies of a method inside of it.

        A call that an interceptor makes itself is not intercepted; its policies apply all the same.
        """
        assert self._policies is not None
        hooks = self._policies.hooks(target)
        if not hooks:
            return chain
        outer = () if chain is None else self._hooks + OUTGOING.get()
        known = self._by_target.get(target)
        hooks = outer + hooks
        if known is None or known[0] != hooks:
            known = self._by_target[target] = hooks, compose(hooks, self._send)
        return known[1]

    def _deadline_of(self, call: OutgoingCall) -> float:
        """The deadline that a call has at the beginning."""
        long = call.stream or call.options.source is not None
        due_at = call.began_at + self._client.timeout_of(call.target, call.options.timeout, stream=long)
        return due_at if call.context is None else min(due_at, call.context.deadline_at)

    async def _send(self, call: OutgoingCall) -> Any:
        options = call.to_send(self._now())
        if call.stream:
            return self._client.stream(call.target, call.body, call.encoding, options, decode=call.decode)
        sent = call._sent = self._client.call(call.target, call.body, call.encoding, options, decode=call.decode)
        return await sent


class InterceptedCall(Call):
    """A call with interceptors around it.

    When it is awaited at once, as nearly all calls are, the interceptors run in the task that awaits it. Otherwise they
    run in a task of their own, from the next turn of the loop on. A task for every call would cost 4 µs.
    """

    # No __init__, for speed: `InterceptedClient.call` sets the attributes of each call.
    __slots__ = ("begun", "chain", "context", "open", "outgoing", "reason", "runner")

    begun: bool
    chain: Proceed[OutgoingCall]
    context: Context
    #: The calls with a watched deadline.
    open: set[InterceptedCall]
    outgoing: OutgoingCall
    #: The task in which the interceptors run.
    runner: asyncio.Task[Any] | None
    #: The error with which `_stop` ends the call, once it has cancelled that task.
    reason: BaseException | None

    def __await__(self) -> Generator[Any, None, Any]:
        if self.begun or self.done():
            return (yield from super().__await__())
        self.begun = True
        self.runner = asyncio.current_task(self._loop)
        token = _INSIDE.set(True)
        try:
            answer = yield from self.chain(self.outgoing).__await__()
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
            name = f"mesh.outgoing {self.outgoing.target}"
            self.runner = self.get_loop().create_task(self._run(), name=name, context=self.context)
            self.runner.add_done_callback(self._ran)

    def _ran(self, runner: asyncio.Task[Any]) -> None:
        """The task has ended; one that was cancelled before its first step has not run `_run`."""
        if not self.done():
            self._failed(asyncio.CancelledError())

    async def _run(self) -> None:
        _INSIDE.set(True)
        try:
            answer = await self.chain(self.outgoing)
        except BaseException as exc:
            self._failed(exc)
        else:
            self._succeeded(answer)

    def _succeeded(self, answer: Any) -> Any:
        if self.reason is not None:
            self._over()
        else:
            self.runner = None
            self.open.discard(self)
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
        self.open.discard(self)
        runner, self.runner = self.runner, None
        reason, self.reason = self.reason, None
        if reason is not None and runner is not None:
            runner.uncancel()  # `_stop` cancelled the interceptors, and not the task that runs them
        return reason

    def expire(self) -> None:
        """The deadline is over, and an interceptor still holds the call."""
        if not self.done():
            self._stop(DeadlineExceeded(f"{self.outgoing.target}: its interceptors did not end by the deadline"))

    def cancel(self, msg: Any = None) -> bool:
        """Give up the call, its interceptors and its handler."""
        if self.done():
            return False
        if self.runner is None:
            self.begun = True
            return asyncio.Future.cancel(self, msg)
        self._stop(asyncio.CancelledError())
        return True

    def _stop(self, reason: BaseException) -> None:
        if self.runner is not None and self.reason is None:
            self.reason = reason
            self.runner.cancel()


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
