"""What a method asks of the gateways in front of it: who may call it over HTTP, how often, and what answers allow.

Owns: the options `auth`, `limit`, `max_body`, `cors` and `cache` of `@http.…`, `@rpc` and `@task`, rejected at once
when invalid.
Leaves to others: the record that carries them (discovery.record), applying them (gateway.edge).

The decorators take them as `**edge`, so that a further option is added here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal, TypedDict

from mesh.calls.declared import BadDeclaration
from mesh.config.edge_rates import RATE
from mesh.config.values import read_size
from mesh.discovery.record import EdgePolicy
from mesh.protocol.http_head import check_value
from mesh.suggest import suggest

_NAME: Final = re.compile(r"[!-~]{1,128}")
_ORIGIN: Final = re.compile(r"\*|null|https?://[^/?#@\s]+")


class Auth:
    """Who may call: made by `scopes` and `roles`; `scopes("orders:write") & roles("clerk")` requires both."""

    __slots__ = ("roles", "scopes")

    def __init__(self, scopes: tuple[str, ...] = (), roles: tuple[str, ...] = ()) -> None:
        self.scopes = scopes
        self.roles = roles

    def __and__(self, other: Auth) -> Auth:
        if self.roles and other.roles:
            raise BadDeclaration("auth: roles(…) & roles(…): name all roles in one roles(…); one of them is enough")
        return Auth(self.scopes + other.scopes, self.roles or other.roles)

    def __repr__(self) -> str:
        shown = [f"scopes{self.scopes}"] if self.scopes else []
        return " & ".join([*shown, f"roles{self.roles}"] if self.roles else shown) or "Auth()"


def scopes(*names: str) -> Auth:
    """Require a caller with all of these scopes: `@http.post("/orders", auth=scopes("orders:write"))`.

    Raises:
        BadDeclaration: no name is given, or one is empty or holds a space.
    """
    return Auth(scopes=_names("scopes", names))


def roles(*names: str) -> Auth:
    """Require a caller with one of these roles: `@http.get("/reports", auth=roles("clerk", "manager"))`.

    Raises:
        BadDeclaration: no name is given, or one is empty or holds a space.
    """
    return Auth(roles=_names("roles", names))


def _names(what: str, names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise BadDeclaration(f'{what}() requires a name: {what}("orders:write")')
    for name in names:
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise BadDeclaration(f"{what}: {name!r:.80} is not a name; use printable ASCII without spaces")
    return names


class EdgeOptions(TypedDict, total=False):
    """The options of decorators for gateways.

    Attributes:
        auth: who may call over HTTP: "user" is every authenticated caller, `http.scopes(…)` and `http.roles(…)` are
            some of them, None is anyone. Absent: `auth.default`.
        limit: the most requests, such as "100/m by principal" or "10/5s"; several limits all apply. `by` is one of
            address, principal, key, tenant and route; absent: principal, or address for callers without one.
        max_body: the largest request body, such as "2MiB"; absent: `gateway.max_body`.
        cors: origins of web pages that may use it, such as "https://app.example"; absent: `gateway.origins`.
        cache: the Cache-Control header of successful answers, such as "public, max-age=60".
    """

    auth: Auth | Literal["user"] | None
    limit: str | Sequence[str]
    max_body: str | int
    cors: str | Sequence[str]
    cache: str


#: The names of all options.
OPTIONS: Final = frozenset(EdgeOptions.__annotations__)


def read_edge(what: str, options: EdgeOptions | dict[str, Any]) -> EdgePolicy | None:
    """The policy of a decorator's options; None when none is given.

    Args:
        what: the decorator, for errors.

    Raises:
        BadDeclaration: an option is unknown or has an invalid value.
    """
    if not options:
        return None
    found: dict[str, Any] = {}
    for name, value in options.items():
        read = _READERS.get(name)
        if read is None:
            remedy = suggest(name, _READERS, f"the options for gateways are {', '.join(_READERS)}")
            raise BadDeclaration(f'{what}: there is no option "{name}"; {remedy}')
        found |= read(what, value)
    return EdgePolicy(**found)


def _auth(what: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {"auth": "none"}
    if isinstance(value, Auth):
        return {"auth": "user", "scopes": list(value.scopes), "roles": list(value.roles)}
    if value == "user":
        return {"auth": "user"}
    raise BadDeclaration(f'{what}: auth is "user", http.scopes(…), http.roles(…) or None, not {value!r:.80}')


def _limit(what: str, value: Any) -> dict[str, Any]:
    rates = [value] if isinstance(value, str) else list(value)
    for rate in rates:
        if not isinstance(rate, str) or RATE.fullmatch(rate) is None:
            raise BadDeclaration(f'{what}: limit {rate!r:.80} is not a rate; write "100/m by principal" or "10/5s"')
    return {"rates": rates}


def _max_body(what: str, value: Any) -> dict[str, Any]:
    try:
        size = value if type(value) is int else read_size(value)
    except ValueError:
        size = 0
    if size <= 0:
        raise BadDeclaration(f'{what}: max_body {value!r:.80} is not a size; write "2MiB" or a number of bytes')
    return {"max_body_bytes": size}


def _cors(what: str, value: Any) -> dict[str, Any]:
    origins = [value] if isinstance(value, str) else list(value)
    for origin in origins:
        if not isinstance(origin, str) or _ORIGIN.fullmatch(origin) is None:
            raise BadDeclaration(f'{what}: cors {origin!r:.80} is not an origin; write "https://app.example" or "*"')
    return {"cors": origins}


def _cache(what: str, value: Any) -> dict[str, Any]:
    try:
        check_value("Cache-Control", value)
    except ValueError as exc:
        raise BadDeclaration(f"{what}: cache: {exc}") from None
    return {"cache": value}


_READERS: Final = {"auth": _auth, "limit": _limit, "max_body": _max_body, "cors": _cors, "cache": _cache}
