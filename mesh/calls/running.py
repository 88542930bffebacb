"""The methods that a worker hosts, and the calls that it has admitted.

Owns: the two records. Leaves to others: filling them in (server), running handlers (handling).
"""

from __future__ import annotations

import asyncio
from copy import copy
from typing import Any, Protocol

import msgspec

from mesh.calls.context import CallContext
from mesh.calls.inbound import Inbound
from mesh.calls.method import Method
from mesh.calls.propagation import Values
from mesh.config import AccessRule
from mesh.errors import Forbidden
from mesh.policy.limits import Gate
from mesh.protocol.callee import Callee
from mesh.protocol.messages import MSGPACK, MSGPACK_ANSWER
from mesh.protocol.stream import Outflow
from mesh.telemetry.metrics import MethodStats, Recorder
from mesh.transport.contract import Channel


class Conversation(Protocol):
    """The conversation with one caller, as far as its running handlers and its authorization use it.

    Attributes:
        callee: the protocol's state for this caller.
        channel: the link.
        running: the admitted calls by their ids.
        permits: the decisions of `[access]` on this caller, by target: denied, allowed for the principals of some
            rules, or allowed.
        asserts: whether `[access]` lets the caller assert principals; None until that was asked.
    """

    callee: Callee
    channel: Channel
    running: dict[int, Running]
    permits: dict[str, Forbidden | tuple[AccessRule, ...] | None]
    asserts: bool | None


class Hosted:
    """A method with its metrics and its concurrency gates."""

    __slots__ = ("_mirrored", "gate", "method", "opened", "service_gate", "stats")

    def __init__(self, method: Method, service_gate: Gate[Running], stats: MethodStats) -> None:
        self.method = method
        self.opened = method.opened
        self.service_gate = service_gate
        self.gate: Gate[Running] | None = Gate(method.concurrency, method.queue) if method.concurrency else None
        self.stats = stats
        self._mirrored: Hosted | None = None

    def mirrored(self, recorder: Recorder) -> Hosted:
        """The same method and gates for copies of calls, which are counted separately."""
        twin = self._mirrored
        if twin is None:
            twin = self._mirrored = copy(self)
            twin.stats = recorder.method("mirror", self.method.service, self.method.name)
        return twin


class Running(msgspec.Struct, CallContext, eq=False):
    """One call, from its admission to its final message; the CallContext of its handler. (A Struct, because one is made
    for every call.)

    Attributes:
        body: the encoded arguments; None once they are decoded.
        values: the decoded arguments.
        answer_encoding: the encoding of the answer, when it differs from that of the arguments.
        outflow: of a stream: the credit for items.
        credited: of a stream: the future that resolves when credit arrives.
        begun: whether the handler's task has run its first step.
        stopped: why the handler was stopped; "" while it was not.
        hold: the future of a job in a pool, which cannot be stopped there.
        waited_s: how long the call was queued before its handler began.
        reconnects: of a stream: its reader reconnects to another instance by itself when this one drains.
        carried: see CallContext.
        reply_meta: the metadata of the answer: what an http.Response sets.
        inbound: the items that the caller sends; None without a client stream.
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
    answer_encoding: int | None = None
    trace: str | None = None
    meta: dict[str, str] = {}
    outflow: Outflow | None = None
    values: tuple[Any, ...] = ()
    task: asyncio.Task[None] | None = None
    begun: bool = False
    stopped: str = ""
    credited: asyncio.Future[None] | None = None
    hold: Any = None
    waited_s: float = 0.0
    reconnects: bool = False
    carried: Values | None = None
    reply_meta: dict[str, str] | None = None
    inbound: Inbound | None = None

    def answer(self, form: str) -> None:
        """Select another encoding for the answer than that of the arguments; an unknown `form` changes nothing."""
        if form == MSGPACK_ANSWER:
            self.answer_encoding = MSGPACK
            if self.body is None:
                # The arguments are decoded already, so `encoding` now only selects that of the answer.
                self.encoding = MSGPACK

    @property
    def user(self) -> str:
        """The name of the key that the caller's process proved to hold; "" where links have no keys."""
        return self.conversation.channel.user
