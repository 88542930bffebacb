"""The answering end of one link: every call and stream on it, as a machine without socket, loop or clock.

Owns: which calls run, which answer is legal, refusing what comes after goodbye or beyond the credit.
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
STOPPING: Final = 3  # the caller cancelled; the handler is being told, and one last word is still owed
DONE: Final = 0

#: (state, kind we send or that came) -> next state; a missing key is a bug here (sending) or a violation (coming).
CALLEE: Final[dict[tuple[int, int], int]] = {
    (RUNNING, REPLY): DONE,
    (RUNNING, ERROR): DONE,
    (RUNNING, REFUSED): DONE,
    (RUNNING, CANCEL): STOPPING,
    (STREAMING, ITEM): STREAMING,
    (STREAMING, END): DONE,
    (STREAMING, ERROR): DONE,
    (STREAMING, REFUSED): DONE,
    (STREAMING, CREDIT): STREAMING,
    (STREAMING, CANCEL): STOPPING,
    (STOPPING, REPLY): DONE,
    (STOPPING, ERROR): DONE,
    (STOPPING, REFUSED): DONE,
    (STOPPING, END): DONE,
    (STOPPING, CANCEL): STOPPING,
    (STOPPING, CREDIT): STOPPING,
}


class Callee:
    """One link's answering end.

    Attributes:
        state: where the link stands.
        peer: identity of the calling end, "" before its hello.
        calls: id -> state of every call that is owed a last word.
        idle: messages that asked for nothing, since the server last looked (protocol.allowance).
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
        """A connection was accepted: its hello is awaited."""
        self.state = step(ACCEPTOR, self.state, CONNECTED)

    def lost(self) -> list[int]:
        """The connection is gone; the ids of calls whose handlers run for nobody now."""
        if self.state is not Link.CLOSED:
            self.state = step(ACCEPTOR, self.state, LOST)
        running = list(self.calls)
        self.calls.clear()
        return running

    # --- what comes -------------------------------------------------------------------------------------

    def receive(self, frames: list[Buffer]) -> list[list[Any]]:
        """Read one ZeroMQ message; what the server must act on: call, open, cancel, credit, hello.

        Raises:
            ProtocolViolation: the other end broke docs/wire.md; `data_to_send` then holds a reject for it.
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
                    continue  # it crossed our last word
                after = CALLEE.get((state, kind))
                if after is None:
                    raise ProtocolViolation(f"{NAMES[kind]}: call {message[1]} is not a stream")
                calls[message[1]] = after
                if after != state or (kind == CREDIT and message[2]):
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
            self._say(REFUSED, call, Draining(f"{self._identity[0]} is leaving"))
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

    # --- what the server says -----------------------------------------------------------------------------

    def reply(self, call: int, body: Buffer, encoding: int = 0, meta: dict[str, str] | None = None) -> None:
        """The answer of a call. Nothing is written for a call that is no longer owed one (its link was lost)."""
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
        """The handler surely never started: the caller may try elsewhere."""
        if self._last_word(call, REFUSED):
            self._say(REFUSED, call, error)

    def item(self, call: int, body: Buffer, encoding: int = 0) -> None:
        """One item of a stream; the server has taken a credit for it. Dropped when the caller has cancelled."""
        state = self.calls.get(call)
        if state is not None and (state, ITEM) in CALLEE:
            self._writer.add_body((ITEM, call), body, (encoding,) if encoding else ())

    def end(self, call: int) -> None:
        """A stream is complete."""
        if self._last_word(call, END):
            self._pack(END, call)

    def _last_word(self, call: int, kind: int) -> bool:
        """Whether the call is owed one; then this is it."""
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
        """Nothing new from here on; what runs is still answered. Harmless before the hello and when said before.

        The ping behind it is answered after the goodbye was read, and so after the last call that crossed it: with
        the pong, `parted` is true, and closing loses nothing.
        """
        if self.state is Link.OPEN:
            self.state = Link.LEAVING
            self._pack(GOODBYE, reason)
            self._pack(PING, 0)

    @property
    def owes(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._writer)

    def data_to_send(self) -> list[list[Buffer]]:
        """What waits to leave; empties the queue."""
        return self._writer.take()
