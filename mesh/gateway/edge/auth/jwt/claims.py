"""What the claims of a verified token mean: whether it is valid now and here, and which principal it names. Pure.

Owns: time, issuer and audience; the principal, scopes, roles and tenant of a token.
Leaves to others: signatures (keys), the time (method).

Source: RFC 7519, section 4.1; RFC 8725, sections 3.8 and 3.9; RFC 9068 for scopes and roles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.config.edge_auth import JwtSettings
from mesh.errors import Unauthenticated
from mesh.gateway.edge.identity import Identity

Claims = Mapping[str, Any]


def check_claims(claims: Claims, settings: JwtSettings, now: float) -> float:
    """Check that a token is valid now, and for this application; returns the instant at which it expires, leeway
    included.

    Args:
        now: seconds since 1970.

    Raises:
        Unauthenticated: it is not; the message says why.
    """
    leeway_s = settings.leeway_s
    expires_at = _instant(claims, "exp")
    if expires_at is None:
        raise Unauthenticated("the token has no exp")
    if now >= expires_at + leeway_s:
        raise Unauthenticated("the token has expired")
    begins_at = _instant(claims, "nbf")
    if begins_at is not None and now < begins_at - leeway_s:
        raise Unauthenticated("the token is not valid yet")
    issued_at = _instant(claims, "iat")
    if issued_at is not None and now < issued_at - leeway_s:
        raise Unauthenticated("the token was issued in the future")
    if claims.get("iss") != settings.issuer:
        raise Unauthenticated("the token is of another issuer")
    audience = claims.get("aud")
    listed = [audience] if isinstance(audience, str) else audience
    if not isinstance(listed, list) or not any(isinstance(each, str) and each in settings.audience for each in listed):
        raise Unauthenticated("the token is for another audience")
    return expires_at + leeway_s


def identity_of(claims: Claims, settings: JwtSettings) -> Identity:
    """The identity that a token names.

    Raises:
        Unauthenticated: it has no subject, or a claim does not have the form that the settings promise.
    """
    principal = _at(claims, settings.principal)
    if not isinstance(principal, str) or not principal:
        raise Unauthenticated(f"the token names no principal: its claim {settings.principal} is not a text")
    scopes = _at(claims, settings.scopes) if settings.scopes else claims.get("scope", claims.get("scp"))
    tenant = _at(claims, settings.tenant) if settings.tenant else None
    if tenant is not None and not isinstance(tenant, str):
        raise Unauthenticated(f"the token's claim {settings.tenant} is not a text")
    return Identity(
        principal,
        "jwt",
        scopes=_names(scopes, settings.scopes or "scope"),
        roles=_names(_at(claims, settings.roles) if settings.roles else None, settings.roles),
        tenant=tenant or "",
        claims=claims,
    )


def _instant(claims: Claims, name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    # (Dates that are no instants, such as 10**400, would raise when they are compared.)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e12 < value < 1e12:
        raise Unauthenticated(f"the token's {name} is not an instant")
    return float(value)


def _at(claims: Claims, path: str) -> Any:
    """The claim of this name, or else of this path: names of claims may hold dots, as in `https://app.example/roles`."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def _names(value: Any, claim: str) -> frozenset[str]:
    """Scopes or roles: a list, or a text in which spaces separate them."""
    if value is None:
        return frozenset()
    listed = value.split() if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise Unauthenticated(f"the token's claim {claim} is neither a list of texts nor a text")
    return frozenset(listed)
