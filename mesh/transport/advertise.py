"""The address that other hosts are told: where they reach a socket that is bound here.

Owns: turning an endpoint as bound into one to connect to, and telling whether other hosts can use it at all.
Leaves to others: binding (zmq_transport), registering what comes out (discovery), asking whether it works (doctor).

What a socket is bound to is seldom in question: an address, or an interface, of which libzmq tells the address. Only a
wildcard stands for all addresses of a host; of these, others are told the one that this host itself has on the way to
the hubs. No packet is sent to find it: the kernel's routes say it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from typing import Final

from mesh.errors import BadEndpoint, SetupError
from mesh.transport.endpoints import Endpoint, parse

#: Any port will do: connecting a datagram socket sends nothing.
_DISCARD: Final = 9


class Unadvertised(SetupError):
    """A socket listens on every address of this host, and nothing tells which of them others reach."""

    code = "unadvertised"


def advertised(bound: str, named: str = "", hubs: Sequence[str] = ()) -> str:
    """What to tell others of a socket.

    Args:
        bound: its endpoint as libzmq has bound it, ports and interfaces filled in.
        named: the address that the configuration names; "" when it names none.
        hubs: endpoints of all hubs.

    Raises:
        Unadvertised: it is bound to a wildcard, there are hubs on other hosts, and no way leads to any of them now.
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
            f"{where.where}: this listens on every address of this host, and no way leads from any of them to a hub "
            f"({', '.join(hub.where for hub in others)}): set mesh.advertise to the address that other hosts reach"
        )
    return "[::1]" if v6 else "127.0.0.1"


def _on_networks(hubs: Sequence[str]) -> Iterator[Endpoint]:
    """Those of the hubs that other hosts may reach, as far as they can be read."""
    for hub in hubs:
        try:
            where = parse(hub, dialling=True)
        except BadEndpoint:
            continue
        if where.exposed:
            yield where


def _on_the_way(host: str, family: socket.AddressFamily) -> str | None:
    """The own address that packets to `host` would have, if there is a way."""
    try:
        found = socket.getaddrinfo(host, _DISCARD, family, socket.SOCK_DGRAM)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(found[0][4])
            address = str(probe.getsockname()[0])
    except OSError:
        return None
    # A link-local address means nothing without the interface, which has another name on each host.
    return None if ipaddress.ip_address(address.partition("%")[0]).is_link_local else address


def is_own(address: str) -> bool:
    """Whether an address, or a name, is one of this host's."""
    try:
        for family, kind, _, _, place in socket.getaddrinfo(address.strip("[]"), 0, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                probe.bind(place)
            return True
    except OSError:
        pass
    return False


def unreachable(endpoint: str, hubs: Sequence[str]) -> str:
    """Why processes of other hosts cannot connect to an endpoint of this one, with what to do; "" when they may, or
    when there is no other host as far as the hubs tell."""
    try:
        where = parse(endpoint)
    except BadEndpoint as exc:
        return exc.message
    if where.kind == "mem" or where.exposed or all(is_own(hub.address) for hub in _on_networks(hubs)):
        return ""
    what = "ipc is for this host alone" if where.kind == "ipc" else f"to another host, {where.address} is itself"
    return f'{what}: set mesh.bind = "tcp://ADDRESS:*", with this host\'s address on the network or its interface'
