"""The advertised address: where other hosts reach a socket that is bound on this host.

Owns: turning an endpoint as bound into one to connect to, and checking whether other hosts can use it at all.
Leaves to others: binding (zmq_transport), registering the endpoint (discovery), testing it (doctor).

A socket is usually bound to an address, or to an interface, for which libzmq reports the address. Only a wildcard means
all addresses of a host: then the address that this host uses for packets to the hubs is advertised. No packet is sent
to find it: the kernel's routing table gives the answer.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from typing import Final

from mesh.errors import BadEndpoint, SetupError
from mesh.transport.endpoints import Endpoint, parse

#: An arbitrary port: connecting a datagram socket sends nothing.
_DISCARD: Final = 9


class Unadvertised(SetupError):
    """A socket listens on every address of this host, and the one that other hosts can reach is unknown."""

    code = "unadvertised"


def advertised(bound: str, named: str = "", hubs: Sequence[str] = ()) -> str:
    """The endpoint to advertise for a socket.

    Args:
        bound: its endpoint as libzmq has bound it, with port and interface resolved.
        named: the address in the configuration; "" when it has none.
        hubs: endpoints of all hubs.

    Raises:
        Unadvertised: it is bound to a wildcard, there are hubs on other hosts, and there is no route to any of them.
    """
    where = parse(bound)
    if where.kind != "tcp":
        return bound
    if named:
        return str(Endpoint("tcp", named, where.port))
    if not where.wildcard:
        return bound
    return str(Endpoint("tcp", _own_address(where, hubs), where.port))


def _own_address(where: Endpoint, hubs: Sequence[str]) -> str:
    v6 = where.address == "[::]"
    others = list(_on_networks(hubs))
    for hub in others:
        for family in (socket.AF_INET6, socket.AF_INET) if v6 else (socket.AF_INET,):
            address = _on_the_way(hub.address.strip("[]"), family)
            if address is not None:
                return f"[{address}]" if ":" in address else address
    if others:
        raise Unadvertised(
            f"{where.where}: this process listens on all addresses of this host, but this host has no route to a hub "
            f"({', '.join(hub.where for hub in others)}): set mesh.advertise to the address that other hosts reach"
        )
    return "[::1]" if v6 else "127.0.0.1"


def _on_networks(hubs: Sequence[str]) -> Iterator[Endpoint]:
    """The hubs that other hosts may reach; malformed endpoints are skipped."""
    for hub in hubs:
        try:
            where = parse(hub, dialling=True)
        except BadEndpoint:
            continue
        if where.exposed:
            yield where


def _on_the_way(host: str, family: socket.AddressFamily) -> str | None:
    """The source address of packets from this host to `host`; None without a route."""
    try:
        found = socket.getaddrinfo(host, _DISCARD, family, socket.SOCK_DGRAM)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(found[0][4])
            address = str(probe.getsockname()[0])
    except OSError:
        return None
    # A link-local address is useless without the interface, which has another name on each host.
    return None if ipaddress.ip_address(address.partition("%")[0]).is_link_local else address


def is_own(address: str) -> bool:
    """Whether an address or a host name belongs to this host."""
    try:
        for family, kind, _, _, place in socket.getaddrinfo(address.strip("[]"), 0, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                probe.bind(place)
            return True
    except OSError:
        pass
    return False


def unreachable(endpoint: str, hubs: Sequence[str]) -> str:
    """Why processes of other hosts cannot connect to an endpoint of this host, and what to do; "" when they can, or
    when all hubs are on this host."""
    try:
        where = parse(endpoint)
    except BadEndpoint as exc:
        return exc.message
    if where.kind == "mem" or where.exposed or all(is_own(hub.address) for hub in _on_networks(hubs)):
        return ""
    what = (
        "ipc is reachable on this host only"
        if where.kind == "ipc"
        else f"{where.address} is reachable on this host only"
    )
    return f'{what}: set mesh.bind = "tcp://ADDRESS:*", with this host\'s address on the network or its interface'
