"""What a request is for, known before it is answered: the mount, and the route, method or task behind it.

Owns: the record. Leaves to others: finding it (each mount), keeping it (request), using it (edge).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mesh.discovery.record import EdgePolicy

#: The policy of a route, method or task that declares none.
NO_POLICY: Final = EdgePolicy()


def is_protected(policy: EdgePolicy | None) -> bool:
    """Whether a policy requires an authenticated caller."""
    return policy is not None and bool(policy.auth == "user" or policy.scopes or policy.roles)


class Entry(msgspec.Struct, frozen=True):
    """What a request is for.

    Attributes:
        prefix: the prefix of the mount, "/" for declared routes.
        name: "service.method", "service.task", or "" for everything else, also for a path that leads nowhere.
        policy: what the route, method or task declares.
        found: what the mount has found, so that it does not look again: its own business.
    """

    prefix: str
    name: str = ""
    policy: EdgePolicy = NO_POLICY
    found: Any = None
