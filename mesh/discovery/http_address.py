"""The HTTP address of an instance that is a program, and whether a gateway may send requests to it.

Owns: the form of the address in the registry, and the rule that ties it to the machine of its worker.
Leaves to others: running the program (worker.program), sending requests (gateway), who may register a service
(`[access] serve`, at the hub).

The address comes from the registry, where each worker writes its own. Without a rule, a worker could make every gateway
send requests to any address that the gateway reaches. So an address counts only when it belongs to the machine where
the worker itself listens for the mesh: its endpoint, to which processes connect anyway, and, with keys, only after the
worker has proved its key.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Final, NamedTuple

from mesh.discovery.record import Instance
from mesh.errors import BadEndpoint
from mesh.transport.advertise import is_own
from mesh.transport.endpoints import Endpoint, parse

#: The key in `Instance.meta`.
META: Final = "http"

_TCP: Final = re.compile(r"http://(\[[0-9a-fA-F:.]{2,45}\]|[0-9.]{7,15}):([0-9]{1,5})")
_UNIX: Final = "unix:"


class HttpAddress(NamedTuple):
    """Where a program listens: an address and a port, or a Unix socket.

    Attributes:
        host: a literal IP address without brackets; "" for a socket.
        socket: the path of a Unix socket; "" for TCP.
    """

    host: str = ""
    port: int = 0
    socket: str = ""

    @property
    def text(self) -> str:
        """Its form in the registry: "http://127.0.0.1:4000", "unix:/run/mesh/shop-3f9ac2d1.sock"."""
        if self.socket:
            return f"{_UNIX}{self.socket}"
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    @property
    def on_loopback(self) -> bool:
        """Whether only processes of the same machine reach it."""
        return bool(self.socket) or ipaddress.ip_address(self.host).is_loopback


def read(text: str) -> HttpAddress | None:
    """The address of a text; None when it has another form. Host names are no addresses: nothing is resolved."""
    if text.startswith(_UNIX):
        path = text.removeprefix(_UNIX)
        return HttpAddress(socket=path) if path.startswith("/") and "\0" not in path else None
    found = _TCP.fullmatch(text)
    if found is None or not 1 <= int(found[2]) <= 65535:
        return None
    try:
        address = ipaddress.ip_address(found[1].strip("[]"))
    except ValueError:
        return None
    return None if address.is_unspecified or address.is_multicast else HttpAddress(str(address), int(found[2]))


def usable(instance: Instance, home: str, run_dir: Path) -> HttpAddress | None:
    """The address to which a process may send requests for this instance.

    Args:
        home: the name of the machine of that process, `mesh.host`.
        run_dir: its run directory; accessible to its user only.

    Returns:
        None when the instance has no address, or one that is not on the machine of its worker, or that is not reachable
        from here.
    """
    address = read(instance.meta.get(META, ""))
    if address is None:
        return None
    try:
        endpoint = parse(instance.endpoint)
    except BadEndpoint:
        return None
    if not address.on_loopback:
        return address if _same(address.host, endpoint) else None
    if instance.host != home or not _is_here(endpoint, run_dir):
        return None
    if address.socket and Path(address.socket).parent != run_dir:
        return None
    return address


def _same(host: str, endpoint: Endpoint) -> bool:
    literal = _literal(endpoint)
    return literal is not None and literal == ipaddress.ip_address(host)


def _is_here(endpoint: Endpoint, run_dir: Path) -> bool:
    """Whether a worker's endpoint shows that it runs on this machine."""
    if endpoint.kind == "ipc":
        # Only this user can create a socket there.
        return Path(endpoint.address).parent == run_dir
    if endpoint.kind == "mem":
        return True  # in this process
    literal = _literal(endpoint)
    return literal is not None and (literal.is_loopback or is_own(str(literal)))


def _literal(endpoint: Endpoint) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(endpoint.address.strip("[]")) if endpoint.kind == "tcp" else None
    except ValueError:
        return None  # a host name: resolving it here would block the loop
