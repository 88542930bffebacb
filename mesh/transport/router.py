"""The accepting end: one bound ROUTER for a whole worker, one channel per peer.

Owns: identifying peers, a backlog for each, and detecting that one has gone.
Leaves to others: what the frames mean (sessions), who may connect (curve, guard).

A ROUTER does not report that a peer has gone: it drops messages to it, or with ROUTER_MANDATORY refuses to send them.
So the monitor's DISCONNECTED, which has only a file descriptor, is matched with the descriptor of the peer's first
message, and verified by a probe message (PROOF): if the send is refused, the peer is gone; if it succeeds, the
descriptor was reused.
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
from mesh.transport.curve.guard import Guard, Sender
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
    NOBLOCK_MORE,
    PROOF,
    WINDOW_BYTES,
    Edge,
    LinkOptions,
    Socket,
)

log = get_logger("mesh.transport")

#: How many messages of gone peers are discarded in one turn of the loop.
SKIPPED_AT_ONCE = 50
#: Seconds in which a peer that is cut can read the reason, before its connection is shut down.
LAST_WORDS_S = 0.05
#: When to verify a disconnection, in seconds. The I/O thread reports it a moment before the ROUTER itself knows it.
PROOFS_S = (0.002, 0.02, 0.2, 1.0)
#: How long to read on for unread messages of a gone peer. A limit is necessary: they are in one queue with the messages
#: of other peers, which may never end.
PARTING_S = 1.0
#: How many gone peers are remembered. Their messages may still arrive: unread ones of a dead peer, or new ones of a
#: peer that has not noticed that it was cut. A ROUTER gives each connection its own name, and reuses none.
REMEMBERED_GONE = 1024
#: The sender on a link without keys.
NO_SENDER = Sender("", "")
#: A frame without messages: legal, and without effect on the receiver.
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
        self.given_bytes = 0  # counted bytes given to libzmq since all was last sent
        self.messages = 0  # received
        self.woken = 0  # wakes since the last flush; 0 when none is due
        self.parting = False  # the peer has gone, and its unread messages are being read
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
        """Take over a bound socket, with its guard if it uses keys."""
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
        #: Gone peers -> whether CUT was sent again to one that still sends messages.
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
        """Take over the monitor that was made before the bind."""
        self._monitor = monitor

    # --- reading ----------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read one message; raises zmq.Again when there is none."""
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
            if channel is None or channel.gone:  # no valid key, or closed while its session was made or opened
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
            log.warning("link.protocol_violated", peer=channel.peer, reason=violation.message)
            if isinstance(violation, Flood):
                self._connections.cut(channel.fd)
            self.cut(channel, f"protocol violation: {violation.message}")

    def _skip_gone(self, ident: bytes) -> bytes | None:
        """Discard messages of gone peers. Returns the peer of the next message, or None to continue in the next turn.

        Several messages at once: a peer that was cut may have sent hundreds of thousands. Raises zmq.Again when no
        message is left.
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
        sender = NO_SENDER if self._guard is None else self._guard.sender(first)
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
                # The descriptor belongs to another peer now, so its former peer is gone, even if the monitor has not
                # reported it yet.
                self._lose(self._peers[before], "connection lost")
                self._by_fd[fd] = ident
        channel.session = self._accept(channel)
        channel.session.opened()
        return channel

    # --- sending ----------------------------------------------------------------------------------------

    def woke(self, channel: RouterChannel) -> None:
        """A channel has messages to send: flush in this tick."""
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
        """Send the messages of one channel's session."""
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
        """Send one message; returns False when there is no room, or when the peer turns out to be gone."""
        send = self._socket.send
        size = len(frames[0]) if len(frames) == 1 else sum(map(len, frames))
        if size > COUNTED_BYTES:
            if channel.given_bytes > WINDOW_BYTES // 4 and not unsent_in(channel.fd):
                channel.given_bytes = 0
            if channel.given_bytes + size > WINDOW_BYTES and channel.given_bytes:
                return False
            channel.given_bytes += size
        try:
            send(channel.ident, NOBLOCK_MORE)
            if len(frames) == 1:
                send(frames[0], zmq.NOBLOCK)
            else:
                send(frames[0], NOBLOCK_MORE)
                for frame in frames[1:-1]:
                    send(frame, NOBLOCK_MORE, copy=False)
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
            log.warning("link.backlog_exceeded", peer=channel.peer, waiting_bytes=channel.backlog_bytes)
            self.cut(channel, f"{channel.backlog_bytes} bytes are queued for a peer that does not read")
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

    # --- disconnection ----------------------------------------------------------------------------------

    def heard(self, event: int, value: int, _endpoint: str) -> None:
        """Handle one event of the monitor: a descriptor was accepted or disconnected."""
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
        """End the links of peers with keys that are no longer valid: their sessions and their connections."""
        if self._guard is None or self._socket.closed:
            return
        for channel in list(self._peers.values()):
            if not self._guard.valid(channel.credential):
                log.warning("link.key_invalid", peer=channel.peer)
                self.cut(channel, f"the key of {channel.user!r} is no longer valid")
        self._guard.keys_changed({channel.fd for channel in self._peers.values()})

    def cut(self, channel: RouterChannel, reason: str) -> None:
        """Send the session's remaining messages, then treat the peer as gone, and close its connection."""
        for frames in channel.session.data_to_send():
            if channel.gone or not self._send(channel, frames):
                break
        if not channel.gone:
            self._send(channel, [CUT])
        # Not at once: this may run inside a drain.
        self._loop.call_soon(self._edge.look)
        self._connections.cut_later(channel.fd, 0.0 if channel.backlog else LAST_WORDS_S)
        self._lose(channel, reason)

    # --- called by the pressure watch --------------------------------------------------------------------

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
        log.warning("link.memory_exceeded", peer=channel.peer if channel else "", reason=reason)
        self._connections.cut(fd)
        if channel is not None:
            self._lose(channel, reason)

    def _refuse_again(self, ident: bytes) -> None:
        # If the peer is alive, it has not noticed that it was cut: send CUT once more.
        if self._gone[ident]:
            return
        self._gone[ident] = True
        try:
            self._socket.send(ident, NOBLOCK_MORE)
            self._socket.send(CUT, zmq.NOBLOCK)
        except zmq.ZMQError:
            pass  # the peer is dead, and more of its messages may be unread

    def _part(self, channel: RouterChannel, until: float) -> None:
        """The peer has gone: read its unread messages first, such as a goodbye, then end the channel."""
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
        # Messages of the peer may still be unread. Without this record they would create a new channel, without a
        # hello, for a descriptor that may belong to another peer by now.
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
        """Wait until the kernel has delivered all sent data, and shut down the peers that do not read it.

        While a socket lingers, libzmq does not read its connections. If a peer does not read either and then closes,
        the next heartbeat aborts this process: the same fault as at a receive limit (see `pressure`).
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
        # LINGER limits how long terminating the context waits until the peers have received all sent data.
        self._socket.close(linger=int(max(linger_s, self._options.linger_s) * 1000))
        if self._claim is not None:
            self._claim.release()
        self._forget(self)
        for channel in list(self._peers.values()):
            self._lose(channel, "listener closed")
