"""Accepts the connections of listeners on which something precedes HTTP: the PROXY protocol, TLS, or a Unix socket.

Owns: accepting, the time limit and the number of connections before HTTP, who may send a PROXY header.
Leaves to others: the format of that header (proxy_protocol), contexts (tls), connections that speak HTTP (admission).

The event loop itself would accept TLS connections without any limit until their handshakes are over. Plain TCP
connections are left to it: they count from the first moment.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable
from typing import Any, Final

from mesh.config.settings import GatewaySettings
from mesh.gateway.admission import TELL_EVERY_S, Server
from mesh.gateway.clients import Clients
from mesh.gateway.listeners.listener import Listener
from mesh.gateway.listeners.proxy_protocol import LONGEST_V2, Header, MalformedHeader, Told
from mesh.gateway.ports import Recorder
from mesh.telemetry.logs import get_logger

_log = get_logger(__name__)

#: Connections accepted in one turn of the loop; further ones may go to another replica.
AT_ONCE: Final = 32
#: How long to wait when the process has no file descriptor left.
EXHAUSTED_S: Final = 1.0
#: Errors of the connection, not of the listening socket: accept(2) asks to treat them like EAGAIN.
_TRANSIENT: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EINTR,
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
    }
)
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: How long closing a TLS connection waits for the client's answer to close_notify.
GOODBYE_S: Final = 2.0


class Acceptor:
    """Accepts the connections of one listener.

    Args:
        server: serves HTTP on them.
        settings: the limits; a handshake and a PROXY header may each take `gateway.header_timeout`.

    Attributes:
        pending: connections that do not speak HTTP yet.
    """

    def __init__(
        self, listener: Listener, server: Server, settings: GatewaySettings, clients: Clients, recorder: Recorder
    ) -> None:
        self._listener = listener
        self._server = server
        self._clients = clients
        self._recorder = recorder
        self._most = settings.max_connections
        self._most_per_client = settings.max_connections_per_client
        self._limit_s = settings.header_timeout_s
        self._loop = asyncio.get_running_loop()
        self.pending: set[asyncio.Task[None]] = set()
        self._by_address: Counter[str] = Counter()
        self._told_at = -TELL_EVERY_S
        self._paused: asyncio.TimerHandle | None = None
        self._open = True
        self._loop.add_reader(listener.sock, self._accept)

    def close(self) -> None:
        """Stop accepting. Connections that have been accepted go on."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._listener.sock)
        if self._paused is not None:
            self._paused.cancel()
        self._listener.sock.close()

    async def abort(self) -> None:
        """Stop accepting, and drop connections that do not speak HTTP yet."""
        self.close()
        pending = list(self.pending)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    # --- accepting ------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, peer = self._listener.sock.accept()
            except OSError as exc:
                if exc.errno in _TRANSIENT:
                    return
                if exc.errno not in _EXHAUSTED:
                    raise
                self._tell("no file descriptor is left", "")
                self._loop.remove_reader(self._listener.sock)
                self._paused = self._loop.call_later(EXHAUSTED_S, self._resume)
                return
            address = peer[0] if isinstance(peer, tuple) else ""
            if not self._admits(address):
                sock.close()
                continue
            self._by_address[address] += 1
            task = self._loop.create_task(self._welcome(sock, address))
            self.pending.add(task)
            task.add_done_callback(self.pending.discard)

    def _resume(self) -> None:
        if self._open:
            self._loop.add_reader(self._listener.sock, self._accept)

    def _admits(self, address: str) -> bool:
        if len(self.pending) + len(self._server.connections) >= self._most:
            limit = "max_connections"
        elif 0 < self._most_per_client <= self._by_address[address] and not self._clients.is_exempt(address):
            limit = "max_connections_per_client"
        else:
            return True
        self._recorder.count("http_connections_refused", limit=limit)
        self._tell(f"gateway.{limit}", address)
        return False

    def _tell(self, reason: str, address: str) -> None:
        now = self._loop.time()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            _log.warning("gateway.connection_dropped", client=address, reason=reason, listener=self._listener.kind)

    # --- before HTTP ----------------------------------------------------------------------------

    async def _welcome(self, sock: socket.socket, address: str) -> None:
        """Do what precedes HTTP, and hand the connection to the server."""
        handed = False
        try:
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            told = None
            if self._listener.proxied:
                async with asyncio.timeout(self._limit_s):
                    told = await self._proxy_header(sock, address)
            handed = True
            await self._hand_over(sock, told)
        except MalformedHeader as exc:
            self._fail("proxy_header", str(exc), address)
        except TimeoutError:
            self._fail("timeout", "", address)
        except ssl.SSLCertVerificationError as exc:
            self._fail("certificate", exc.verify_message, address)
        except ssl.SSLError:
            self._fail("tls", "", address)
        except OSError:
            self._fail("closed", "", address)
        finally:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
            if not handed:
                sock.close()

    def _fail(self, reason: str, told: str, address: str) -> None:
        # Port scanners and impatient clients are everyday; only what a setting could cause is logged.
        counter = self._recorder.counter(
            "gateway_connections_failed", "Connections that ended before HTTP, by reason.", reason=reason
        )
        counter.value += 1
        if told:
            self._tell(f"{reason}: {told}", address)

    async def _hand_over(self, sock: socket.socket, told: Told | None) -> None:
        def connection() -> Any:
            made = self._server()
            made.told = told  # type: ignore[attr-defined]
            return made

        tls = self._listener.tls
        if tls is None:
            await self._loop.connect_accepted_socket(connection, sock)
        else:
            await self._loop.connect_accepted_socket(
                connection,
                sock,
                ssl=tls.context,
                ssl_handshake_timeout=self._limit_s,
                ssl_shutdown_timeout=GOODBYE_S,
            )

    async def _proxy_header(self, sock: socket.socket, address: str) -> Told | None:
        """Read the header, and nothing beyond it.

        Returns:
            What it says about the client; None when the peer itself is the client.

        Raises:
            MalformedHeader: there is none, or the peer may not send one.
        """
        trusted = self._clients.is_proxy(address)
        # Health checks from this machine need not be listed; they can speak only for themselves.
        if not trusted and not _is_loopback(address):
            raise MalformedHeader(f"{address} is not in gateway.proxies")
        header = Header()
        while header.told is None:
            await self._readable(sock)
            try:
                seen = sock.recv(LONGEST_V2, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            if not seen:
                raise ConnectionResetError
            taken = header.take(seen)
            sock.recv(taken)
        if not header.told.address:
            return None
        if not trusted:
            raise MalformedHeader(f"{address} is not in gateway.proxies")
        return header.told

    def _readable(self, sock: socket.socket) -> Awaitable[None]:
        ready: asyncio.Future[None] = self._loop.create_future()

        def done() -> None:
            if not ready.done():
                ready.set_result(None)

        self._loop.add_reader(sock, done)
        ready.add_done_callback(lambda _: self._loop.remove_reader(sock))
        return ready


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
