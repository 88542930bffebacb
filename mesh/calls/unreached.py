"""Errors for calls that no instance can take.

Owns: their messages. Leaves to others: detecting the situation (client, pool), why keys refuse (transport.curve).
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.calls.pool import Handle
from mesh.calls.request import Order
from mesh.errors import Unavailable, UnknownService
from mesh.suggest import suggestion
from mesh.transport.refusals import KeysRefused


def unknown(name: str, services: list[str]) -> UnknownService:
    """The error for a service that no hub lists; it suggests a known service with a similar name."""
    return UnknownService(f"no service {name!r} is known{suggestion(name, services)}")


def gone(order: Order, handle: Handle | None) -> Unavailable:
    """The instance that the call names is not listed, or cannot be reached."""
    if handle is None:
        return Unavailable(f"{order.route.target}: no instance {order.instance} is known")
    if handle.peer.refused:
        return refused(order, [handle])
    return Unavailable(f"{order.route.target}: {order.instance} cannot be reached: {handle.peer.trouble}")


def no_instance(order: Order, waited_s: float) -> Unavailable:
    """The service is known, but none of its instances became reachable in time."""
    name = order.route.group.name
    return Unavailable(
        f"{order.route.target}: no instance of {name} within {waited_s:g} s ([calls] wait){order.route.group.trouble}"
    )


def refused(order: Order, handles: Sequence[Handle]) -> KeysRefused:
    """Keys allow no link to any of these instances. The message gives the reason for the first one."""
    first, more = handles[0], len(handles) - 1
    who = f"{first.instance.id} and {more} more" if more else first.instance.id
    return KeysRefused(
        f"{order.route.target}: the keys do not permit a link to {who}: {first.peer.place}: {first.peer.trouble}"
    )


def no_hub(order: Order, why: str) -> KeysRefused:
    """No instance is known, because keys allow no link to any hub."""
    return KeysRefused(f"{order.route.target}: the keys do not permit a link to a hub: {why}")
