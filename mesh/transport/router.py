"""The accepting end: one ROUTER bound for a whole worker, one channel per peer.

Owns: telling peers apart, an outbox for each, and noticing that one has gone.
Leaves to others: what the frames mean (sessions), who may connect (curve, curve_guard).

A ROUTER never says that a peer went away: it drops what is sent to it, or with ROUTER_MANDATORY refuses the send. So
the monitor's DISCONNECTED, which knows only a file descriptor, is matched with the descriptor that the peer's first
message came on, and proved by an empty message: refused, the peer is gone; delivered, the number was used again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

import zmq

from mesh.errors import ProtocolViolation
from mesh.protocol.allowance import Flood
from mesh.telemetry.logs import get_logger
from mesh.transport.connections import Connections
from mesh.transport.contract import Buffer, MakeSession, Session
from mesh.transport.curve_guard import Guard, Sender
from mesh.transport.dealer import OVER
from mesh.transport.endpoints import Claim
from mesh.transport.monitor import Monitor
from mesh.transport.pressure import Pressure, unsent_in
from mesh.transport.sockets import (
    COUNTED_BYTES,
    CUT,
    EARLY_FLUSH,
    MAX_BACKLOG_BYTES,
    MESSAGE_BYTES,
    PROOF,
    WINDOW_BYTES,
    Edge,
    LinkOptions,
    Socket,
)

log = get_logger("mesh.transport")

#: Messages of a peer that is gone which are passed over in one turn.
SKIPPED_AT_ONCE = 50
#: How long a peer that is cut has to read why, before its connection is shut down.
LAST_WORDS_S = 0.05
#: When to prove a disconnection. The event comes from the I/O thread a moment before the ROUTER itself knows.
PROOFS_S = (0.002, 0.02, 0.2, 1.0)
#: How long to read on for what a gone peer had sent: others send without end, and it cannot be told apart from theirs.
PARTING_S = 1.0
#: Peers that are gone can be heard all the same: what the dead had sent, or one that does not know that it was cut. So
#: many are remembered; a ROUTER gives each connection a name of its own, and none twice.
REMEMBERED_GONE = 1024
#: Who is behind a link without keys.
NOBODY = Sender("", "")
#: A frame of no messages: legal, and without effect on whoever gets it.
NOTHING = b""


class RouterChannel:
    """See contract.Channel: one peer of a listener."""

    __slots__ = (
        "_listener",
        "backlog",
        "backlog_bytes",
        "credential",
        "fd",
        "given_bytes",
        "gone",
        "ident",
        "messages",
        "parting",
        "peer",
        "session",
        "user",
        "woken",
    )

    session: Session

    def __init__(self, listener: RouterListener, ident: bytes, fd: int, sender: Sender) -> None:
        self._listener = listener
        self.ident = ident
        self.fd = fd
        self.user, self.credential = sender
        self.peer = f"{self.user} {ident.hex()}".strip()
        self.backlog: deque[list[Buffer]] = deque()
        self.backlog_bytes = 0
        self.given_bytes = 0  # counted bytes given to libzmq since all was seen to be sent
        self.messages = 0  # that came
        self.woken = 0  # how often since the last flush; 0 when none is due
        self.parting = False  # it is gone, and what it had sent is being read
        self.gone = False

    def wake(self) -> None:
        if self.gone:
            return
        if not self.woken:
            self.woken = 1
            self._listener.woke(self)
        else:
            self.woken = wakes = self.woken + 1
            if wakes % EARLY_FLUSH == 0:
                self._listener.flush_one(self)

    def close(self, reason: str = "closed") -> None:
        if not self.gone:
            self._listener.cut(self, reason)


class RouterListener:
    """See contract.Listener."""

    def __init__(
        self,
        socket: Socket,
        endpoint: str,
        accept: MakeSession,
        options: LinkOptions,
        claim: Claim | None,
        forget: Callable[[RouterListener], None],
        guard: Guard | None,
        connections: Connections,
        pressure: Pressure,
    ) -> None:
        """Takes over a socket that is bound already, with the guard of its keys if it has any."""
        self.largest = options.largest_received
        self._connections = connections
        self._pressure = pressure
        self.endpoint = endpoint
        self._socket = socket
        self._accept = accept
        self._options = options
        self._claim = claim
        self._forget = forget
        self._guard = guard
        self._loop = asyncio.get_running_loop()
        self._peers: dict[bytes, RouterChannel] = {}
        self._by_fd: dict[int, bytes] = {}
        connections.has_spoken = self._by_fd.__contains__
        #: Peers that are gone, and whether one that went on was told so.
        self._gone: OrderedDict[bytes, bool] = OrderedDict()
        self._woken: list[RouterChannel] = []
        self._flushing: asyncio.Handle | None = None
        self._proofs: set[asyncio.TimerHandle] = set()
        self._blocked: set[RouterChannel] = set()
        self._closing = False
        self._retry: asyncio.TimerHandle | None = None
        self._edge = Edge(socket, self._read)
        self._monitor: Monitor | None = None
        pressure.watch(self)

    def watch(self, monitor: Monitor) -> None:
        """Own the monitor that was made before the bind."""
        self._monitor = monitor

    # --- reading ----------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take one message; raises zmq.Again when there is none."""
        socket = self._socket
        ident = socket.recv(zmq.NOBLOCK)
        channel = self._peers.get(ident)
        if channel is None and ident in self._gone:
            following = self._skip_gone(ident)
            if following is None:
                return
            ident = following
            channel = self._peers.get(ident)
        frames: list[Buffer] = []
        if channel is None:
            if not socket.getsockopt(zmq.RCVMORE):
                return
            first = socket.recv(zmq.NOBLOCK, copy=False)
            channel = self._meet(ident, first)
            if channel is None or channel.gone:  # no valid key; or closed while its session was made or opened
                self._skip()
                return
            frames.append(first.bytes)
        elif socket.getsockopt(zmq.RCVMORE):
            frames.append(socket.recv(zmq.NOBLOCK))
        while socket.getsockopt(zmq.RCVMORE):
            frames.append(socket.recv(zmq.NOBLOCK, copy=False).buffer)
        channel.messages += 1
        try:
            channel.session.receive(frames or [NOTHING])
        except ProtocolViolation as violation:
            log.warning("peer broke the protocol, link cut", peer=channel.peer, reason=violation.message)
            if isinstance(violation, Flood):
                self._connections.cut(channel.fd)
            self.cut(channel, f"protocol violation: {violation.message}")

    def _skip_gone(self, ident: bytes) -> bytes | None:
        """Pass over what peers that are gone had sent; the peer of the next message, None when it is to be read later.

        Not a message in each turn: one that was cut may have sent hundreds of thousands. Raises zmq.Again when there is
        nothing more.
        """
        for _ in range(SKIPPED_AT_ONCE):
            self._refuse_again(ident)
            self._skip()
            ident = self._socket.recv(zmq.NOBLOCK)
            if ident not in self._gone:
                return ident
        self._skip()
        return None

    def _skip(self) -> None:
        while self._socket.getsockopt(zmq.RCVMORE):
            self._socket.recv(zmq.NOBLOCK, copy=False)

    def _meet(self, ident: bytes, first: zmq.Frame) -> RouterChannel | None:
        sender = NOBODY if self._guard is None else self._guard.sender(first)
        if sender is None:
            return None
        try:
            fd = int(first.get(zmq.SRCFD))
        except (zmq.ZMQError, TypeError, ValueError):
            fd = -1
        channel = self._peers[ident] = RouterChannel(self, ident, fd, sender)
        if fd >= 0:
            self._connections.spoke(fd)
            before = self._by_fd.get(fd)
            self._by_fd[fd] = ident
            if before is not None and before in self._peers:
                # The descriptor is another's now: its former owner is gone, whatever the monitor still has to say.
                self._lose(self._peers[before], "connection lost")
                self._by_fd[fd] = ident
        channel.session = self._accept(channel)
        channel.session.opened()
        return channel

    # --- sending ----------------------------------------------------------------------------------------

    def woke(self, channel: RouterChannel) -> None:
        """A channel has something to send: flush in this tick."""
        self._woken.append(channel)
        if self._flushing is None:
            self._flushing = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = None
        woken, self._woken = self._woken, []
        for channel in woken:
            channel.woken = 0
            if not channel.gone:
                self.flush_one(channel)
        if not self._socket.closed:
            self._edge.look()

    def flush_one(self, channel: RouterChannel) -> None:
        """Send what one channel's session has."""
        waiting = channel.session.data_to_send()
        if channel.backlog:
            self._defer(channel, waiting)
            return
        for at, frames in enumerate(waiting):
            if not self._send(channel, frames):
                if not channel.gone:
                    self._defer(channel, waiting[at:])
                return

    def _send(self, channel: RouterChannel, frames: list[Buffer]) -> bool:
        """Send one message; False when there is no room, or the peer turns out to be gone."""
        send = self._socket.send
        size = len(frames[0]) if len(frames) == 1 else sum(map(len, frames))
        if size > COUNTED_BYTES:
            if channel.given_bytes > WINDOW_BYTES // 4 and not unsent_in(channel.fd):
                channel.given_bytes = 0
            if channel.given_bytes + size > WINDOW_BYTES and channel.given_bytes:
                return False
            channel.given_bytes += size
        try:
            send(channel.ident, zmq.NOBLOCK | zmq.SNDMORE)
            if len(frames) == 1:
                send(frames[0], zmq.NOBLOCK)
            else:
                send(frames[0], zmq.NOBLOCK | zmq.SNDMORE)
                for frame in frames[1:-1]:
                    send(frame, zmq.NOBLOCK | zmq.SNDMORE, copy=False)
                send(frames[-1], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as exc:
            if exc.errno != zmq.EHOSTUNREACH:
                raise
            if not channel.parting:
                channel.parting = True
                self._part(channel, self._loop.time() + PARTING_S)
            return False
        return True

    def _defer(self, channel: RouterChannel, waiting: list[list[Buffer]]) -> None:
        for frames in waiting:
            channel.backlog.append(frames)
            channel.backlog_bytes += sum(map(len, frames)) + MESSAGE_BYTES
        if channel.backlog_bytes > MAX_BACKLOG_BYTES:
            log.warning("peer reads too slowly, link cut", peer=channel.peer, waiting_bytes=channel.backlog_bytes)
            self.cut(channel, f"{channel.backlog_bytes} bytes wait for a peer that does not read")
            return
        self._blocked.add(channel)
        if self._retry is None:
            self._retry = self._loop.call_later(0.002, self._unblock)

    def _unblock(self) -> None:
        self._retry = None
        for channel in list(self._blocked):
            while channel.backlog and not channel.gone and self._send(channel, channel.backlog[0]):
                channel.backlog_bytes -= sum(map(len, channel.backlog.popleft())) + MESSAGE_BYTES
            if not channel.backlog or channel.gone:
                self._blocked.discard(channel)
        if self._blocked:
            self._retry = self._loop.call_later(0.002, self._unblock)
        if not self._socket.closed:
            self._edge.look()

    # --- peers that go ----------------------------------------------------------------------------------

    def heard(self, event: int, value: int, _endpoint: str) -> None:
        """The monitor's events: which descriptor was accepted, and which disconnected."""
        self._connections.heard(event, value)
        if self._guard is not None:
            self._guard.heard(event, value)
        if event == zmq.EVENT_DISCONNECTED and value in self._by_fd:
            self._prove(self._by_fd[value], 0)

    def _prove(self, ident: bytes, proof: int) -> None:
        def prove() -> None:
            self._proofs.discard(timer)
            channel = self._peers.get(ident)
            if channel is not None and self._send(channel, [PROOF]) and proof + 1 < len(PROOFS_S):
                self._prove(ident, proof + 1)
            self._edge.look()

        timer = self._loop.call_later(PROOFS_S[proof], prove)
        self._proofs.add(timer)

    def keys_changed(self) -> None:
        """End the links of those whose key is not valid any more: their sessions, and the connections beneath."""
        if self._guard is None or self._socket.closed:
            return
        for channel in list(self._peers.values()):
            if not self._guard.valid(channel.credential):
                log.warning("its key is not valid any more, link cut", peer=channel.peer)
                self.cut(channel, f"the key of {channel.user!r} is not valid any more")
        self._guard.keys_changed({channel.fd for channel in self._peers.values()})

    def cut(self, channel: RouterChannel, reason: str) -> None:
        """Send what the session still has to say, then treat the peer as gone, and end its connection."""
        for frames in channel.session.data_to_send():
            if channel.gone or not self._send(channel, frames):
                break
        if not channel.gone:
            self._send(channel, [CUT])
        # Not at once: we may be inside of a drain.
        self._loop.call_soon(self._edge.look)
        self._connections.cut_later(channel.fd, 0.0 if channel.backlog else LAST_WORDS_S)
        self._lose(channel, reason)

    # --- asked by the pressure watch ---------------------------------------------------------------------

    def intake(self) -> dict[int, int]:
        peers = self._peers
        counts = dict.fromkeys(self._connections.descriptors, 0)
        for fd, ident in self._by_fd.items():
            if ident in peers:
                counts[fd] = peers[ident].messages
        return counts

    @property
    def unread(self) -> bool:
        return self._edge.unread

    def relieve(self, fd: int, reason: str) -> None:
        channel = self._peers.get(self._by_fd.get(fd, b""))
        log.warning("peer fills the memory, link cut", peer=channel.peer if channel else "", reason=reason)
        self._connections.cut(fd)
        if channel is not None:
            self._lose(channel, reason)

    def _refuse_again(self, ident: bytes) -> None:
        # If it lives, it has not understood that it was cut: say it again, once.
        if self._gone[ident]:
            return
        self._gone[ident] = True
        try:
            self._socket.send(ident, zmq.NOBLOCK | zmq.SNDMORE)
            self._socket.send(CUT, zmq.NOBLOCK)
        except zmq.ZMQError:
            pass  # it is dead, and there may be more of what it had sent

    def _part(self, channel: RouterChannel, until: float) -> None:
        """It is gone; but what it sent before may still be unread, a goodbye among it. That comes first."""
        if channel.gone or self._socket.closed:
            return
        if self._edge.more and self._loop.time() < until:
            self._loop.call_soon(self._read_on, channel, until)
        else:
            self._lose(channel, "connection lost")

    def _read_on(self, channel: RouterChannel, until: float) -> None:
        self._edge.look()
        self._part(channel, until)

    def _lose(self, channel: RouterChannel, reason: str) -> None:
        if channel.gone:
            return
        channel.gone = True
        self._peers.pop(channel.ident, None)
        # What it had sent may still be unread. Met anew, it would have no hello, and take a descriptor that may be
        # another's by now.
        self._gone[channel.ident] = False
        while len(self._gone) > REMEMBERED_GONE:
            self._gone.popitem(last=False)
        if self._by_fd.get(channel.fd) == channel.ident:
            del self._by_fd[channel.fd]
        self._blocked.discard(channel)
        channel.backlog.clear()
        session, channel.session = channel.session, OVER
        session.lost(reason)

    async def _take_leave(self, patience_s: float) -> None:
        """Wait until the kernel has handed over what was sent, and shut down the peers that do not take it.

        While a socket lingers, libzmq reads its connections no more, and a peer that does not read either and closes
        aborts the process with the next heartbeat: the same fault as at a receive limit.
        """
        end = self._loop.time() + patience_s
        while late := [fd for fd in self._connections.descriptors if unsent_in(fd)]:
            if self._loop.time() >= end:
                for fd in late:
                    self._connections.cut(fd)
                return
            await asyncio.sleep(0.005)

    async def close(self, linger_s: float = 0.0) -> None:
        if self._socket.closed or self._closing:
            return
        self._closing = True
        self._flush()
        for channel in list(self._peers.values()):
            for frames in channel.session.data_to_send():
                if channel.gone or not self._send(channel, frames):
                    break
        await self._take_leave(max(linger_s, self._options.linger_s))
        self._pressure.forget(self)
        self._connections.close()
        self._edge.close()
        if self._monitor is not None:
            self._monitor.close()
        for timer in self._proofs:
            timer.cancel()
        if self._retry is not None:
            self._retry.cancel()
        if self._flushing is not None:
            self._flushing.cancel()
        # LINGER decides how long the context's end may wait for the peers to take what was sent.
        self._socket.close(linger=int(max(linger_s, self._options.linger_s) * 1000))
        if self._claim is not None:
            self._claim.release()
        self._forget(self)
        for channel in list(self._peers.values()):
            self._lose(channel, "listener closed")
