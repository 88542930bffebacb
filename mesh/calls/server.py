"""Answering calls: a worker's methods behind one listening endpoint.

Owns: conversations with callers, turning messages into admitted calls, deadlines, and draining without losing a call.
Leaves to others: running handlers (handling), [access] (authorization), which messages are legal (protocol), sockets
(transport), the description of a method (method).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from mesh.calls.authorization import CallAuthorization
from mesh.calls.handling import BY_CALLER, CALLER_GONE, DEADLINE, STOPPING, Handling
from mesh.calls.inbound import Inbound
from mesh.calls.method import Method
from mesh.calls.offload import Offload
from mesh.calls.propagation import take
from mesh.calls.running import Hosted, Running
from mesh.clock import Clock, Timer
from mesh.config import AccessRule
from mesh.errors import (
    Forbidden,
    MeshError,
    ProtocolViolation,
    ShapeMismatch,
    UnknownMethod,
)
from mesh.policy.access import Access
from mesh.policy.limits import Gate
from mesh.protocol.allowance import Allowance, Flood
from mesh.protocol.callee import Callee
from mesh.protocol.codec import Buffer
from mesh.protocol.deadline import from_budget
from mesh.protocol.link import Link
from mesh.protocol.messages import ANSWER, CALL, CANCEL, CREDIT, END, ITEM, MIRROR, NAMES, OPEN, RECONNECTS
from mesh.protocol.stream import Outflow
from mesh.suggest import suggestion
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder
from mesh.transport.contract import Channel, Listener, Transport

log = get_logger("mesh.calls")

#: How often deadlines are checked, in seconds.
SWEEP_S: Final = 0.02

#: How long a stream may continue in a draining worker, when its reader reconnects by itself.
STREAM_GRACE_S: Final = 1.0

#: Where the optional fields (encoding, trace, metadata) begin.
_TAIL: Final = {CALL: 5, OPEN: 6}


class Conversation:
    """One caller's link: the session of transport.contract on the accepting side."""

    __slots__ = ("allowance", "asserts", "callee", "channel", "permits", "running", "server")

    def __init__(self, server: Server, channel: Channel, callee: Callee) -> None:
        self.server = server
        self.channel = channel
        self.callee = callee
        self.allowance = Allowance()
        self.running: dict[int, Running] = {}
        #: Decisions of `[access]` on this caller, by target; empty without [access].
        self.permits: dict[str, Forbidden | tuple[AccessRule, ...] | None] = {}
        self.asserts: bool | None = None

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
                    server.handling.stop_one(running, BY_CALLER)
            elif kind == CREDIT:
                running = self.running.get(message[1])
                if running is not None and running.outflow is not None:
                    running.outflow.grant(message[2])
                    if running.credited is not None and not running.credited.done():
                        running.credited.set_result(None)
            elif kind == ITEM or kind == END:
                running = self.running.get(message[1])
                inbound = running.inbound if running is not None else None
                if inbound is None and running is not None:
                    raise ProtocolViolation(f"{NAMES[kind]}: {running.target} takes no items")
                if inbound is not None:
                    inbound.arrived(message) if kind == ITEM else inbound.ended()
            elif server.leaving is not None:
                # A hello that reached a draining worker.
                self.callee.goodbye(server.leaving)
        if self.callee.idle:
            idle, self.callee.idle = self.callee.idle, 0
            if not self.allowance.take(idle, server.now()):
                raise Flood("more messages than the link's credit and allowance permit")
        if self.callee.owes:
            self.channel.wake()
        if self.callee.parted:
            server.look_whether_drained()

    def lost(self, reason: str) -> None:
        self.callee.lost()
        self.server.forget(self)
        for running in list(self.running.values()):
            self.server.handling.stop_one(running, CALLER_GONE)


class Server:
    """The answering side of a process. It belongs to one event loop."""

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
        access: Access | None = None,
        slow_s: float = float("inf"),
        debug: bool = False,
    ) -> None:
        """Args:
        credit: calls that one link may have under way.
        access: which callers may call which methods; None allows all calls.
        slow_s, debug: which calls are logged; see Handling.
        """
        self._transport = transport
        self.now = self._now = clock.now
        self._clock = clock
        self._identity = identity
        self._epoch = epoch
        self._recorder = recorder
        self._credit = credit
        self._max_body = max_body
        self._loop = asyncio.get_running_loop()
        self._sweeping: Timer | None = None
        self._hosted: dict[str, Hosted] = {}
        self._conversations: set[Conversation] = set()
        self._listener: Listener | None = None
        # Conversations that have lost their link but still have running handlers.
        self._widowed: set[Conversation] = set()
        self._drained: asyncio.Future[None] | None = None
        self.leaving: str | None = None
        self._authorization = CallAuthorization(access, recorder, identity) if access is not None else None
        self.handling = Handling(
            clock=clock,
            identity=identity,
            offload=offload,
            max_body=max_body,
            traceback_on_wire=traceback_on_wire,
            ended=self.look_whether_drained,
            slow_s=slow_s,
            debug=debug,
        )

    # --- set-up -------------------------------------------------------------------------------------------

    def host(self, methods: Iterable[Method], concurrency: int, queue: int) -> Gate[Running]:
        """Answer these methods of one service. Returns the service's gate.

        Args:
            concurrency: calls of the service that run at once.
            queue: how many more may wait.
        """
        gate: Gate[Running] = Gate(concurrency, queue)
        for method in methods:
            stats = self._recorder.method("server", method.service, method.name)
            self._hosted[method.target] = Hosted(method, gate, stats)
            if self._authorization is not None:
                self._authorization.services.add(method.service)
        return gate

    async def start(self, endpoint: str) -> str:
        """Listen. Returns the endpoint as bound.

        Raises:
            AddressInUse, BadEndpoint: see transport.contract.
        """
        self._listener = await self._transport.listen(endpoint, self._accept)
        return self._listener.endpoint

    @property
    def in_hand(self) -> int:
        """How many calls and streams have not ended yet."""
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
        """A link was lost."""
        self._conversations.discard(conversation)
        if conversation.running:
            self._widowed.add(conversation)
        self.look_whether_drained()

    # --- admission ------------------------------------------------------------------------------------------

    def start_one(self, conversation: Conversation, message: list[Any]) -> None:
        """Admit a call or stream: start it, queue it, or refuse it."""
        hosted = self._hosted.get(message[2])
        if self._authorization is not None:
            forbidden = self._authorization.refusal(conversation, message)
            if forbidden is not None:
                if hosted is not None:
                    hosted.stats.begin()
                    hosted.stats.end(0.0, forbidden.code)
                self._refuse(conversation, message[1], forbidden)
                return
        if hosted is None:
            self._refuse(conversation, message[1], self._unknown(message[2]))
            return
        method = hosted.method
        stream = message[0] == OPEN
        if stream is not hosted.opened:
            wanted = "a stream: iterate over it" if method.stream else "a call: await it"
            if method.inbound is not None:
                wanted = "a client stream: pass an asynchronous iterator"
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
            from_budget(message[3], now),
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
        if method.inbound is not None:
            at, decode = method.inbound
            running.inbound = Inbound(conversation, running.id, decode)
            running.values = (*running.values[:at], running.inbound, *running.values[at:])
        if running.meta:
            if ANSWER in running.meta:
                running.answer(running.meta.pop(ANSWER))
            running.reconnects = running.meta.pop(RECONNECTS, "") != ""
            running.carried = take(running.meta)
            if MIRROR in running.meta:
                running.hosted = hosted = hosted.mirrored(self._recorder)
            if running.carried is not None and self._authorization is not None:
                running.carried = self._authorization.verified(conversation, running.carried)
        hosted.stats.in_flight += 1
        conversation.running[running.id] = running
        if self._sweeping is None:
            self._sweeping = self._clock.call_at(now + SWEEP_S, self._sweep)
        self.handling.admit(running)

    def _refuse(self, conversation: Conversation, call: int, error: MeshError) -> None:
        conversation.callee.refuse(call, error)
        conversation.channel.wake()

    def _unknown(self, target: str) -> MeshError:
        service, _, method = target.rpartition(".")
        mine = [name.rpartition(".")[2] for name in self._hosted if name.rpartition(".")[0] == service]
        if not mine:
            return UnknownMethod(f"{self._identity} does not run a service {service[:100]!r}")
        return UnknownMethod(f"{service} has no method {method[:100]!r}{suggestion(method, mine)}")

    def _sweep(self) -> None:
        """Stop calls that are past their deadline. One timer serves all calls: a timer each would cost too much, as the
        caller watches the deadline itself and this only avoids work that no caller waits for."""
        now = self._now()
        self._sweeping = None
        self._widowed = {conversation for conversation in self._widowed if conversation.running}
        for conversation in (*self._conversations, *self._widowed):
            for running in list(conversation.running.values()):
                if running.deadline_at <= now:
                    self.handling.stop_one(running, DEADLINE)
        if self._widowed or any(conversation.running for conversation in self._conversations):
            self._sweeping = self._clock.call_at(now + SWEEP_S, self._sweep)

    # --- draining ---------------------------------------------------------------------------------------------

    def goodbye(self, reason: str) -> None:
        """Tell every caller that no new calls are accepted; running calls continue."""
        self.leaving = reason
        self.handling.leaving = True
        for conversation in self._conversations:
            conversation.callee.goodbye(reason)
            conversation.channel.wake()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every admitted call is answered and every caller has read the goodbye; returns whether that was in
        time.

        Streams with readers that reconnect by themselves are stopped after STREAM_GRACE_S: they may be endless.
        """
        if self.leaving is None:
            self.goodbye("stopping")
        if self._is_drained():
            return True
        self._drained = self._loop.create_future()
        timer = self._clock.call_at(self._now() + timeout_s, self._overtime)
        streams = self._clock.call_at(self._now() + min(STREAM_GRACE_S, timeout_s), self._send_readers_elsewhere)
        try:
            await self._drained
        finally:
            timer.cancel()
            streams.cancel()
            self._drained = None
        return self._is_drained()

    def _is_drained(self) -> bool:
        return all(
            not conversation.running and (conversation.callee.parted or conversation.callee.state is not Link.LEAVING)
            for conversation in self._conversations
        )

    def look_whether_drained(self) -> None:
        """Wake `drain` when nothing is left to wait for. Called whenever a call or a link ends."""
        if self._drained is not None and not self._drained.done() and self._is_drained():
            self._drained.set_result(None)

    def _send_readers_elsewhere(self) -> None:
        for conversation in self._conversations:
            for running in list(conversation.running.values()):
                if running.reconnects:
                    self.handling.stop_one(running, STOPPING)

    def _overtime(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def close(self) -> None:
        """Stop all running calls, flush and close."""
        tasks = []
        for conversation in (*self._conversations, *self._widowed):
            for running in list(conversation.running.values()):
                self.handling.stop_one(running, STOPPING)
                if running.task is not None:
                    tasks.append(running.task)
        if tasks:
            # A handler that suppresses its cancellation delays the worker by two seconds at most.
            await asyncio.wait(tasks, timeout=2.0)
        if self._listener is not None:
            await self._listener.close(linger_s=1.0)
        if self._sweeping is not None:
            self._sweeping.cancel()
