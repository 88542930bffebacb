"""The answering end of one link: a state machine for its calls and streams, without socket, loop or clock.

Owns: which calls run, which answers are legal, refusing calls that come after goodbye or exceed the credit.
Leaves to others: running handlers (calls.server), the socket (transport), deadlines (calls).
"""

from __future__ import annotations

from typing import Any, Final

from mesh.errors import Draining, MeshError, Overloaded, ProtocolViolation
from mesh.protocol.allowance import FRAME
from mesh.protocol.codec import INLINE_BYTES, Buffer, Reader, Writer, error_map, text_size
from mesh.protocol.link import ACCEPTOR, CONNECTED, LOST, Link, check_version, step
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
    REJECT,
    REPLY,
    VERSION,
    WELCOME,
)

RUNNING: Final = 1
STREAMING: Final = 2
STOPPING: Final = 3  # the caller cancelled; the handler is being stopped, and a final message must still be sent
DONE: Final = 0

#: (state, kind sent or received) -> next state. A missing key is a bug here (sent) or a violation (received).
CALLEE: Final[dict[tuple[int, int], int]] = {
    (RUNNING, REPLY): DONE,
    (RUNNING, ERROR): DONE,
    (RUNNING, REFUSED): DONE,
    (RUNNING, CANCEL): STOPPING,
    (STREAMING, ITEM): STREAMING,
    (STREAMING, END): DONE,
    (STREAMING, ERROR): DONE,
    (STREAMING, REFUSED): DONE,
    (STREAMING, REPLY): DONE,  # of a client stream with one answer
    (STREAMING, CREDIT): STREAMING,
    (STREAMING, CANCEL): STOPPING,
    (STOPPING, REPLY): DONE,
    (STOPPING, ERROR): DONE,
    (STOPPING, REFUSED): DONE,
    (STOPPING, END): DONE,
    (STOPPING, CANCEL): STOPPING,
    (STOPPING, CREDIT): STOPPING,
}


#: The same for the messages of a client stream, which the caller sends: the kinds are those of items to the caller.
CLIENT_STREAM: Final[dict[tuple[int, int], int]] = {
    (STREAMING, ITEM): STREAMING,
    (STREAMING, END): STREAMING,
    (STOPPING, ITEM): STOPPING,
    (STOPPING, END): STOPPING,
}


class Callee:
    """One link's answering end.

    Attributes:
        state: state of the link.
        peer: identity of the calling end, "" before its hello.
        calls: id -> state of every call that has not ended.
        idle: messages without a request since the server last reset this (protocol.allowance).
        parted: whether the caller has read the goodbye and sent all calls that crossed it.
    """

    __slots__ = (
        "_credit",
        "_identity",
        "_pack",
        "_reader",
        "_writer",
        "calls",
        "idle",
        "parted",
        "peer",
        "peer_epoch",
        "state",
    )

    def __init__(self, identity: str, epoch: int, credit: int, max_body: int) -> None:
        self.state = Link.CONNECTING
        self.peer = ""
        self.peer_epoch = 0
        self.parted = False
        self.idle = 0
        self.calls: dict[int, int] = {}
        self._credit = credit
        self._identity = (identity, epoch, credit, max_body)
        self._writer = Writer()
        self._pack = self._writer.add
        self._reader = Reader()

    def connected(self) -> None:
        """A connection was accepted: wait for its hello."""
        self.state = step(ACCEPTOR, self.state, CONNECTED)

    def lost(self) -> list[int]:
        """The connection was lost. Returns the ids of calls that were running; their answers have no receiver now."""
        if self.state is not Link.CLOSED:
            self.state = step(ACCEPTOR, self.state, LOST)
        running = list(self.calls)
        self.calls.clear()
        return running

    # --- receiving --------------------------------------------------------------------------------------

    def receive(self, frames: list[Buffer]) -> list[list[Any]]:
        """Read one ZeroMQ message. Returns the messages that the server must handle: call, open, cancel, credit, hello,
        and item and end of client streams.

        Raises:
            ProtocolViolation: the peer violated docs/wire.md; `data_to_send` then returns a reject for it.
        """
        try:
            return self._receive(frames)
        except ProtocolViolation as violation:
            self._pack(REJECT, violation.code, violation.message[:500])
            raise

    def _receive(self, frames: list[Buffer]) -> list[list[Any]]:
        wanted: list[list[Any]] = []
        calls = self.calls
        messages = self._reader.read(frames)
        for message in messages:
            kind = message[0]
            if kind == CALL or kind == OPEN:
                call = message[1]
                if self.state is Link.OPEN and call not in calls and len(calls) < self._credit:
                    calls[call] = RUNNING if kind == CALL else STREAMING
                    wanted.append(message)
                else:
                    self.idle += 1
                    self._decline(kind, call)
            elif kind == CANCEL or kind == CREDIT:
                state = calls.get(message[1])
                if state is None:
                    if self.state is Link.GREETING:
                        raise ProtocolViolation(f"{NAMES[kind]}: not legal while the link is {self.state.value}")
                    self.idle += 1
                    continue  # it crossed the final message of this end
                after = CALLEE.get((state, kind))
                if after is None:
                    raise ProtocolViolation(f"{NAMES[kind]}: call {message[1]} is not a stream")
                calls[message[1]] = after
                if after != state or (kind == CREDIT and message[2]):
                    wanted.append(message)
                else:
                    self.idle += 1
            elif kind == ITEM or kind == END:
                state = calls.get(message[1])
                if state is None and self.state is not Link.GREETING:
                    self.idle += 1
                    continue  # it crossed the final message of this end
                if state is None or (state, kind) not in CLIENT_STREAM:
                    raise ProtocolViolation(f"{NAMES[kind]}: call {message[1]} is not a stream")
                if state == STREAMING:
                    wanted.append(message)
                else:
                    self.idle += 1
            else:
                self.idle += 1
                self._link(kind, message)
                if kind == HELLO:
                    wanted.append(message)
        if not wanted:
            self.idle += FRAME
        return wanted

    def _decline(self, kind: int, call: int) -> None:
        if self.state is Link.LEAVING:
            self._say(REFUSED, call, Draining(f"{self._identity[0]} is draining"))
        elif self.state is not Link.OPEN:
            raise ProtocolViolation(f"{NAMES[kind]}: not legal while the link is {self.state.value}")
        elif call in self.calls:
            raise ProtocolViolation(f"{NAMES[kind]}: id {call} is in use")
        else:
            self._say(REFUSED, call, Overloaded(f"{self._identity[0]}: more than {self._credit} calls on one link"))

    def _link(self, kind: int, message: list[Any]) -> None:
        if kind == HELLO:
            check_version(message)
        self.state = step(ACCEPTOR, self.state, kind)
        if kind == HELLO:
            self.peer, self.peer_epoch = message[2:4]
            self._pack(WELCOME, VERSION, *self._identity)
        elif kind == PING:
            self._pack(PONG, message[1])
        elif kind == PONG and self.state is Link.LEAVING:
            self.parted = True

    # --- sending ------------------------------------------------------------------------------------------

    def reply(self, call: int, body: Buffer, encoding: int = 0, meta: dict[str, str] | None = None) -> None:
        """Send the answer of a call. Does nothing for a call that has ended already (its link was lost)."""
        if self.calls.pop(call, None) is None:
            return
        if meta is None and encoding == 0 and len(body) <= INLINE_BYTES:
            self._writer.add_small(REPLY, call, body)
        elif meta is None:
            self._writer.add_body((REPLY, call), body, (encoding,))
        else:
            self._writer.expect(text_size(meta))
            self._writer.add_body((REPLY, call), body, (encoding, meta))

    def error(self, call: int, error: MeshError) -> None:
        """The handler ran and failed."""
        if self._last_word(call, ERROR):
            self._say(ERROR, call, error)

    def refuse(self, call: int, error: MeshError) -> None:
        """The handler never started: the caller may try another instance."""
        if self._last_word(call, REFUSED):
            self._say(REFUSED, call, error)

    def item(self, call: int, body: Buffer, encoding: int = 0) -> None:
        """Send one item of a stream; the server has used a credit for it. Dropped when the caller has cancelled."""
        state = self.calls.get(call)
        if state is not None and (state, ITEM) in CALLEE:
            self._writer.add_body((ITEM, call), body, (encoding,) if encoding else ())

    def grant(self, call: int, items: int) -> None:
        """Allow `items` more items of a client stream. Harmless when its call has ended."""
        if self.calls.get(call) == STREAMING:
            self._pack(CREDIT, call, items)

    def end(self, call: int) -> None:
        """A stream is complete."""
        if self._last_word(call, END):
            self._pack(END, call)

    def _last_word(self, call: int, kind: int) -> bool:
        """End the call with a message of this kind; returns False when it has ended already."""
        state = self.calls.get(call)
        if state is None:
            return False
        if (state, kind) not in CALLEE:
            raise AssertionError(f"{NAMES[kind]} is not a legal answer to call {call}")
        del self.calls[call]
        return True

    def _say(self, kind: int, call: int, error: MeshError) -> None:
        wire, size = error_map(error.to_wire())
        self._writer.expect(size)
        self._pack(kind, call, wire)

    def goodbye(self, reason: str) -> None:
        """Refuse new calls from now on; running calls are still answered. Harmless before the hello and when repeated.

        A ping follows the goodbye. Its pong arrives after the last call that crossed the goodbye: then `parted` is
        true, and closing loses no call.
        """
        if self.state is Link.OPEN:
            self.state = Link.LEAVING
            self._pack(GOODBYE, reason)
            self._pack(PING, 0)

    @property
    def owes(self) -> bool:
        """Whether there are messages to send."""
        return bool(self._writer)

    def data_to_send(self) -> list[list[Buffer]]:
        """The ZeroMQ messages to send; empties the queue."""
        return self._writer.take()
