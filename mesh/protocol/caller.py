"""The calling end of one link: a state machine for its calls and streams, without socket, loop or clock.

Owns: ids, which answers are legal next, and which messages to send.
Leaves to others: sockets (transport), when a call is late (calls), choosing a peer (policy.balance).

`receive` returns the messages to handle, and discards answers that crossed a cancel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mesh.errors import ProtocolViolation
from mesh.protocol.allowance import FRAME
from mesh.protocol.codec import INLINE_BYTES, Buffer, Reader, Writer, text_size
from mesh.protocol.link import CONNECTED, DIALLER, LOST, Link, check_version, step
from mesh.protocol.messages import (
    CALL,
    CANCEL,
    CREDIT,
    END,
    ERROR,
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

# The states of a call. Small ints, because each answer needs a look-up by (state, kind).
WAITING: Final = 1
STREAMING: Final = 2
ABANDONED: Final = 3  # cancelled by this end; its final message is still to come, then the id is free
SENDING: Final = 4  # opened, and this end sends items: a client stream
DONE: Final = 0

#: (state, kind received) -> next state. A missing key is a violation.
CALLER: Final[dict[tuple[int, int], int]] = {
    (WAITING, REPLY): DONE,
    (WAITING, ERROR): DONE,
    (WAITING, REFUSED): DONE,
    (STREAMING, ITEM): STREAMING,
    (STREAMING, END): DONE,
    (STREAMING, ERROR): DONE,
    (STREAMING, REFUSED): DONE,
    (SENDING, CREDIT): SENDING,
    (SENDING, ITEM): SENDING,
    (SENDING, END): DONE,
    (SENDING, REPLY): DONE,
    (SENDING, ERROR): DONE,
    (SENDING, REFUSED): DONE,
    (ABANDONED, REPLY): DONE,
    (ABANDONED, ERROR): DONE,
    (ABANDONED, REFUSED): DONE,
    (ABANDONED, ITEM): ABANDONED,
    (ABANDONED, END): DONE,
    (ABANDONED, CREDIT): ABANDONED,
}

#: The kinds of message that a calling end accepts.
HEARD: Final = frozenset(kind for _, kind in (*CALLER, *DIALLER) if kind > 0)


def _tail(encoding: int, trace: str | None, meta: Mapping[str, str] | None) -> tuple[Any, ...]:
    """The optional fields of a message, without trailing defaults."""
    if meta is not None:
        return (encoding, trace, meta)
    return (encoding, trace) if trace is not None else (encoding,)


class Caller:
    """One link's calling end.

    Attributes:
        state: state of the link.
        peer: identity of the other end, "" before its welcome.
        peer_epoch: when the other end started, ms since 1970.
        credit: how many calls may be under way at once; 0 before the welcome.
        max_body: the largest body in bytes that the other end accepts.
        calls: id -> state of every call under way, including abandoned ones.
        idle: messages that answered no call, since the pool last reset this (protocol.allowance).
    """

    __slots__ = (
        "_identity",
        "_next",
        "_pack",
        "_reader",
        "_writer",
        "calls",
        "credit",
        "idle",
        "max_body",
        "peer",
        "peer_epoch",
        "state",
    )

    def __init__(self, identity: str, epoch: int, max_body: int) -> None:
        self.state = Link.CONNECTING
        self.peer = ""
        self.peer_epoch = 0
        self.credit = 0
        self.idle = 0
        self.max_body = 0
        self.calls: dict[int, int] = {}
        self._next = 0
        self._identity = (identity, epoch, max_body)
        self._writer = Writer()
        self._pack = self._writer.add
        self._reader = Reader(HEARD)

    @property
    def last_id(self) -> int:
        """The id of the newest call; 0 before the first."""
        return self._next

    @property
    def owes(self) -> bool:
        """Whether there are messages to send, such as a pong."""
        return bool(self._writer)

    # --- the connection -----------------------------------------------------------------------------

    def connected(self) -> None:
        """The connection is open: send hello."""
        self.state = step(DIALLER, self.state, CONNECTED)
        self._pack(HELLO, VERSION, *self._identity)

    def lost(self) -> list[int]:
        """The connection was lost. Returns the ids of the calls that waited for an answer, oldest first."""
        if self.state is not Link.CLOSED:
            self.state = step(DIALLER, self.state, LOST)
        waiting = [call for call, state in self.calls.items() if state != ABANDONED]
        self.calls.clear()
        return waiting

    # --- sending --------------------------------------------------------------------------------------

    def call(
        self,
        target: str,
        budget_ms: int,
        body: Buffer,
        encoding: int = 0,
        trace: str | None = None,
        meta: Mapping[str, str] | None = None,
    ) -> int:
        """Write a call and return its id.

        The client has checked `state` and `credit`, and that all text is valid Unicode: a message that cannot be packed
        also destroys the messages before it in the frame.
        """
        self._next = call = self._next + 1
        self.calls[call] = WAITING
        if meta is None and trace is None and encoding == 0 and len(body) <= INLINE_BYTES:
            self._writer.add_small(CALL, call, target, budget_ms, body)
        else:
            if meta:
                self._writer.expect(text_size(meta))
            self._writer.add_body((CALL, call, target, budget_ms), body, _tail(encoding, trace, meta))
        return call

    def open(
        self,
        target: str,
        budget_ms: int,
        body: Buffer,
        window: int,
        encoding: int = 0,
        trace: str | None = None,
        meta: Mapping[str, str] | None = None,
        *,
        sends: bool = False,
    ) -> int:
        """Write the opening of a stream and return its id.

        Args:
            sends: this end sends items, too: a client stream.
        """
        self._next = call = self._next + 1
        self.calls[call] = SENDING if sends else STREAMING
        if meta:
            self._writer.expect(text_size(meta))
        self._writer.add_body((OPEN, call, target, budget_ms), body, (window, *_tail(encoding, trace, meta)))
        return call

    def cancel(self, call: int) -> None:
        """Cancel a call. Harmless when its answer has arrived."""
        if self.calls.get(call, ABANDONED) != ABANDONED:
            self.calls[call] = ABANDONED
            self._pack(CANCEL, call)

    def grant(self, call: int, items: int) -> None:
        """Allow `items` more items of a stream. Harmless when it has ended."""
        if self.calls.get(call) in (STREAMING, SENDING):
            self._pack(CREDIT, call, items)

    def item(self, call: int, body: Buffer, encoding: int = 0) -> None:
        """Send one item of a client stream; the client has used a credit for it. Harmless when the call has ended."""
        if self.calls.get(call) == SENDING:
            self._writer.add_body((ITEM, call), body, (encoding,) if encoding else ())

    def end(self, call: int) -> None:
        """A client stream is complete; its call goes on. Harmless when the call has ended."""
        if self.calls.get(call) == SENDING:
            self._pack(END, call)

    def ping(self, number: int) -> None:
        """Send a ping, which the peer's event loop answers, not its I/O thread."""
        self._pack(PING, number)

    # --- receiving --------------------------------------------------------------------------------------

    def receive(self, frames: list[Buffer]) -> list[list[Any]]:
        """Read one ZeroMQ message. Returns the messages in it that must be handled, in order.

        These are reply, error, refused, item, end and credit of calls that are not abandoned, and all messages of the
        link.

        Raises:
            ProtocolViolation: the peer violated docs/wire.md, or rejected the link: close the connection. Messages
                before the fault in the same ZeroMQ message are not returned.
        """
        wanted: list[list[Any]] = []
        calls = self.calls
        messages = self._reader.read(frames)
        if len(messages) < 2 and (not messages or messages[0][0] < CREDIT):
            self.idle += FRAME
        for message in messages:
            kind = message[0]
            if kind >= CREDIT:
                call = message[1]
                state = calls.get(call)
                after = CALLER.get((state, kind)) if state is not None else None
                if after is None:
                    raise ProtocolViolation(
                        f"{NAMES[kind]}: not legal for call {call}, which is "
                        + ("unknown" if state is None else ("waiting", "streaming", "abandoned", "sending")[state - 1])
                    )
                if after == DONE:
                    del calls[call]
                if state != ABANDONED:
                    wanted.append(message)
                else:
                    self.idle += 1
            else:
                self.idle += 1
                self._link(kind, message)
                wanted.append(message)
        return wanted

    def _link(self, kind: int, message: list[Any]) -> None:
        if kind == WELCOME:
            check_version(message)
        self.state = step(DIALLER, self.state, kind)
        if kind == WELCOME:
            self.peer, self.peer_epoch, self.credit, self.max_body = message[2:6]
        elif kind == PING:
            self._pack(PONG, message[1])
        elif kind == REJECT:
            raise ProtocolViolation(f"peer rejected the link: {message[1]}: {message[2]}")

    def data_to_send(self) -> list[list[Buffer]]:
        """What waits to leave; empties the queue."""
        return self._writer.take()
