"""Passes the caller's identity on to all work that the request causes.

Owns: which parts of an identity travel. Leaves to others: how they travel (calls.propagation), finding the identity
(the authentication methods).
"""

from __future__ import annotations

from mesh.calls.propagation import PRINCIPAL, TENANT, accept_name
from mesh.errors import Unauthenticated
from mesh.gateway.edge.identity import Identity
from mesh.gateway.request import Request


def checked(identity: Identity) -> Identity:
    """The identity itself, when its names can travel.

    Raises:
        Unauthenticated: the principal is empty, or a name is not printable text of at most 256 characters.
    """
    if not identity.principal or accept_name(identity.principal) != identity.principal:
        raise Unauthenticated("the name of the principal is empty, too long, or not printable text")
    if accept_name(identity.tenant) != identity.tenant:
        raise Unauthenticated("the name of the tenant is too long, or not printable text")
    return identity


def carry(request: Request, identity: Identity) -> None:
    """Make the identity that of the request, and of everything that it causes: `mesh.current().principal`."""
    request.identity = identity
    context = request.context
    values = {**(context.carried or {}), PRINCIPAL: identity.principal}
    if identity.tenant:
        values[TENANT] = identity.tenant
    # A further part of the identity that is to reach services gets its line here, and its name in calls.propagation.
    context.carried = values
