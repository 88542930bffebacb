"""The gateways of this host, seen by commands: their address, and whether they answer.

Owns: one GET over whatever the public listener speaks: TLS, a Unix socket, the PROXY protocol.
Leaves to others: which sockets supervisord holds (supervisord.layout), what /readyz means (gateway).
"""

from __future__ import annotations

import http.client
import socket
import ssl
from pathlib import Path
from typing import Final, NamedTuple

from mesh.config import Settings
from mesh.config.edge_listeners import UNIX
from mesh.config.exposure import withheld
from mesh.config.listener_checks import is_tls

#: How long an answer may take.
ANSWER_S: Final = 2.0

#: The header of a connection that a proxy makes for itself; the gateway takes it from this machine.
_OWN: Final = b"PROXY UNKNOWN\r\n"


class Door(NamedTuple):
    """One listener.

    Attributes:
        address: (host, port), or the path of a Unix socket.
        tls: it speaks TLS.
        proxied: it expects the PROXY protocol.
        certified: each client needs a certificate, which this host does not have.
    """

    address: tuple[str, int] | Path
    tls: bool = False
    proxied: bool = False
    certified: bool = False

    @property
    def url(self) -> str:
        """ "https://127.0.0.1:8443" for people; "unix:/path" for a Unix socket."""
        if isinstance(self.address, Path):
            return f"{UNIX}{self.address}"
        host, port = self.address
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{shown}:{port}"

    def status(self, path: str) -> int:
        """The status of a GET; 0 without an answer in time. Blocks."""
        connection = _Connection(self)
        try:
            connection.request("GET", path, headers={"Connection": "close", "Host": "localhost"})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            # With TLS 1.3 the client's handshake is over before the server looks for its certificate: a gateway that
            # serves comes so far, and then closes.
            return 200 if self.certified and connection.shaken else 0
        finally:
            connection.close()


def public(settings: Settings, listens: str = "") -> Door:
    """The public listener.

    Args:
        listens: "127.0.0.1:8080", if supervisord holds another address than mesh.toml names.
    """
    gateway = settings.gateway
    tls = is_tls(gateway)
    certified = gateway.tls.client_ca is not None and gateway.tls.client_certificates == "required"
    if gateway.unix is not None and not listens:
        return Door(settings.root / gateway.unix, tls, gateway.proxy_protocol, certified)
    host, _, port = (listens or f"{gateway.host}:{gateway.port}").rpartition(":")
    return Door((_reachable(host), int(port)), tls, gateway.proxy_protocol, certified)


def admin(settings: Settings) -> Door | None:
    """The admin listener; None without one."""
    text = settings.gateway.admin
    if text.startswith(UNIX):
        return Door(settings.root / text.removeprefix(UNIX))
    host, _, port = text.rpartition(":")
    return Door((_reachable(host.removeprefix("[").removesuffix("]")), int(port))) if text else None


def checked(settings: Settings, listens: str = "") -> Door:
    """The listener to ask /readyz: the public one, unless each of its clients needs a certificate."""
    door = public(settings, listens)
    return (admin(settings) or door) if door.certified else door


def page(settings: Settings, path: str, listens: str = "") -> str:
    """The URL of a page for operators, as this host reaches it; "" when no listener serves it."""
    if path not in withheld(settings):
        return public(settings, listens).url + path
    door = admin(settings)
    return door.url + path if door is not None else ""


def _reachable(host: str) -> str:
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


class _Connection(http.client.HTTPConnection):
    def __init__(self, door: Door) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self.shaken = False
        self._door = door

    def connect(self) -> None:
        address = self._door.address
        if isinstance(address, Path):
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(ANSWER_S)
            self.sock.connect(str(address))
        else:
            self.sock = socket.create_connection(address, ANSWER_S)
        if self._door.proxied:
            self.sock.sendall(_OWN)
        if self._door.tls:
            # The certificate is for the public names, and the connection does not leave this host.
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
            self.shaken = True
