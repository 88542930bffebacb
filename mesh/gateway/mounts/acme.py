"""/.well-known/acme-challenge: answers the challenges of an ACME authority on the gateway's own port.

Owns: the mount. Leaves to others: the answers (listeners.acme_store), the redirect listener, which has them as well.

An authority asks on port 80. Where that leads to this port, directly, through a proxy or by a redirect, no listener of
its own is needed.
"""

from __future__ import annotations

from typing import Final

from mesh.discovery.record import EdgePolicy
from mesh.gateway.entry import Entry
from mesh.gateway.front import Front
from mesh.gateway.listeners.acme_store import CHALLENGES, AcmeStore
from mesh.gateway.mounts.contract import Mount
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request

_PREFIX: Final = CHALLENGES.rstrip("/")
#: The authority has no credential.
_ENTRY: Final = Entry(_PREFIX, policy=EdgePolicy(auth="none"))


def mount(front: Front) -> Mount:
    """The mount, for a gateway that has `gateway.acme.domains`."""
    store = AcmeStore(front.settings)

    async def answer(request: Request) -> Reply:
        return store.reply(request.path)

    return Mount(prefix=_PREFIX, handler=answer, entry=lambda _: _ENTRY)
