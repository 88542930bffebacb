"""A caller and a callee that are used by honest users, and the promises that hold whatever is interleaved how.

A `Pair` is both machines, both users, and the wire between them. Each method is one thing that may happen next; what
may happen now is what `actions` lists. The promises are asserted where they could be broken first:

- every call gets exactly one last word, or is reported lost, or was given up by its caller;
- an answer is the one that was given, and a given-up call delivers nothing;
- items come in order, all of those sent before the end, and never more than were granted;
- a cancel is heard at most once, and only for what runs;
- no end sees a violation, and at rest neither remembers a call;
- with the pong after a goodbye, no call is on its way any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.errors import Cancelled, ServiceError, UnknownMethod
from mesh.protocol.callee import Callee
from mesh.protocol.caller import Caller
from mesh.protocol.codec import INLINE_BYTES, Buffer, Reader
from mesh.protocol.link import Link
from mesh.protocol.messages import (
    CALL,
    CANCEL,
    CREDIT,
    END,
    ERROR,
    GOODBYE,
    HELLO,
    ITEM,
    NAMES,
    OPEN,
    PING,
    PONG,
    REFUSED,
    REPLY,
    WELCOME,
)
from mesh.protocol.stream import Inflow, Outflow

CREDIT_OF_LINK = 5
SIZES = (0, 10, INLINE_BYTES, INLINE_BYTES + 1)


class Asked:
    """A call or stream as its user sees it."""

    def __init__(self, stream: bool, body: bytes, window: int) -> None:
        self.stream = stream
        self.body = body
        self.inflow = Inflow(window)
        self.unread = 0
        self.items: list[bytes] = []
        self.end: Any = None  # the last word, or "lost", or "given up"


class Served:
    """A call or stream as its handler sees it."""

    def __init__(self, stream: bool, outflow: Outflow | None) -> None:
        self.stream = stream
        self.outflow = outflow
        self.cancelled = False


class Pair:
    """See the module's head."""

    def __init__(self) -> None:
        self.asked: dict[int, Asked] = {}
        self.served: dict[int, Served] = {}
        self.sent_items: dict[int, list[bytes]] = {}
        self.last_words: dict[int, tuple[int, Any]] = {}
        self.heard_by_callee = 0
        self.lives = 0
        self.connect()

    def connect(self) -> None:
        """A fresh connection between two processes."""
        self.lives += 1
        self.caller = Caller("ann-1", 1, 1 << 20)
        self.callee = Callee("bob-1", 2, CREDIT_OF_LINK, 1 << 20)
        self.to_callee: list[list[Buffer]] = []
        self.to_caller: list[list[Buffer]] = []
        self.asked, self.served, self.sent_items, self.last_words = {}, {}, {}, {}
        self.heard_by_callee = 0
        self.callee.connected()
        self.caller.connected()

    # --- what may happen --------------------------------------------------------------------------

    def actions(self) -> list[tuple[Callable[..., None], int]]:
        """What may happen now: a method, and how many choices its argument has."""
        may: list[tuple[Callable[..., None], int]] = [(self.flush_caller, 1), (self.flush_callee, 1)]
        if self.to_callee:
            may += [(self.deliver_to_callee, len(self.to_callee))] * 2
        if self.to_caller:
            may += [(self.deliver_to_caller, len(self.to_caller))] * 2
        if self.caller.state in (Link.OPEN, Link.LEAVING):
            may.append((self.ping, 100))
        if self.caller.state is Link.OPEN and len(self.caller.calls) < self.caller.credit:
            may += [(self.call, len(SIZES)), (self.call, len(SIZES)), (self.open, 3), (self.open, 3)]
        waiting = self.waiting()
        if waiting:
            may.append((self.give_up, len(waiting)))
        if self.unread():
            may += [(self.read_item, len(self.unread()))] * 2
        if self.served:
            may += [(self.answer, len(self.served) * 6), (self.answer, len(self.served) * 6)]
        if self.sendable():
            may += [(self.send_item, len(self.sendable()) * len(SIZES))] * 3
        return may

    def waiting(self) -> list[int]:
        return [call for call, asked in self.asked.items() if asked.end is None]

    def unread(self) -> list[int]:
        return [call for call, asked in self.asked.items() if asked.unread]

    def sendable(self) -> list[int]:
        return [call for call, served in self.served.items() if served.outflow is not None and served.outflow.credit]

    # --- the caller's user ------------------------------------------------------------------------

    def call(self, size: int) -> None:
        """Make a call with a body of one of SIZES."""
        body = bytes([self.caller.last_id % 251]) * SIZES[size]
        self.asked[self.caller.call("a.b", 1000, body)] = Asked(False, body, 0)

    def open(self, window: int) -> None:
        """Open a stream with a window of 1 to 3."""
        self.asked[self.caller.open("a.s", 1000, b"", window + 1)] = Asked(True, b"", window + 1)

    def give_up(self, which: int) -> None:
        """Cancel something that has no last word."""
        call = self.waiting()[which]
        self.caller.cancel(call)
        asked = self.asked[call]
        asked.end, asked.unread = "given up", 0

    def read_item(self, which: int) -> None:
        """Consume an item that has come, and grant what is due."""
        call = self.unread()[which]
        asked = self.asked[call]
        asked.unread -= 1
        grant = asked.inflow.consumed()
        if grant:
            self.caller.grant(call, grant)

    def ping(self, number: int) -> None:
        self.caller.ping(number)

    # --- the callee's user ------------------------------------------------------------------------

    def answer(self, choice: int) -> None:
        """Give the last word on something that runs."""
        call = list(self.served)[choice // 6]
        served = self.served.pop(call)
        kind = (REPLY, REPLY, REPLY, ERROR, ERROR, REFUSED)[choice % 6]
        said: Any = None
        if kind == REPLY and served.stream:
            kind = END
            self.callee.end(call)
        elif kind == REPLY:
            said = b"answer %d " % call * (SIZES[choice % len(SIZES)] // 8)
            self.callee.reply(call, said)
        elif kind == ERROR:
            error = Cancelled("stopped") if served.cancelled else ServiceError("failed")
            said = error.code
            self.callee.error(call, error)
        else:
            said = UnknownMethod.code
            self.callee.refuse(call, UnknownMethod("none"))
        self.last_words[call] = (kind, said)

    def send_item(self, choice: int) -> None:
        """Send one item of a stream that has credit."""
        call = self.sendable()[choice // len(SIZES)]
        served = self.served[call]
        assert served.outflow is not None
        assert served.outflow.take()
        items = self.sent_items.setdefault(call, [])
        item = b"%d " % len(items) + b"x" * SIZES[choice % len(SIZES)]
        items.append(item)
        self.callee.item(call, item)

    def goodbye(self) -> None:
        self.callee.goodbye("deploy")

    # --- the wire ---------------------------------------------------------------------------------

    def flush_caller(self, _: int = 0) -> None:
        self.to_callee += self.caller.data_to_send()

    def flush_callee(self, _: int = 0) -> None:
        self.to_caller += self.callee.data_to_send()

    def deliver_to_callee(self, count: int) -> None:
        """The first so many messages (and one) arrive."""
        for _ in range(count + 1):
            for message in self.callee.receive(self.to_callee.pop(0)):
                self._callee_hears(message)
        if self.callee.parted:
            assert not any(map(_holds_a_call, self.to_callee)), "with the pong, no call is on its way"

    def deliver_to_caller(self, count: int) -> None:
        for _ in range(count + 1):
            for message in self.caller.receive(self.to_caller.pop(0)):
                self._caller_hears(message)

    def cut(self) -> None:
        """The connection breaks: what is on the wire or unwritten is gone, and both ends are told."""
        waiting = self.waiting()
        assert self.caller.lost() == waiting, "each that waits is reported, once"
        for call in waiting:
            self.asked[call].end = "lost"
        assert set(self.callee.lost()) == set(self.served), "each that runs is reported, once"
        assert self.caller.calls == {}
        assert self.callee.calls == {}
        self.connect()

    # --- what is heard ----------------------------------------------------------------------------

    def _callee_hears(self, message: list[Any]) -> None:
        kind = message[0]
        if kind == HELLO:
            return
        call = message[1]
        if kind in (CALL, OPEN):
            assert call not in self.served, "a call is started once"
            assert message[2:4] == [("a.b" if kind == CALL else "a.s"), 1000]
            assert bytes(message[4]) == self.asked[call].body
            self.served[call] = Served(kind == OPEN, Outflow(message[5]) if kind == OPEN else None)
            self.heard_by_callee = max(self.heard_by_callee, call)
            assert len(self.served) <= CREDIT_OF_LINK
        elif kind == CANCEL:
            served = self.served[call]
            assert not served.cancelled, "a cancel is heard once"
            assert self.asked[call].end == "given up"
            served.cancelled = True
        else:
            assert kind == CREDIT, NAMES[kind]
            outflow = self.served[call].outflow
            assert outflow is not None
            outflow.grant(message[2])

    def _caller_hears(self, message: list[Any]) -> None:
        kind = message[0]
        if kind in (WELCOME, GOODBYE, PING, PONG):
            return
        call = message[1]
        asked = self.asked[call]
        assert asked.end is None, "nothing comes after the last word, or for what was given up"
        if kind == ITEM:
            assert asked.stream
            asked.inflow.arrived()  # raises when the sender had no credit
            asked.items.append(bytes(message[2]))
            asked.unread += 1
            return
        asked.end = kind
        if kind == REFUSED and message[2]["code"] == "draining":
            assert call not in self.last_words
            assert call > self.heard_by_callee
            return
        assert (kind, self._said(message)) == self.last_words[call], "the answer that was given"
        assert asked.items == self.sent_items.get(call, []), "every item that was sent, in order"

    @staticmethod
    def _said(message: list[Any]) -> Any:
        if message[0] == REPLY:
            return bytes(message[2])
        return None if message[0] == END else message[2]["code"]

    # --- promises that always hold ----------------------------------------------------------------

    def check(self) -> None:
        """Between any two steps."""
        assert set(self.callee.calls) == set(self.served), "what the callee owes is what runs"
        assert set(self.served) <= set(self.caller.calls), "what runs is known to its caller"
        assert set(self.waiting()) <= set(self.caller.calls), "what waits is known to the link"
        assert len(self.caller.calls) <= CREDIT_OF_LINK
        for asked in self.asked.values():
            assert asked.unread <= asked.inflow.window, "a reader holds no more than its window"

    def settle(self) -> None:
        """Let everything come to its end, and see that nothing is left."""
        for _ in range(10_000):
            before = self.to_callee, self.to_caller
            self.flush_caller()
            self.flush_callee()
            if self.to_callee:
                self.deliver_to_callee(len(self.to_callee) - 1)
            if self.to_caller:
                self.deliver_to_caller(len(self.to_caller) - 1)
            while self.unread():
                self.read_item(0)
            if self.served:
                self.answer(0)
            self.check()
            if not (self.served or self.caller.owes or self.callee.owes or self.waiting() or any(before)):
                break
        assert self.waiting() == [], "every call has its last word"
        assert self.caller.calls == {}, "no id is left with the caller"
        assert self.callee.calls == {}, "no id is left with the callee"
        if self.callee.state is Link.LEAVING:
            assert self.callee.parted


def _holds_a_call(frames: list[Buffer]) -> bool:
    return any(message[0] in (CALL, OPEN) for message in Reader().read(list(frames)))
