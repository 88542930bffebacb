"""Why a call reaches nobody, in words.

Owns: the errors. Leaves to others: that it is so (client, pool), what is wrong with keys (transport.curve).
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.calls.pool import Handle
from mesh.calls.request import Order
from mesh.errors import Unavailable, UnknownService
from mesh.suggest import suggestion
from mesh.transport.refusals import KeysRefused


def unknown(name: str, services: list[str]) -> UnknownService:
    """No hub tells of the service; it may be a slip for one of those that there are."""
    return UnknownService(f"no service {name!r} is known{suggestion(name, services)}")


def gone(order: Order, handle: Handle | None) -> Unavailable:
    """The one instance that will do is not listed, or its process is not there."""
    if handle is None:
        return Unavailable(f"{order.route.target}: no instance {order.instance} is known")
    if handle.peer.refused:
        return refused(order, [handle])
    return Unavailable(f"{order.route.target}: {order.instance} cannot be reached: {handle.peer.trouble}")


def no_instance(order: Order, waited_s: float) -> Unavailable:
    """The service was there before, or is listed and cannot be reached, and did not come back in time."""
    name = order.route.group.name
    return Unavailable(
        f"{order.route.target}: no instance of {name} within {waited_s:g} s ([calls] wait){order.route.group.trouble}"
    )


def refused(order: Order, handles: Sequence[Handle]) -> KeysRefused:
    """Keys allow a link to none of these. What is wrong with the first of them is where to begin."""
    first, more = handles[0], len(handles) - 1
    who = f"{first.instance.id} and {more} more" if more else first.instance.id
    return KeysRefused(f"{order.route.target}: keys allow no link to {who}: {first.peer.place}: {first.peer.trouble}")


def no_hub(order: Order, why: str) -> KeysRefused:
    """Nobody is known, because keys allow no link to any hub."""
    return KeysRefused(f"{order.route.target}: keys allow no link to a hub: {why}")
