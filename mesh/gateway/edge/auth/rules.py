"""What is required of the caller of a request, and whether a caller meets it. Pure.

Owns: the precedence of decorator, `auth.mounts` and `auth.default`, and the comparison of scopes and roles.
Leaves to others: what a request is for (gateway.entry), who calls (the authentication methods).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from mesh.config.edge_auth import NONE, USER, AuthSettings, Requirement
from mesh.discovery.record import EdgePolicy
from mesh.errors import ConfigError
from mesh.gateway.edge.auth.contract import Denied
from mesh.gateway.edge.identity import Identity
from mesh.gateway.entry import Entry, is_protected
from mesh.suggest import suggest

#: The mounts that require nothing unless `auth.mounts` lists them: load balancers and supervisors request them, without
#: credentials. With `?verbose` they name services and processes, and `auth.default` applies.
EXEMPT: Final = frozenset({"/livez", "/readyz"})


class Rules:
    """The requirements of one gateway.

    Args:
        prefixes: of the gateway's mounts.

    Raises:
        ConfigError: `auth.mounts` names a mount that there is not.
    """

    def __init__(self, settings: AuthSettings, prefixes: Collection[str]) -> None:
        for prefix in settings.mounts:
            if prefix not in prefixes:
                remedy = suggest(prefix, prefixes, f"the mounts are {', '.join(sorted(prefixes))}")
                raise ConfigError(f'auth.mounts: there is no mount "{prefix}"; {remedy}')
        self._default = settings.default or USER
        self._listed = settings.mounts
        self._mounts = dict.fromkeys(EXEMPT, NONE) | settings.mounts

    def of(self, entry: Entry, query: str = "") -> Requirement:
        """What a request requires.

        Args:
            query: of the request: `?verbose` makes the probes confidential.
        """
        policy = entry.policy
        if policy.auth or policy.scopes or policy.roles:
            return declared(policy)
        prefix = entry.prefix
        if query and prefix in EXEMPT and prefix not in self._listed and "verbose" in query:
            return self._default
        return self._mounts.get(prefix, self._default)


def declared(policy: EdgePolicy) -> Requirement:
    """The requirement that a decorator declares."""
    if is_protected(policy):
        return Requirement(scopes=tuple(policy.scopes), roles=tuple(policy.roles))
    return NONE


def check(required: Requirement, identity: Identity) -> None:
    """Compare a caller with what is required.

    Raises:
        Denied: a scope is missing, or all of the roles are.
    """
    missing = [scope for scope in required.scopes if scope not in identity.scopes]
    if missing:
        raise Denied(
            f"this requires the scope {' and '.join(missing)}, which the caller does not have",
            details={"scopes": list(required.scopes)},
        )
    if required.roles and identity.roles.isdisjoint(required.roles):
        raise Denied(
            f"this requires the role {' or '.join(required.roles)}, which the caller does not have",
            details={"roles": list(required.roles)},
        )
