"""Who sent a request, as the edge has established it.

Owns: the record. Leaves to others: establishing it (auth), checking it against a route's policy (auth), passing it on
to services (mesh.calls.context: principal, tenant, roles).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Identity(msgspec.Struct, frozen=True):
    """An authenticated caller.

    Attributes:
        principal: the unique name: the subject of a token, the owner of an API key, a user's name.
        scheme: how it was established: "jwt", "apikey", "basic", "session", "proxy", "certificate".
        scopes, roles: what it may do.
        tenant: the customer that it belongs to; "" for none.
        key: identifies the credential itself, such as the id of an API key; "" when there is no name for it.
        claims: the verified claims of a token; empty for other schemes.
        values: what of it reaches services, by its names in messages; None until auth.carry has checked it.
    """

    principal: str
    scheme: str
    scopes: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    tenant: str = ""
    key: str = ""
    claims: Mapping[str, Any] = {}
    values: Mapping[str, str] | None = None
