"""[auth]: how gateways find out who calls, and what they require.

Owns: the keys, their defaults, and the syntax of a requirement.
Leaves to others: combinations of keys (config.edge_auth_checks), using them (gateway.edge.auth). See
docs/authentication.md.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from msgspec import Struct, field

from mesh.config.edge_sessions import SessionSettings
from mesh.config.secrets import Secret
from mesh.config.values import DURATION, DURATION_OR_ZERO, PATH_OR_NONE, SECRET, TEXT, TEXTS, Kind

_FIELD: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_NAME: Final = re.compile(r"[!-~]{1,128}")


class Requirement(Struct, frozen=True):
    """What a caller must be: `"none"`, `"user"`, or names such as `"role:operator scope:metrics:read"`.

    Attributes:
        user: an authenticated caller is required.
        scopes: the caller must have all of them.
        roles: the caller must have one of them.
    """

    user: bool = True
    scopes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()


NONE: Final = Requirement(user=False)
USER: Final = Requirement()


def read_requirement(value: Any) -> Requirement:
    """Read `"none"`, `"user"` or a list of `role:NAME` and `scope:NAME`, separated by spaces.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, str):
        raise ValueError
    if value.strip() in ("none", "user"):
        return NONE if value.strip() == "none" else USER
    found: dict[str, list[str]] = {"role": [], "scope": []}
    for word in value.split():
        kind, _, name = word.partition(":")
        if kind not in found or _NAME.fullmatch(name) is None:
            raise ValueError
        found[kind].append(name)
    if not value.split():
        raise ValueError
    return Requirement(scopes=tuple(found["scope"]), roles=tuple(found["role"]))


def show_requirement(required: Requirement | None) -> str:
    """The text that `read_requirement` reads; "user", the default, for None."""
    required = required or USER
    names = [*(f"role:{name}" for name in required.roles), *(f"scope:{name}" for name in required.scopes)]
    return " ".join(names) or ("user" if required.user else "none")


def _read_mounts(value: Any) -> dict[str, Requirement]:
    if isinstance(value, str):  # in the environment: /docs=none,/metrics=role:operator
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        value = {prefix.strip(): text for prefix, _, text in pairs}
    if not isinstance(value, dict) or not all(isinstance(each, str) and each.startswith("/") for each in value):
        raise ValueError
    return {prefix: read_requirement(text) for prefix, text in value.items()}


REQUIREMENT: Final = Kind(
    '"none", "user", or names like "role:operator scope:read"', read_requirement, show_requirement
)
REQUIREMENTS: Final = Kind(
    'a table of requirements like { "/metrics" = "role:operator" }',
    _read_mounts,
    lambda mounts: {prefix: show_requirement(required) for prefix, required in mounts.items()},
)


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_safe_url(text: str) -> bool:
    """Whether what a URL answers cannot be changed on the way: https, or http on loopback."""
    try:
        url = urlsplit(text)
        host, _ = url.hostname or "", url.port
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text
    if not plain or not host or url.username is not None or url.fragment:
        return False
    return url.scheme == "https" or (url.scheme == "http" and is_loopback(host))


def _read_url(value: Any) -> str:
    if not isinstance(value, str) or not is_safe_url(value.strip()):
        raise ValueError
    return value.strip()


def _read_field(value: Any) -> str:
    if not isinstance(value, str) or _FIELD.fullmatch(value.strip()) is None:
        raise ValueError
    return value.strip()


FIELD: Final = Kind("the name of a header field", _read_field)
URL: Final = Kind("an https URL (http only on loopback)", _read_url)


class JwtSettings(Struct, frozen=True, kw_only=True):
    """[auth.jwt]: signed tokens of an identity provider, `Authorization: Bearer eyJ…`.

    `issuer` alone finds the provider's keys by OpenID Connect discovery; `jwks`, `file` or `secret` replaces that.
    """

    issuer: Annotated[
        str,
        TEXT,
        "the `iss` of tokens, exactly; without `jwks`, `file` and `secret` its keys are found "
        "by OpenID Connect discovery",
    ] = ""
    audience: Annotated[
        list[str], TEXTS, "a token must be for one of these (`aud`): the names of this application"
    ] = []
    jwks: Annotated[str, URL, "the URL of the provider's public keys"] = ""
    file: Annotated[
        Path | None, PATH_OR_NONE, "a file of public keys, a JWK set or PEM, read again when it changes"
    ] = None
    secret: Annotated[Secret | None, SECRET, "the shared secret of HS256, HS384 and HS512"] = None
    algorithms: Annotated[
        list[str], TEXTS, "the signature algorithms to accept; absent: all that the keys can be used with, or HS256"
    ] = []
    type: Annotated[str, TEXT, 'the required `typ` of tokens, such as "at+jwt"; absent: JWT, at+jwt, or none'] = ""
    leeway_s: Annotated[float, DURATION_OR_ZERO, "how far the clock of the provider may be off"] = field(
        default=30.0, name="leeway"
    )
    principal: Annotated[str, TEXT, "the claim that names the caller"] = "sub"
    scopes: Annotated[str, TEXT, "the claim with the scopes; absent: `scope`, or else `scp`"] = ""
    roles: Annotated[str, TEXT, 'the claim with the roles, or the path to it, such as "realm_access.roles"'] = ""
    tenant: Annotated[str, TEXT, "the claim with the tenant, or the path to it"] = ""
    refresh_s: Annotated[float, DURATION, "how often the provider's keys are fetched"] = field(
        default=600.0, name="refresh"
    )
    stale_s: Annotated[float, DURATION, "how long fetched keys are used while the provider does not answer"] = field(
        default=86400.0, name="stale"
    )

    @property
    def is_on(self) -> bool:
        """Whether tokens are accepted. A key that is useless alone counts, so that the missing one is asked for."""
        return bool(self.issuer or self.audience or self.jwks or self.file or self.secret or self.algorithms)


class ApiKeySettings(Struct, frozen=True, kw_only=True):
    """[auth.apikeys]: keys made by `mesh apikeys create`, `Authorization: Bearer mk_…` or `X-API-Key: mk_…`."""

    file: Annotated[
        Path | None, PATH_OR_NONE, "the file that holds the hashes of the keys, read again when it changes"
    ] = None


class BasicSettings(Struct, frozen=True, kw_only=True):
    """[auth.basic]: names and passwords of `mesh users add`, for internal tools (HTTP Basic)."""

    file: Annotated[
        Path | None, PATH_OR_NONE, "the file that holds the hashes of the passwords, read again when it changes"
    ] = None


class ProxySettings(Struct, frozen=True, kw_only=True):
    """[auth.proxy]: a reverse proxy of `gateway.proxies` that authenticates callers, and names them in header fields.

    A request with one of these fields from any other address is refused.
    """

    header: Annotated[str, FIELD, 'the header field with the name of the caller, such as "X-Forwarded-User"'] = ""
    scopes: Annotated[str, FIELD, "the header field with the caller's scopes, separated by spaces or commas"] = ""
    roles: Annotated[str, FIELD, "the header field with the caller's roles, separated by spaces or commas"] = ""
    tenant: Annotated[str, FIELD, "the header field with the caller's tenant"] = ""


class AuthSettings(Struct, frozen=True, kw_only=True):
    """[auth]: who may send requests to the gateways. See docs/authentication.md."""

    default: Annotated[
        Requirement | None, REQUIREMENT, "what is required where neither a decorator nor `mounts` says anything else"
    ] = None
    mounts: Annotated[
        dict[str, Requirement],
        REQUIREMENTS,
        'what mounts require where a decorator says nothing, such as { "/docs" = "none" }; '
        "/livez and /readyz require nothing unless they are listed",
    ] = {}
    job_roles: Annotated[
        list[str], TEXTS, "roles that may see and cancel the jobs of all callers; others only their own"
    ] = []
    jwt: JwtSettings = field(default_factory=JwtSettings)
    apikeys: ApiKeySettings = field(default_factory=ApiKeySettings)
    basic: BasicSettings = field(default_factory=BasicSettings)
    proxy: ProxySettings = field(default_factory=ProxySettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)

    @property
    def methods(self) -> list[str]:
        """The names of the methods that are switched on."""
        on = {
            "proxy": bool(self.proxy.header),
            "jwt": self.jwt.is_on,
            "apikeys": self.apikeys.file is not None,
            "basic": self.basic.file is not None,
            "session": self.sessions.is_on,
        }
        return [name for name, value in on.items() if value]
