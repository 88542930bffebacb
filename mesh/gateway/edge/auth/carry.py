"""Passes the caller's identity on to all work that the request causes.

Owns: which parts of an identity travel. Leaves to others: how they travel (calls.propagation), finding the identity
(the authentication methods).
"""

from __future__ import annotations

import msgspec

from mesh.calls.propagation import PRINCIPAL, ROLES, SCOPES, TENANT, accept_name, fit_names, without_principal
from mesh.errors import Unauthenticated
from mesh.gateway.edge.identity import Identity
from mesh.gateway.request import Request


def checked(identity: Identity) -> Identity:
    """The identity itself, when its names can travel. It is checked once, and keeps the values that travel.

    Raises:
        Unauthenticated: the principal is empty, a name is not printable text of at most 256 characters, or the roles or
            the scopes are longer than 2048 characters together.
    """
    if identity.values is not None:
        return identity
    if not identity.principal or accept_name(identity.principal) != identity.principal:
        raise Unauthenticated("the name of the principal is empty, too long, or not printable text")
    if accept_name(identity.tenant) != identity.tenant:
        raise Unauthenticated("the name of the tenant is too long, or not printable text")
    for what, names in (("roles", identity.roles), ("scopes", identity.scopes)):
        if names and fit_names(names) is None:
            raise Unauthenticated(f"the {what} of the caller are longer than 2048 characters together")
    msgspec.structs.force_setattr(identity, "values", _values(identity))
    return identity


def carry(request: Request, identity: Identity) -> None:
    """Make a checked identity that of the request, and of everything that it causes: `mesh.current().principal`."""
    request.identity = identity
    context = request.context
    values = identity.values
    if context.carried is not None:
        values = {**(without_principal(context.carried) or {}), **(values or {})}
    context.carried = values


def _values(identity: Identity) -> dict[str, str]:
    values = {PRINCIPAL: identity.principal}
    if identity.tenant:
        values[TENANT] = identity.tenant
    if identity.roles and (roles := fit_names(identity.roles)):
        values[ROLES] = roles
    if identity.scopes and (scopes := fit_names(identity.scopes)):
        values[SCOPES] = scopes
    # A further part of the identity that is to reach services gets its line here, and its name in calls.propagation.
    return values
