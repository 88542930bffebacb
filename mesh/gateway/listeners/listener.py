"""One listening socket of a gateway.

Owns: the record. Leaves to others: which ones there are (opening), accepting connections (acceptor).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Literal

from mesh.gateway.listeners.sockets import shown
from mesh.gateway.listeners.tls import Tls

Kind = Literal["public", "admin", "redirect"]


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening socket.

    Attributes:
        kind: "public" serves the mounts without the pages for operators, "admin" with them, "redirect" redirects to
            HTTPS.
        tls: what is spoken on it below HTTP; None for nothing.
        proxied: each connection begins with a header of the PROXY protocol.
    """

    kind: Kind
    sock: socket.socket
    tls: Tls | None = None
    proxied: bool = False

    @property
    def address(self) -> str:
        """ "https://127.0.0.1:8443", or "unix:/path"."""
        return shown(self.sock, "http" if self.tls is None else "https")

    @property
    def is_plain(self) -> bool:
        """Whether a connection begins with HTTP, over TCP: the event loop can accept it."""
        return self.tls is None and not self.proxied and self.sock.family != socket.AF_UNIX
