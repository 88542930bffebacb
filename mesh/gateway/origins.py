"""Origins of web pages, and which of them a route shares its answers with.

Owns: reading an origin, sets of origins, and the origins of a route's policy. Pure.
Leaves to others: refusing requests of other sites (sites), the header fields that let pages read answers (edge.cors).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from mesh.discovery.record import EdgePolicy
from mesh.errors import ConfigError

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}))(?::([0-9]{0,5}))?")
ORIGIN: Final = re.compile(r"(https?)://([^/?#@\s]+)")
PORTS: Final = {"http": "80", "https": "443"}

#: The number of different lists of origins to keep; services declare a handful.
MOST_POLICIES: Final = 256


class HostPort(NamedTuple):
    """Host and port as they are written; port "" stands for the scheme's default."""

    host: str
    port: str


def split_host(text: str) -> HostPort | None:
    """`shop.example:8080` → ("shop.example", "8080"); None when it is not a host, or carries user information."""
    found = _HOST.fullmatch(text)
    if found is None or (found[2] and int(found[2]) > 65535):
        return None
    return HostPort(found[1], (found[2] or "").lstrip("0"))


def read_origin(text: str) -> str | None:
    """A listed origin in the form that browsers send; None when it is not one. `*` and `null` stay as they are."""
    if text in ("*", "null"):
        return text
    found = ORIGIN.fullmatch(text.lower())
    if found is None or split_host(found[2]) is None:
        return None
    return f"{found[1]}://{found[2].removesuffix(':' + PORTS[found[1]])}"


class Origins:
    """A set of origins.

    Attributes:
        every: it holds `*`, which is every origin.
    """

    __slots__ = ("_listed", "every")

    def __init__(self, listed: Iterable[str]) -> None:
        self._listed = frozenset(listed)
        self.every = "*" in self._listed

    def __bool__(self) -> bool:
        return bool(self._listed)

    def __contains__(self, origin: str) -> bool:
        return self.every or origin.lower() in self._listed

    @property
    def anyone(self) -> bool:
        """Whether pages that anyone may make are among them: `*`, or `null`, which sandboxed pages of any site have."""
        return self.every or "null" in self._listed


class SharedOrigins:
    """The origins that a gateway and its routes list.

    Args:
        listed: `gateway.origins`.

    Raises:
        ConfigError: an entry is not an origin.
    """

    def __init__(self, listed: list[str]) -> None:
        found = []
        for text in listed:
            origin = read_origin(text)
            if origin is None:
                raise ConfigError(
                    f'gateway.origins: "{text}" is not an origin; '
                    'write "https://app.example", "http://localhost:3000" or "*"'
                )
            found.append(origin)
        self.gateway = Origins(found)
        self._by_policy: dict[tuple[str, ...], Origins] = {}

    def of(self, policy: EdgePolicy) -> Origins:
        """The origins of a route: those that it lists, or else those of the gateway."""
        if not policy.cors:
            return self.gateway
        key = tuple(policy.cors)
        found = self._by_policy.get(key)
        if found is None:
            if len(self._by_policy) >= MOST_POLICIES:
                self._by_policy.clear()
            # The record came from a worker: an entry that is not an origin matches nothing.
            origins = Origins(origin for text in key if (origin := read_origin(text)) is not None)
            found = self._by_policy[key] = origins
        return found
