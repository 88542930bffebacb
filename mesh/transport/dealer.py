"""The dialling end of one link: one DEALER for one connection, which is never reopened.

Owns: sending the session's messages once per tick, reading, and reporting when the connection is open or lost.
Leaves to others: what the frames mean (the session), dialling again (discovery, calls.pool), expected keys (curve).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import zmq

from mesh.errors import ProtocolViolation
from mesh.telemetry.logs import get_logger
from mesh.transport.contract import Buffer, MakeSession, Refusal
from mesh.transport.curve.key_files import PublicKey
from mesh.transport.curve.links import Expectation, dress_dialler, dress_knock
from mesh.transport.monitor import DIALLING, REASONS, Monitor
from mesh.transport.pressure import Pressure, unsent_in
from mesh.transport.refusals import Refusals
from mesh.transport.sockets import (
    COUNTED_BYTES,
    CUT,
    EARLY_FLUSH,
    MAX_BACKLOG_BYTES,
    MESSAGE_BYTES,
    NOBLOCK_MORE,
    PROOF,
    WINDOW_BYTES,
    Context,
    Edge,
    LinkOptions,
    Socket,
    make,
)

log = get_logger("mesh.transport")

#: How long a dial to a listener that this process does not trust may take; `lost` follows then at the latest. A knock
#: takes three round trips, so this suffices for a round-trip time of 80 ms.
KNOCK_S = 0.25
#: Seconds between checks whether the last messages of a closed link have left.
PARTING_LOOK_S = 0.005


class Knock:
    """The session of a dial that only makes the listener log that it is not trusted. See contract.Session."""

    def opened(self) -> None:
        pass

    def receive(self, frames: list[Buffer]) -> None:
        pass

    def data_to_send(self) -> list[list[Buffer]]:
        return []

    def lost(self, reason: str) -> None:
        pass


#: Replaces a session that has ended. Otherwise session and channel would form a reference cycle until the garbage
#: collector runs, which depends on the number of objects: with short-lived peers and their large buffers, tens of
#: megabytes would wait for it (tests/chaos/churn.py).
OVER = Knock()


class Parting:
    """The socket of a link that was closed while its last messages were still on their way.

    It is closed when the kernel has delivered them, or abruptly when that takes too long. With libzmq's own lingering,
    the connection would no longer be read; if the peer does not read either and then closes, the next heartbeat aborts
    this process (see `pressure`).
    """

    def __init__(self, socket: Socket, fd: int, patience_s: float, forget: Callable[[Parting], None]) -> None:
        self._socket = socket
        self._fd = fd
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + patience_s
        self._loop.call_later(PARTING_LOOK_S, self._look)

    def _look(self) -> None:
        left = self._until - self._loop.time()
        if left > 0 and unsent_in(self._fd):
            self._loop.call_later(PARTING_LOOK_S, self._look)
        else:
            self._socket.close(linger=max(0, int(left * 1000)))
            self._forget(self)

    def keys_changed(self) -> None:
        """Nothing to do: the socket is being closed."""

    def close(self) -> None:
        """Nothing to do: the socket closes by its timer."""


class DealerChannel:
    """See contract.Channel."""

    __slots__ = (
        "_backlog",
        "_backlog_bytes",
        "_connect_timer",
        "_context",
        "_edge",
        "_expected",
        "_fd",
        "_forget",
        "_given_bytes",
        "_keep",
        "_key",
        "_loop",
        "_messages",
        "_monitor",
        "_options",
        "_over",
        "_pressure",
        "_refusals",
        "_session",
        "_socket",
        "_standing",
        "_tries",
        "_wakes",
        "_woken",
        "largest",
        "peer",
        "user",
    )

    def __init__(
        self,
        context: Context,
        endpoint: str,
        make_session: MakeSession,
        options: LinkOptions,
        forget: Callable[[DealerChannel | Parting], None],
        keep: Callable[[Parting], None],
        expected: Expectation,
        refusals: Refusals,
        pressure: Pressure,
    ) -> None:
        self.peer = endpoint
        self.user = ""
        self._context = context
        self._options = options
        self._forget = forget
        self._keep = keep
        self._expected = expected
        self._refusals = refusals
        self._key: PublicKey | None = None
        self._tries = 0
        self._loop = asyncio.get_running_loop()
        self._backlog: deque[list[Buffer]] = deque()
        self._backlog_bytes = 0
        self._given_bytes = 0  # counted bytes given to libzmq since all was last sent
        self._messages = 0  # received
        self._fd = -1
        self._pressure = pressure
        self.largest = options.max_message_bytes
        self._standing = False
        self._over = False
        self._woken: asyncio.Handle | None = None
        self._wakes = 0
        if expected.trouble:
            self._refusals.note("no_such_key", self.peer, expected.trouble, endpoint=expected.where.where)
            within_s = min(KNOCK_S, options.connect_timeout_s)
            late: str = Refusal(expected.trouble)
        else:
            within_s = options.connect_timeout_s
            late = f"no connection within {within_s:g} s"
        self._connect_timer: asyncio.TimerHandle | None = self._loop.call_later(within_s, self._gone, late)
        self._connect()
        try:
            self._session = make_session(self)
        except BaseException:
            self._cancel_connect_timer()
            self._drop_socket(linger_ms=0)
            raise

    def _connect(self) -> None:
        """Make one attempt, with the next of the keys that the listener may have."""
        keys = self._expected.keys
        self._key = keys[self._tries] if keys else None
        self._tries += 1
        self._socket = make(self._context, zmq.DEALER, self._options, self.peer)
        # One connection only: a reconnect in the background would deliver a stale backlog to the next listener. Not -1,
        # and no IMMEDIATE: with either, libzmq 4.3.5 ends the pipe on disconnection and discards unread messages, such
        # as the last replies of a leaving worker (tests/contract: …linger…). The socket is closed long before an hour.
        self._socket.setsockopt(zmq.RECONNECT_IVL, 3_600_000)
        if self._expected.trouble:
            dress_knock(self._socket, self._expected.ring)
        elif self._key is not None and self._expected.ring is not None:
            dress_dialler(self._socket, self._expected.ring, self._key.public)
        self._monitor = Monitor(self._socket, self._heard, DIALLING)
        self._edge = Edge(self._socket, self._read)
        self._socket.connect(self._expected.where.where)

    # --- called by the session ------------------------------------------------------------------------

    def wake(self) -> None:
        if self._woken is None:
            if not self._over:
                self._woken = self._loop.call_soon(self._flush)
                self._wakes = 1
            return
        self._wakes = wakes = self._wakes + 1
        if wakes % EARLY_FLUSH == 0 and self._standing:
            self._send_waiting()

    def close(self, reason: str = "closed") -> None:
        if self._over:
            return
        if self._standing:
            self._send_waiting()
        self._gone(reason)

    # --- events of the connection -----------------------------------------------------------------------

    def _heard(self, event: int, value: int, _endpoint: str) -> None:
        if self._over:
            return
        if event == zmq.EVENT_CONNECTED:
            self._fd = value
        elif self._expected.trouble:
            # The knock is done. No link is possible, whatever the event is.
            self._gone(Refusal(self._expected.trouble))
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._standing = True
            self._pressure.watch(self)
            self._cancel_connect_timer()
            if self._key is not None:
                self.user = self._key.name
                self._expected.stands(self._key)
                self._refusals.over(self.peer)
            self._session.opened()
            self.wake()
        elif event == zmq.EVENT_CLOSED and self._standing:
            return
        else:
            # Messages sent before the connection ended, such as answers, may still be unread.
            while self._standing and not self._over:
                try:
                    self._read()
                except zmq.Again:
                    break
            if self._standing or not self._try_next(event, value):
                self._gone(self._reason(event, value))

    def _try_next(self, event: int, value: int) -> bool:
        """Dial again with the next key that the listener may have; returns False when there is none."""
        # Other failures do not depend on the expected key.
        if event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL or self._tries >= len(self._expected.keys):
            return False
        self._drop_socket(linger_ms=0)
        self._connect()
        return True

    def _reason(self, event: int, value: int) -> str:
        explained = None if self._standing else self._expected.explain(event, value, self._key)
        if explained is None:
            return REASONS[zmq.Event(event)]
        word, sentence = explained
        if word:
            self._refusals.note(word, self.peer, sentence, endpoint=self._expected.where.where)
        return Refusal(sentence)

    def keys_changed(self) -> None:
        """End the link if the key of the listener is no longer valid."""
        if not self._over and not self._expected.valid(self._key):
            name = self._key.name if self._key is not None else ""
            log.warning("link.key_invalid", peer=self.peer)
            self._gone(f"the key of {name!r} is no longer valid")

    def _gone(self, reason: str) -> None:
        if self._over:
            return
        self._over = True
        self._cancel_connect_timer()
        if self._woken is not None:
            self._woken.cancel()
            self._woken = None
        self._pressure.forget(self)
        self._forget(self)
        if self._standing and not self._backlog and unsent_in(self._fd):
            self._edge.close()
            self._monitor.close()
            self._keep(Parting(self._socket, self._fd, self._options.linger_s, self._forget))
        else:
            # The kernel has room for the messages that libzmq's I/O thread still holds; lingering is useless for a peer
            # with a backlog, which does not read.
            polite = self._standing and not self._backlog
            self._drop_socket(linger_ms=int(self._options.linger_s * 1000) if polite else 0)
        self._backlog.clear()
        session, self._session = self._session, OVER
        session.lost(reason)

    def _drop_socket(self, linger_ms: int) -> None:
        self._edge.close()
        self._monitor.close()
        self._socket.close(linger=linger_ms)

    # --- called by the pressure watch ---------------------------------------------------------------------

    def intake(self) -> dict[int, int]:
        return {self._fd: self._messages} if self._fd >= 0 else {}

    @property
    def unread(self) -> bool:
        return self._edge.unread

    def relieve(self, fd: int, reason: str) -> None:
        log.warning("link.memory_exceeded", peer=self.peer, reason=reason)
        self._gone(reason)

    def _cancel_connect_timer(self) -> None:
        if self._connect_timer is not None:
            self._connect_timer.cancel()
            self._connect_timer = None

    # --- moving messages --------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read one message; raises zmq.Again when there is none."""
        socket = self._socket
        frames: list[Buffer] = [socket.recv(zmq.NOBLOCK)]
        while socket.getsockopt(zmq.RCVMORE):
            frames.append(socket.recv(zmq.NOBLOCK, copy=False).buffer)
        if len(frames) == 1 and frames[0] == CUT:
            self._gone("closed by the other end")
            raise zmq.Again
        if len(frames) == 1 and frames[0] == PROOF:
            return
        self._messages += 1
        if self._backlog:
            self.wake()  # the peer is active: the pipe may have room for the backlog now
        try:
            self._session.receive(frames)
        except ProtocolViolation as violation:
            log.warning("link.protocol_violated", peer=self.peer, reason=violation.message)
            self.close(f"protocol violation: {violation.message}")
            raise zmq.Again from None

    def _flush(self) -> None:
        self._woken = None
        if not self._standing or self._over:
            return  # `opened` wakes again
        self._send_waiting()
        self._edge.look()

    def _send_waiting(self) -> None:
        waiting = self._session.data_to_send()
        backlog = self._backlog
        if backlog:
            self._defer(waiting)
            self._send_backlog()
            return
        send = self._socket.send
        for at, frames in enumerate(waiting):
            try:
                size = len(frames[0]) if len(frames) == 1 else sum(map(len, frames))
                if size > COUNTED_BYTES:
                    self._count(size)
                if len(frames) == 1:
                    send(frames[0], zmq.NOBLOCK)
                else:
                    send(frames[0], NOBLOCK_MORE)
                    for frame in frames[1:-1]:
                        send(frame, NOBLOCK_MORE, copy=False)
                    send(frames[-1], zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self._defer(waiting[at:])
                self._retry_soon()
                return

    def _count(self, size: int) -> None:
        """Count a message before it is given to libzmq; raises zmq.Again while too many bytes wait there."""
        if self._given_bytes > WINDOW_BYTES // 4 and not unsent_in(self._fd):
            self._given_bytes = 0
        if self._given_bytes + size > WINDOW_BYTES and self._given_bytes:
            raise zmq.Again
        self._given_bytes += size

    def _defer(self, waiting: list[list[Buffer]]) -> None:
        self._backlog.extend(waiting)
        self._backlog_bytes += sum(sum(map(len, frames)) + MESSAGE_BYTES for frames in waiting)
        if self._backlog_bytes > MAX_BACKLOG_BYTES:
            log.warning("link.backlog_exceeded", peer=self.peer, waiting_bytes=self._backlog_bytes)
            # Not at once: this may run inside a call that adds a message to this link.
            self._loop.call_soon(self._gone, f"{self._backlog_bytes} bytes are queued for a peer that does not read")

    def _send_backlog(self) -> None:
        backlog = self._backlog
        try:
            while backlog:
                size = sum(map(len, backlog[0]))
                if size > COUNTED_BYTES:
                    self._count(size)
                self._socket.send_multipart(backlog[0], zmq.NOBLOCK, copy=False)
                backlog.popleft()
                self._backlog_bytes -= size + MESSAGE_BYTES
        except zmq.Again:
            self._retry_soon()

    def _retry_soon(self) -> None:
        # The pipe to the I/O thread is full, or the connection just broke and the monitor will report it. No reliable
        # event signals room in the pipe, so try once per millisecond.
        if self._woken is None:
            self._woken = self._loop.call_later(0.001, self._flush)
