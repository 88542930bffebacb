"""The authentication method `certificate`: the client certificate of the TLS connection names the caller.

Owns: which of its names is the principal, and its roles.
Leaves to others: verifying it against `gateway.tls.client_ca`, its dates, and revocation (TLS, gateway.listeners.tls).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mesh.errors import Unauthenticated
from mesh.gateway.edge.auth.contract import Authenticator
from mesh.gateway.edge.identity import Identity
from mesh.gateway.front import Front
from mesh.gateway.request import Request

#: The names in a certificate, in the order in which `client_name = "any"` takes them: a value of the setting -> the
#: kind of a subjectAltName, as Python's ssl calls it; "" for the common name of the subject.
NAMES: Final = {"uri": "URI", "email": "email", "dns": "DNS", "cn": ""}
#: A value of `client_roles` -> the attribute of the subject.
ROLES: Final = {"ou": "organizationalUnitName", "o": "organizationName"}

#: What Python's ssl makes of a certificate.
Peer = Mapping[str, Any]


def make(front: Front) -> Authenticator | None:
    """The method; None when no client certificates are accepted."""
    tls = front.settings.gateway.tls
    if tls.client_ca is None:
        return None

    async def authenticate(request: Request) -> Identity | None:
        connection: Any = request.raw.protocol
        # One certificate belongs to all requests of a connection.
        if connection.identity is None:
            peer = request.raw.get_extra_info("peercert")
            if not peer:
                return None
            connection.identity = identify(peer, tls.client_name, tls.client_roles)
        return connection.identity  # type: ignore[no-any-return]

    return Authenticator(
        name="certificate",
        authenticate=authenticate,
        schemes={"certificate": {"type": "mutualTLS", "description": "A client certificate."}},
        facts={"required": tls.client_certificates == "required"},
    )


def identify(peer: Peer, name: str, roles: str) -> Identity:
    """The identity that a verified certificate gives.

    Args:
        name: a key of NAMES, or "any" for the first kind that the certificate has.
        roles: a key of ROLES, or "none".

    Raises:
        Unauthenticated: it has no such name, or several, so that the caller is not certain.
    """
    for kind in NAMES if name == "any" else (name,):
        found = list(_names(peer, NAMES[kind]))
        if len(found) > 1:
            raise Unauthenticated(f"the client certificate has {len(found)} names of the kind {kind}; one is needed")
        if found:
            attribute = ROLES.get(roles, "")
            given = frozenset(value for key, value in _subject(peer) if key == attribute)
            return Identity(found[0], "certificate", roles=given, key=str(peer.get("serialNumber", "")))
    raise Unauthenticated(f"the client certificate has no name of the kind {name}")


def _names(peer: Peer, kind: str) -> Iterator[str]:
    if kind:
        yield from (value for each, value in peer.get("subjectAltName", ()) if each == kind)
    else:
        yield from (value for each, value in _subject(peer) if each == "commonName")


def _subject(peer: Peer) -> Iterator[tuple[str, str]]:
    for relative in peer.get("subject", ()):
        yield from relative
