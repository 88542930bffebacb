"""The dialling end of one link: one DEALER, one connection, one life.

Owns: sending what the session has once per tick, reading, and saying when the connection stands or is gone.
Leaves to others: what the frames mean (the session), dialling again (discovery, calls.pool).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import zmq

from mesh.errors import ProtocolViolation
from mesh.telemetry.logs import get_logger
from mesh.transport.contract import Buffer, MakeSession
from mesh.transport.monitor import REASONS, Monitor
from mesh.transport.sockets import CUT, EARLY_FLUSH, PROOF, Context, Edge, LinkOptions, make

log = get_logger("mesh.transport")


class DealerChannel:
    """See contract.Channel."""

    __slots__ = (
        "_backlog",
        "_connect_timer",
        "_edge",
        "_forget",
        "_loop",
        "_monitor",
        "_options",
        "_session",
        "_socket",
        "_standing",
        "_wakes",
        "_woken",
        "peer",
    )

    def __init__(
        self,
        context: Context,
        endpoint: str,
        make_session: MakeSession,
        options: LinkOptions,
        forget: Callable[[DealerChannel], None],
    ) -> None:
        self.peer = endpoint
        self._options = options
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._backlog: deque[list[Buffer]] = deque()
        self._standing = False
        self._woken: asyncio.Handle | None = None
        self._wakes = 0
        self._socket = make(context, zmq.DEALER, options, endpoint)
        # One connection and no more: a background reconnect would deliver a stale backlog to whoever comes next. Not
        # -1, and no IMMEDIATE: with either, libzmq 4.3.5 ends the pipe on disconnection and throws away what came but
        # is unread, the last replies of a worker that leaves (tests/contract: …linger…). We close long before an hour.
        self._socket.setsockopt(zmq.RECONNECT_IVL, 3_600_000)
        self._session = make_session(self)
        self._monitor = Monitor(self._socket, self._heard)
        self._edge = Edge(self._socket, self._read)
        self._connect_timer: asyncio.TimerHandle | None = self._loop.call_later(
            options.connect_timeout_s, self._gone, f"no connection within {options.connect_timeout_s:g} s"
        )
        self._socket.connect(endpoint)

    # --- what the session asks ------------------------------------------------------------------------

    def wake(self) -> None:
        if self._woken is None:
            if not self._socket.closed:
                self._woken = self._loop.call_soon(self._flush)
                self._wakes = 1
            return
        self._wakes = wakes = self._wakes + 1
        if wakes % EARLY_FLUSH == 0 and self._standing:
            self._send_waiting()

    def close(self, reason: str = "closed") -> None:
        if self._socket.closed:
            return
        if self._standing:
            self._send_waiting()
        self._gone(reason)

    # --- what the connection does -----------------------------------------------------------------------

    def _heard(self, event: int, value: int, _endpoint: str) -> None:
        if self._socket.closed:
            return
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._standing = True
            self._cancel_connect_timer()
            self._session.opened()
            self.wake()
        elif event == zmq.EVENT_CLOSED and self._standing:
            return
        else:
            # What the other end sent before it went may still be unread, answers among it.
            while self._standing and not self._socket.closed:
                try:
                    self._read()
                except zmq.Again:
                    break
            self._gone(REASONS[zmq.Event(event)])

    def _gone(self, reason: str) -> None:
        if self._socket.closed:
            return
        self._cancel_connect_timer()
        if self._woken is not None:
            self._woken.cancel()
            self._woken = None
        self._edge.close()
        self._monitor.close()
        self._socket.close(linger=int(self._options.linger_s * 1000) if self._standing else 0)
        self._backlog.clear()
        self._forget(self)
        self._session.lost(reason)

    def _cancel_connect_timer(self) -> None:
        if self._connect_timer is not None:
            self._connect_timer.cancel()
            self._connect_timer = None

    # --- moving messages --------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take one message; raises zmq.Again when there is none."""
        socket = self._socket
        frames: list[Buffer] = [socket.recv(zmq.NOBLOCK)]
        while socket.getsockopt(zmq.RCVMORE):
            frames.append(socket.recv(zmq.NOBLOCK, copy=False).buffer)
        if len(frames) == 1 and frames[0] == CUT:
            self._gone("closed by the other end")
            raise zmq.Again
        if len(frames) == 1 and frames[0] == PROOF:
            return
        if self._backlog:
            self.wake()  # the pipe moved: what was refused for want of room may fit now
        try:
            self._session.receive(frames)
        except ProtocolViolation as violation:
            log.warning("peer broke the protocol, link cut", peer=self.peer, reason=violation.message)
            self.close(f"protocol violation: {violation.message}")
            raise zmq.Again from None

    def _flush(self) -> None:
        self._woken = None
        if not self._standing or self._socket.closed:
            return  # `opened` wakes again
        self._send_waiting()
        self._edge.look()

    def _send_waiting(self) -> None:
        waiting = self._session.data_to_send()
        backlog = self._backlog
        if backlog:
            backlog.extend(waiting)
            self._send_backlog()
            return
        send = self._socket.send
        for at, frames in enumerate(waiting):
            try:
                if len(frames) == 1:
                    send(frames[0], zmq.NOBLOCK)
                else:
                    send(frames[0], zmq.NOBLOCK | zmq.SNDMORE)
                    for frame in frames[1:-1]:
                        send(frame, zmq.NOBLOCK | zmq.SNDMORE, copy=False)
                    send(frames[-1], zmq.NOBLOCK, copy=False)
            except zmq.Again:
                backlog.extend(waiting[at:])
                self._retry_soon()
                return

    def _send_backlog(self) -> None:
        backlog = self._backlog
        try:
            while backlog:
                self._socket.send_multipart(backlog[0], zmq.NOBLOCK, copy=False)
                backlog.popleft()
        except zmq.Again:
            self._retry_soon()

    def _retry_soon(self) -> None:
        # The pipe to the I/O thread is full, or the connection just broke and the monitor will say so. There is no
        # reliable edge for "room again" that could not be missed, so look once per millisecond.
        if self._woken is None:
            self._woken = self._loop.call_later(0.001, self._flush)
