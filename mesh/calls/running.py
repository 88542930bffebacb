"""What a worker hosts and what it has in hand.

Owns: the two records. Leaves to others: filling them in (server), running handlers (handling).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from mesh.calls.method import Method
from mesh.policy.limits import Gate
from mesh.protocol.messages import MSGPACK, MSGPACK_ANSWER
from mesh.protocol.stream import Outflow
from mesh.telemetry.metrics import MethodStats

if TYPE_CHECKING:
    from mesh.calls.server import Conversation


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
        body: the encoded arguments, None once they are decoded; `values`: the decoded ones.
        answer_encoding: of the answer, where it is to be another than that of the arguments.
        outflow, credited: of a stream: what may still be sent, and who waits for more.
        begun: its handler's task has had its first step.
        stopped: why its handler was told to stop, "" while it was not.
        hold: what runs in a pool and cannot be stopped there.
        waited_s: how long it was queued before its handler began.
        reconnects: of a stream: its reader finds another instance by itself when this one leaves.
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

    def answer(self, form: str) -> None:
        """Answer in another encoding than that of the arguments; an unknown form changes nothing."""
        if form == MSGPACK_ANSWER:
            self.answer_encoding = MSGPACK
            if self.body is None:
                # The arguments are decoded: what is left to encode is the answer.
                self.encoding = MSGPACK

    @property
    def user(self) -> str:
        """The name of the key that the caller's process proved to hold; "" where links have no keys."""
        return self.conversation.channel.user
