"""Opens the listening sockets that the settings ask for.

Owns: the list. A new listener is an entry here.
Leaves to others: binding (sockets), sharing with other replicas (sharing), accepting (acceptor), serving (app).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from mesh.config import Settings
from mesh.config.edge_listeners import UNIX
from mesh.config.exposure import is_loopback, is_open
from mesh.gateway.listeners.listener import Kind, Listener
from mesh.gateway.listeners.sharing import Bind, Sharing
from mesh.gateway.listeners.sockets import bind, bind_unix, inherited, listens
from mesh.gateway.listeners.tls import Tls, tls_of


class Listeners:
    """The listeners of one gateway process, the public one first. Make it on the running loop.

    Args:
        fd: an inherited listening socket for the public listener.
        host, port: where it listens otherwise; None uses the settings.

    Attributes:
        tls: what the public listener speaks below HTTP; None for nothing.

    Raises:
        AddressInUse: another process listens there.
        ConfigError: an address or a certificate cannot be used.
        SetupError: `fd` is not a listening socket.
    """

    def __init__(
        self, settings: Settings, *, fd: int | None = None, host: str | None = None, port: int | None = None
    ) -> None:
        gateway = settings.gateway
        self._settings = settings
        self._sharing: Sharing | None = None
        #: Files of the sockets that this process and its replicas have bound.
        self._paths: list[Path] = []
        self.tls: Tls | None = tls_of(settings)
        self._all = [Listener("public", self._public(fd, host, port), self.tls, gateway.proxy_protocol)]
        try:
            for kind, sock in self._secondary().items():
                self._all.append(Listener(kind, sock, None, gateway.proxy_protocol and kind == "redirect"))
        except BaseException:
            self.close()
            raise

    @property
    def public(self) -> Listener:
        """The public one."""
        return self._all[0]

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._all)

    def leave(self) -> None:
        """Hand over no socket any more. Call it before accepting ends."""
        if self._sharing is not None:
            self._sharing.close()

    def close(self) -> None:
        """Close all sockets, and remove the files of those that no replica has any more."""
        self.leave()
        for listener in self._all:
            listener.sock.close()
        for path in self._paths:
            if not listens(path):
                path.unlink(missing_ok=True)

    def _public(self, fd: int | None, host: str | None, port: int | None) -> socket.socket:
        gateway = self._settings.gateway
        if fd is not None:
            return inherited(fd)
        if gateway.unix is not None and host is None and port is None:
            path = self._settings.root / gateway.unix
            self._paths.append(path)
            return bind_unix(path, gateway.unix_mode)
        return bind(host or gateway.host, gateway.port if port is None else port)

    def _secondary(self) -> dict[Kind, socket.socket]:
        gateway = self._settings.gateway
        wanted: dict[Kind, tuple[str, Bind]] = {}
        if gateway.admin.startswith(UNIX):
            path = self._settings.root / gateway.admin.removeprefix(UNIX)
            self._paths.append(path)
            wanted["admin"] = (str(path), lambda: bind_unix(path, gateway.unix_mode, "gateway.admin"))
        elif gateway.admin:
            host, _, port = gateway.admin.rpartition(":")
            wanted["admin"] = (
                gateway.admin,
                lambda: bind(host.removeprefix("[").removesuffix("]"), int(port), "gateway.admin"),
            )
        if redirect := gateway.tls.redirect_port:
            wanted["redirect"] = (
                f"{gateway.host}:{redirect}",
                lambda: bind(gateway.host, redirect, "gateway.tls.redirect_port"),
            )
        if not wanted:
            return {}
        self._sharing = Sharing(self._settings.mesh.run_dir)
        found = self._sharing.open({f"{kind} {at}": how for kind, (at, how) in wanted.items()})
        return {kind: found[f"{kind} {at}"] for kind, (at, _) in wanted.items()}


def as_bound(settings: Settings, public: Listener) -> Settings:
    """The settings with the address that the public listener really has.

    A program of the project's own in supervisord.conf may hold a socket on a network address while `gateway.host` says
    loopback: what is public must follow the socket.
    """
    gateway = settings.gateway
    if is_open(gateway):
        return settings
    address = public.sock.getsockname()
    if public.sock.family == socket.AF_UNIX:
        return replace(settings, gateway=replace(gateway, unix=Path(os.fsdecode(address))))
    return settings if is_loopback(address[0]) else replace(settings, gateway=replace(gateway, host=address[0]))
