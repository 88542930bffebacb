"""Answering calls: a worker's methods behind one listening endpoint.

Owns: admitting, starting, cancelling and finishing handlers, and leaving without losing a call.
Leaves to others: frames and legality (protocol), sockets (transport), what a method is (method), pools (offload).
"""

from __future__ import annotations

import asyncio
import difflib
import sys
import traceback
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from mesh.calls.context import CURRENT
from mesh.calls.method import Method
from mesh.calls.offload import Offload, RefusedInChild
from mesh.clock import Clock, Timer
from mesh.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    MeshError,
    Overloaded,
    RemoteError,
    ShapeMismatch,
    UnknownMethod,
)
from mesh.policy.limits import REFUSE, RUN, Gate
from mesh.protocol.callee import Callee
from mesh.protocol.codec import Buffer
from mesh.protocol.deadline import MAX_BUDGET_MS
from mesh.protocol.link import Link
from mesh.protocol.messages import CALL, CANCEL, CREDIT, OPEN
from mesh.protocol.stream import Outflow
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import MethodStats, Recorder
from mesh.telemetry.traces import current as TRACE
from mesh.transport.contract import Channel, Listener, Transport

log = get_logger("mesh.calls")

#: Why a handler was cancelled, and what its caller is told.
CALLER_GONE: Final = "caller gone"
BY_CALLER: Final = "cancelled"
DEADLINE: Final = "deadline"
STOPPING: Final = "stopping"

#: How often deadlines are looked at, in seconds.
SWEEP_S: Final = 0.02

#: Where the optional fields (encoding, trace, metadata) begin.
_TAIL: Final = {CALL: 5, OPEN: 6}


class Hosted:
    """A method with its counters and its gates."""

    __slots__ = ("gate", "method", "service_gate", "stats")

    def __init__(self, method: Method, service_gate: Gate[Running], stats: MethodStats) -> None:
        self.method = method
        self.service_gate = service_gate
        self.gate: Gate[Running] | None = Gate(method.concurrency, method.queue) if method.concurrency else None
        self.stats = stats


class Running(msgspec.Struct, eq=False):
    """One call in hand, from its admission to its last word; the CallContext of its handler. (A Struct: one is made
    for every call.)

    Attributes:
        body: the encoded arguments; `values`: the decoded ones.
        outflow, credited: of a stream: what may still be sent, and who waits for more.
        stopped: why its handler was told to stop, "" while it was not.
        hold: what runs in a pool and cannot be stopped there.
    """

    conversation: Conversation
    hosted: Hosted
    id: int
    target: str
    caller: str
    began_at: float
    deadline_at: float
    body: Any
    encoding: int = 0
    trace: str | None = None
    meta: dict[str, str] = {}
    outflow: Outflow | None = None
    values: tuple[Any, ...] = ()
    task: asyncio.Task[None] | None = None
    stopped: str = ""
    credited: asyncio.Future[None] | None = None
    hold: Any = None


class Conversation:
    """One caller's link: the session of transport.contract on the accepting side."""

    __slots__ = ("callee", "channel", "running", "server")

    def __init__(self, server: Server, channel: Channel, callee: Callee) -> None:
        self.server = server
        self.channel = channel
        self.callee = callee
        self.running: dict[int, Running] = {}

    def opened(self) -> None:
        self.callee.connected()

    def data_to_send(self) -> list[list[Buffer]]:
        return self.callee.data_to_send()

    def receive(self, frames: list[Buffer]) -> None:
        server = self.server
        for message in self.callee.receive(frames):
            kind = message[0]
            if kind == CALL or kind == OPEN:
                server.start_one(self, message)
            elif kind == CANCEL:
                running = self.running.get(message[1])
                if running is not None:
                    server.stop_one(running, BY_CALLER)
            elif kind == CREDIT:
                running = self.running.get(message[1])
                if running is not None and running.outflow is not None:
                    running.outflow.grant(message[2])
                    if running.credited is not None and not running.credited.done():
                        running.credited.set_result(None)
            elif server.leaving is not None:
                # A hello to a worker that is leaving.
                self.callee.goodbye(server.leaving)
        if self.callee.owes:
            self.channel.wake()
        if self.callee.parted:
            server.look_whether_drained()

    def lost(self, reason: str) -> None:
        self.callee.lost()
        self.server.forget(self)
        for running in list(self.running.values()):
            self.server.stop_one(running, CALLER_GONE)


class Server:
    """The answering half of a process. One event loop owns it."""

    def __init__(
        self,
        *,
        transport: Transport,
        clock: Clock,
        identity: str,
        epoch: int,
        recorder: Recorder,
        offload: Offload,
        credit: int,
        max_body: int,
        traceback_on_wire: bool = False,
    ) -> None:
        self._transport = transport
        self._now = clock.now
        self._clock = clock
        self._identity = identity
        self._epoch = epoch
        self._recorder = recorder
        self._offload = offload
        self._credit = credit
        self._max_body = max_body
        self._traceback_on_wire = traceback_on_wire
        self._loop = asyncio.get_running_loop()
        self._sweeping: Timer | None = None
        self._hosted: dict[str, Hosted] = {}
        self._conversations: set[Conversation] = set()
        self._listener: Listener | None = None
        # Conversations whose link is gone while handlers of theirs still run.
        self._widowed: set[Conversation] = set()
        self._drained: asyncio.Future[None] | None = None
        self.leaving: str | None = None

    # --- set-up -------------------------------------------------------------------------------------------

    def host(self, methods: Iterable[Method], concurrency: int, queue: int) -> Gate[Running]:
        """Answer these methods of one service, so many at once and so many more waiting; the service's gate."""
        gate: Gate[Running] = Gate(concurrency, queue)
        for method in methods:
            stats = self._recorder.method("server", method.service, method.name)
            self._hosted[method.target] = Hosted(method, gate, stats)
        return gate

    async def start(self, endpoint: str) -> str:
        """Listen; the endpoint as bound.

        Raises:
            AddressInUse, BadEndpoint: see transport.contract.
        """
        self._listener = await self._transport.listen(endpoint, self._accept)
        return self._listener.endpoint

    @property
    def in_hand(self) -> int:
        """Calls that are owed a last word."""
        return sum(len(conversation.running) for conversation in self._conversations)

    @property
    def callers(self) -> list[str]:
        """Identities of the processes that have a link to this one."""
        return sorted(conversation.callee.peer for conversation in self._conversations)

    def _accept(self, channel: Channel) -> Conversation:
        callee = Callee(self._identity, self._epoch, self._credit, self._max_body)
        conversation = Conversation(self, channel, callee)
        self._conversations.add(conversation)
        return conversation

    def forget(self, conversation: Conversation) -> None:
        """A link is gone."""
        self._conversations.discard(conversation)
        if conversation.running:
            self._widowed.add(conversation)
        self.look_whether_drained()

    # --- a call's way ---------------------------------------------------------------------------------------

    def start_one(self, conversation: Conversation, message: list[Any]) -> None:
        """Admit a call or stream: start it, queue it, or refuse it."""
        hosted = self._hosted.get(message[2])
        if hosted is None:
            self._refuse(conversation, message[1], self._unknown(message[2]))
            return
        method = hosted.method
        stream = message[0] == OPEN
        if stream is not method.stream:
            wanted = "a stream: iterate over it" if method.stream else "a call: await it"
            self._refuse(conversation, message[1], ShapeMismatch(f"{method.target} is {wanted}"))
            return
        now = self._now()
        count = len(message)
        at = _TAIL[message[0]]
        running = Running(
            conversation,
            hosted,
            message[1],
            message[2],
            conversation.callee.peer,
            now,
            now + message[3] * 0.001 if 0 <= message[3] <= MAX_BUDGET_MS else now,
            message[4],
        )
        if stream:
            running.outflow = Outflow(message[5])
        if count > at:
            running.encoding = message[at]
            if count > at + 1:
                running.trace = message[at + 1]
                if count > at + 2:
                    running.meta = message[at + 2] or {}
        if method.offload != "process":
            try:
                running.values = method.decode_args(running.body, running.encoding)
            except MeshError as error:
                hosted.stats.begin()
                hosted.stats.end(0.0, error.code)
                self._refuse(conversation, running.id, error)
                return
            running.body = None
        hosted.stats.in_flight += 1
        conversation.running[running.id] = running
        if self._sweeping is None:
            self._sweeping = self._clock.call_at(now + SWEEP_S, self._sweep)
        gate = hosted.gate
        service_gate = hosted.service_gate
        if gate is None and service_gate.running < service_gate.concurrency:
            service_gate.running += 1  # Gate.admit, without the call: the way of nearly all
            self._launch(running)
            return
        verdict = RUN if gate is None else gate.admit(running)
        if verdict is RUN:
            verdict = hosted.service_gate.admit(running)
            if verdict is RUN:
                self._launch(running)
            elif verdict is REFUSE and gate is not None:
                self._pass_on(gate)
        if verdict is REFUSE:
            full = hosted.service_gate if gate is None or gate.running < gate.concurrency else gate
            overloaded = Overloaded(
                f"{method.target}: {full.concurrency} run and {full.queue} wait in {self._identity} already"
            )
            self._settle(running, overloaded.code)
            self._refuse(conversation, running.id, overloaded)

    def _refuse(self, conversation: Conversation, call: int, error: MeshError) -> None:
        conversation.callee.refuse(call, error)
        conversation.channel.wake()

    def _unknown(self, target: str) -> MeshError:
        service, _, method = target.rpartition(".")
        mine = [name.rpartition(".")[2] for name in self._hosted if name.rpartition(".")[0] == service]
        if not mine:
            return UnknownMethod(f"{self._identity} does not run a service {service[:100]!r}")
        near = difflib.get_close_matches(method[:100], mine, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return UnknownMethod(f"{service} has no method {method[:100]!r}{hint}")

    def _launch(self, running: Running) -> None:
        method = running.hosted.method
        coroutine = self._run_stream(running) if method.stream else self._run_call(running)
        task = _task(coroutine, self._loop, method.target)
        if not task.done():
            running.task = task

    async def _run_call(self, running: Running) -> None:
        CURRENT.set(running)
        if running.trace:
            TRACE.set(running.trace)
        hosted = running.hosted
        method = hosted.method
        try:
            if method.offload:
                body, encoding = await self._run_offloaded(running, method)
            else:
                result = method.run(*running.values)
                if method.asynchronous:
                    result = await result
                body, encoding = method.encode_result(result, running.encoding)
            if len(body) > self._max_body:
                raise _too_large(method.target, len(body), self._max_body)
        except BaseException as exc:
            self._failed(running, exc)
        else:
            conversation = running.conversation
            if method.offload or hosted.gate is not None or self.leaving is not None:
                self._end(running, "")
            else:
                # _end without its calls: the way of nearly all.
                conversation.running.pop(running.id, None)
                hosted.stats.end(self._now() - running.began_at)
                following = hosted.service_gate.release()
                if following is not None:
                    self._launch(following)
            conversation.callee.reply(running.id, body, encoding)
            conversation.channel.wake()

    async def _run_offloaded(self, running: Running, method: Method) -> tuple[Any, int]:
        if method.offload == "thread":
            running.hold = self._offload.in_thread(method.run, running.values)
            return method.encode_result(await asyncio.wrap_future(running.hold), running.encoding)
        assert len(method.reference) == 3
        running.hold = self._offload.in_process(method.reference, running.body, running.encoding)
        return await self._offload.unpack(running.hold, method.target)

    async def _run_stream(self, running: Running) -> None:
        CURRENT.set(running)
        if running.trace:
            TRACE.set(running.trace)
        method = running.hosted.method
        outflow = running.outflow
        assert outflow is not None
        conversation = running.conversation
        items = method.run(*running.values)
        try:
            try:
                async for item in items:
                    while not outflow.take():
                        running.credited = self._loop.create_future()
                        await running.credited
                    body, encoding = method.encode_result(item, running.encoding)
                    if len(body) > self._max_body:
                        raise _too_large(method.target, len(body), self._max_body)
                    conversation.callee.item(running.id, body, encoding)
                    conversation.channel.wake()
            finally:
                await items.aclose()
        except BaseException as exc:
            self._failed(running, exc)
        else:
            self._end(running, "")
            conversation.callee.end(running.id)
            conversation.channel.wake()

    def _failed(self, running: Running, exc: BaseException) -> None:
        """The handler's last word is an error: say it, and log what only we know."""
        callee = running.conversation.callee
        error: MeshError
        if isinstance(exc, RefusedInChild):
            cause = exc.__cause__
            error = cause if isinstance(cause, MeshError) else exc
            self._end(running, error.code)
            callee.refuse(running.id, error)
        else:
            error = self._as_error(running, exc)
            self._end(running, error.code)
            callee.error(running.id, error)
        running.conversation.channel.wake()
        if isinstance(exc, (KeyboardInterrupt, SystemExit)):
            raise exc
        if not isinstance(exc, (asyncio.CancelledError, MeshError)):
            # Last: whatever a log does with somebody's exception, the caller has its answer.
            log.error(
                "handler failed",
                target=running.target,
                caller=running.caller,
                exc_info=(type(exc), exc, exc.__traceback__),
            )

    def _as_error(self, running: Running, exc: BaseException) -> MeshError:
        if isinstance(exc, asyncio.CancelledError):
            if running.stopped == DEADLINE:
                taken = f"{running.deadline_at - running.began_at:.3g} s"
                return DeadlineExceeded(f"{running.target}: stopped when its deadline of {taken} was over")
            if running.stopped == STOPPING:
                return Draining(f"{running.target}: {self._identity} stopped before it was done")
            return Cancelled(f"{running.target}: cancelled")
        if isinstance(exc, MeshError):
            return exc
        details = None
        if self._traceback_on_wire:
            details = {"traceback": "".join(traceback.format_exception(exc))[-8000:]}
        return RemoteError(str(exc), type_name=type(exc).__name__, details=details)

    def stop_one(self, running: Running, why: str) -> None:
        """Stop a call that is queued or runs; its handler sees CancelledError."""
        if running.stopped:
            return
        running.stopped = why
        if running.task is not None:
            running.task.cancel()
            return
        hosted = running.hosted
        if hosted.gate is not None and hosted.gate.withdraw(running):
            error = self._as_error(running, asyncio.CancelledError())
            self._settle(running, error.code)
        else:
            hosted.service_gate.withdraw(running)
            error = self._as_error(running, asyncio.CancelledError())
            self._settle(running, error.code)
            if hosted.gate is not None:
                self._pass_on(hosted.gate)
        running.conversation.callee.refuse(running.id, error)
        running.conversation.channel.wake()

    def _sweep(self) -> None:
        """Stop what is past its deadline. One timer for all: to watch each call would cost more than it is worth, as
        the caller keeps its own time and this only spares work that nobody waits for."""
        now = self._now()
        self._sweeping = None
        self._widowed = {conversation for conversation in self._widowed if conversation.running}
        for conversation in (*self._conversations, *self._widowed):
            for running in list(conversation.running.values()):
                if running.deadline_at <= now:
                    self.stop_one(running, DEADLINE)
        if self._widowed or any(conversation.running for conversation in self._conversations):
            self._sweeping = self._clock.call_at(now + SWEEP_S, self._sweep)

    # --- places -----------------------------------------------------------------------------------------------

    def _end(self, running: Running, code: str) -> None:
        """A call that had its places is over: give them on."""
        hosted = running.hosted
        self._settle(running, code)
        if running.hold is not None and not running.hold.done():
            # A thread or process cannot be stopped: it keeps its place until it is done, or the limit would lie.
            running.hold.cancel()
            if not running.hold.done():
                running.hold.add_done_callback(lambda _: self._give_back_later(hosted))
                return
        self._give_back(hosted)

    def _give_back_later(self, hosted: Hosted) -> None:
        """From the pool's own thread; by then the worker may have ended."""
        try:
            self._loop.call_soon_threadsafe(self._give_back, hosted)
        except RuntimeError:
            return

    def _give_back(self, hosted: Hosted) -> None:
        following = hosted.service_gate.release()
        if following is not None:
            self._launch(following)
        if hosted.gate is not None:
            self._pass_on(hosted.gate)

    def _pass_on(self, gate: Gate[Running]) -> None:
        """A place behind a method's gate is free: the next one goes on to the service's gate."""
        following = gate.release()
        if following is None:
            return
        verdict = following.hosted.service_gate.admit(following)
        if verdict is RUN:
            self._launch(following)
        elif verdict is REFUSE:
            error = Overloaded(f"{following.target}: the service has no place left in {self._identity}")
            self._settle(following, error.code)
            following.conversation.callee.refuse(following.id, error)
            following.conversation.channel.wake()
            self._pass_on(gate)

    def _settle(self, running: Running, code: str) -> None:
        running.conversation.running.pop(running.id, None)
        running.hosted.stats.end(self._now() - running.began_at, code)
        if self.leaving is not None:
            self.look_whether_drained()

    # --- leaving ----------------------------------------------------------------------------------------------

    def goodbye(self, reason: str) -> None:
        """Tell every caller that nothing new is taken; what runs goes on."""
        self.leaving = reason
        for conversation in self._conversations:
            conversation.callee.goodbye(reason)
            conversation.channel.wake()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every call in hand is answered and every caller has read the goodbye; whether that was in time."""
        if self.leaving is None:
            self.goodbye("stopping")
        if self._is_drained():
            return True
        self._drained = self._loop.create_future()
        timer = self._clock.call_at(self._now() + timeout_s, self._overtime)
        try:
            await self._drained
        finally:
            timer.cancel()
            self._drained = None
        return self._is_drained()

    def _is_drained(self) -> bool:
        return all(
            not conversation.running and (conversation.callee.parted or conversation.callee.state is not Link.LEAVING)
            for conversation in self._conversations
        )

    def look_whether_drained(self) -> None:
        """Something ended: wake `drain` when that was the last."""
        if self._drained is not None and not self._drained.done() and self._is_drained():
            self._drained.set_result(None)

    def _overtime(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def close(self) -> None:
        """Stop whatever still runs, flush and close."""
        tasks = []
        for conversation in (*self._conversations, *self._widowed):
            for running in list(conversation.running.values()):
                self.stop_one(running, STOPPING)
                if running.task is not None:
                    tasks.append(running.task)
        if tasks:
            # A handler that swallows its cancellation does not keep the worker: two seconds, then it is left.
            await asyncio.wait(tasks, timeout=2.0)
        if self._listener is not None:
            await self._listener.close(linger_s=1.0)
        if self._sweeping is not None:
            self._sweeping.cancel()


def _too_large(target: str, size: int, most: int) -> MeshError:
    return RemoteError(
        f"{target} answered with {size} bytes; calls.max_body allows {most}", type_name="TooLarge", code="too_large"
    )


if sys.version_info >= (3, 12):

    def _task(coroutine: Any, loop: asyncio.AbstractEventLoop, name: str) -> asyncio.Task[None]:
        # Runs at once to its first wait: most handlers never wait, and are done without a turn of the loop.
        return asyncio.Task(coroutine, loop=loop, name=name, eager_start=True)

else:

    def _task(coroutine: Any, loop: asyncio.AbstractEventLoop, name: str) -> asyncio.Task[None]:
        # Not loop.create_task: half as long again, for a factory that nobody has set.
        return asyncio.Task(coroutine, loop=loop, name=name)
