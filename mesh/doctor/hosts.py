"""Whether the hosts of a mesh can reach each other, as seen from one of them.

Owns: the checks of addresses: this host's, the others', and names that two hosts share.
Leaves to others: whether hubs answer, and everything on this host (doctor).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from mesh.config import Settings
from mesh.discovery.record import Instance
from mesh.errors import BadEndpoint, MeshError
from mesh.transport.advertise import is_own, unreachable
from mesh.transport.endpoints import Endpoint, parse

#: A worker answers this in milliseconds, on another continent in half a second.
ANSWER_S: Final = 3.0


class Asker(Protocol):
    """The part of a node that the checks use."""

    settings: Settings

    @property
    def table(self) -> Iterable[Instance]: ...

    def call(self, target: str, /, *, instance: str, timeout: float) -> Awaitable[object]: ...


class Word(NamedTuple):
    """One result, with the fields of a `Finding` of doctor. `good` None: it works, but may be unexpected."""

    good: bool | None
    about: str
    told: str
    mend: str = ""


def runs_here(hub: str) -> bool:
    """Whether a hub's endpoint is on this host."""
    try:
        where = parse(hub)
    except BadEndpoint:
        return False
    return where.kind != "tcp" or is_own(where.address)


async def hosts(node: Asker) -> list[Word]:
    """Make all checks; no results when there is only one host."""
    by_host: dict[str, list[Instance]] = {}
    for instance in node.table:
        if instance.endpoint:
            by_host.setdefault(instance.host, []).append(instance)
    mine = by_host.pop(node.settings.mesh.host, [])
    words = [*_mine(mine, node.settings.mesh.hubs), *_namesakes(mine)]
    words += await asyncio.gather(*(_other(node, host, by_host[host]) for host in sorted(by_host)))
    return words


def _mine(instances: list[Instance], hubs: list[str]) -> Iterator[Word]:
    found: dict[str, list[str]] = {}
    for instance in instances:
        if why := unreachable(instance.endpoint, hubs):
            found.setdefault(why, []).append(instance.service)
    for why, services in found.items():
        what, _, mend = why.partition(": ")
        told = f"other hosts cannot call {', '.join(sorted(set(services)))}: {what}"
        yield Word(False, "address", told, mend)


def _namesakes(mine: list[Instance]) -> Iterator[Word]:
    """Find machines that share a host name: each would treat the other's instances as its own."""
    addresses = {where.address for each in mine if (where := _where(each)) is not None and where.exposed}
    if len(addresses) > 1:
        host = mine[0].host
        told = f"instances at {', '.join(sorted(addresses))} all report the host name {host!r}"
        yield Word(None, "host's name", told, "if these are several machines, give each a name: mesh.host")


async def _other(node: Asker, host: str, instances: list[Instance]) -> Word:
    one = instances[0]
    about = f"host {host}"
    where = _where(one)
    if where is None or not where.exposed:
        told = f"{one.service} listens at {one.endpoint.partition('?')[0]}, which only its own host can reach"
        return Word(False, about, told, f"set mesh.bind on {host} to its address on the network")
    try:
        await node.call("$worker.info", instance=one.id, timeout=ANSWER_S)
    except MeshError as exc:
        told = f"{where.where} ({one.service}) cannot be reached from here: {exc.message}"
        mend = f"check for a firewall, and that {where.address} is its address on this network (mesh.advertise)"
        return Word(False, about, told, mend)
    count = len(instances)
    return Word(True, about, f"{count} instance{'' if count == 1 else 's'}, {where.where} answers")


def _where(instance: Instance) -> Endpoint | None:
    try:
        return parse(instance.endpoint)
    except BadEndpoint:
        return None
