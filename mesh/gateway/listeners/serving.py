"""The listeners of a gateway in service: accepting, and what each serves.

Owns: one server per listener, with limits of its own, and starting and stopping all of them.
Leaves to others: sockets (opening), what precedes HTTP (acceptor), answering (server, redirect), the drain (app).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

from mesh.gateway.admission import Server
from mesh.gateway.listeners.acceptor import Acceptor
from mesh.gateway.listeners.listener import Listener
from mesh.gateway.listeners.redirect import Redirecting
from mesh.gateway.listeners.sockets import BACKLOG
from mesh.gateway.request import ToldRequest
from mesh.gateway.server import Gateway


class Serving:
    """All listeners of one gateway.

    Attributes:
        servers: those that serve the mounts: their connections are drained.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.servers: list[Server] = []
        self._redirects: list[Server] = []
        self._accepting: list[asyncio.AbstractServer | Acceptor] = []

    async def start(self, listeners: Iterable[Listener]) -> None:
        """Accept connections on these listeners."""
        loop = asyncio.get_running_loop()
        gateway = self._gateway
        for listener in listeners:
            server = self._server(listener)
            (self._redirects if listener.kind == "redirect" else self.servers).append(server)
            if listener.is_plain:
                self._accepting.append(await loop.create_server(server, sock=listener.sock, backlog=BACKLOG))
            else:
                front = gateway.front
                limits = gateway.settings.gateway
                self._accepting.append(Acceptor(listener, server, limits, front.clients, front.node.recorder))

    def _server(self, listener: Listener) -> Server:
        gateway = self._gateway
        server = gateway.make_server()
        server.kind = listener.kind
        if listener.proxied:
            server.request_factory = partial(ToldRequest, loop=asyncio.get_running_loop())
        if listener.kind == "redirect":
            redirecting = Redirecting(gateway.settings, gateway.sites, gateway.problems)
            server.request_handler = cast(Any, redirecting.handler)
        return server

    def pause_accepting(self) -> None:
        """Take no further connection from the kernel; call `stop_accepting` some rounds of the loop later.

        A server of asyncio that is closed loses, without closing it, a connection that it has accepted in the two
        rounds before, and that has no protocol yet. (uvloop makes the protocol at once, and ignores this.)
        """
        loop = asyncio.get_running_loop()
        for each in self._accepting:
            if isinstance(each, asyncio.Server):
                for sock in each.sockets:
                    loop.remove_reader(sock.fileno())

    def stop_accepting(self) -> None:
        """Close the listening sockets. Connections go on."""
        for each in self._accepting:
            each.close()

    @property
    def has_connections(self) -> bool:
        """Whether a connection that serves the mounts is open, or about to be."""
        return any(server.connections for server in self.servers) or any(
            each.pending for each in self._accepting if isinstance(each, Acceptor)
        )

    async def close_idle(self, now: float, idle_s: float) -> bool:
        """Close the connections that have had no pending request for `idle_s`; see Connections.

        Returns:
            Whether some remain.
        """
        for server in self.servers:
            await self._gateway.connections.close_idle(server, now, idle_s)
        return self.has_connections

    async def shutdown(self, timeout_s: float) -> None:
        """Close everything."""
        self.stop_accepting()
        for each in self._accepting:
            if isinstance(each, Acceptor):
                await each.abort()
        for server in (*self.servers, *self._redirects):
            await server.shutdown(timeout_s)
