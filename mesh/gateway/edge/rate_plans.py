"""Which rate limits apply to a request, by whom they count it, and the header fields that announce them.

Owns: the limits of [gateway.limits] and of routes, methods and tasks, joined for each entry; the callers that they
count; the fields RateLimit and RateLimit-Policy.
Leaves to others: counting (policy.rate_table, rate_counters), refusing (rates), the syntax of limits
(config.edge_rates).

The fields are those of the Internet-Draft draft-ietf-httpapi-ratelimit-headers-10: lists of strings with parameters.
`q` is the quota and `w` the window in seconds; `r` is what remains, and `t` the seconds until more is available.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from mesh.config.edge_rates import By, Limit, read_rate
from mesh.gateway.entry import Entry
from mesh.gateway.request import Request
from mesh.policy.rate_table import Quota, Standing

#: Limits that need no authenticated caller, and are applied before authentication.
EARLY: Final[tuple[By, ...]] = ("address",)
#: The others: the fewest requests first, so that a request that is refused for a caller is not counted for its tenant.
LATE: Final[tuple[By, ...]] = ("key", "principal", "tenant", "route")

#: Entries of which the plans are kept. There are more only when services with many routes come and go.
MOST_PLANS: Final = 4096

#: Longer names of callers are replaced by their digest: a token may hold a name of any length.
LONGEST_NAME: Final = 128

#: Addresses of which the network is remembered.
MOST_ADDRESSES: Final = 4096


class Step(NamedTuple):
    """The limits of one request that count by the same thing.

    Attributes:
        by: what they count by.
        quotas: the limits, for the table.
        texts: as they were written, for errors and metrics.
        policy: the line RateLimit-Policy.
        items: the items of the line RateLimit, without their parameters.
    """

    by: By
    quotas: tuple[Quota, ...]
    texts: tuple[str, ...]
    policy: bytes
    items: tuple[bytes, ...]

    def lines(self, standings: Sequence[Standing | None]) -> bytes:
        """The header lines after a decision; limits without a standing are left out of RateLimit."""
        told = [
            b"%b;r=%d;t=%d" % (item, standing.left, math.ceil(standing.reset_s))
            for item, standing in zip(self.items, standings, strict=True)
            if standing is not None
        ]
        return b"%bRateLimit: %b\r\n" % (self.policy, b", ".join(told)) if told else self.policy


class Plans:
    """The steps of each entry, made once.

    Args:
        own: the limits of [gateway.limits], for all entries.
        phase: the steps to make, by what they count by, in order.
    """

    def __init__(self, own: Sequence[Limit], phase: tuple[By, ...]) -> None:
        self._own = own
        self._phase = phase
        self._made: dict[tuple[str, tuple[str, ...]], tuple[Step, ...]] = {}

    def of(self, entry: Entry) -> tuple[Step, ...]:
        """The steps of an entry; () when nothing limits it."""
        # The limits are part of the key: a release may change them.
        key = (entry.name, tuple(entry.policy.rates))
        made = self._made.get(key)
        if made is None:
            if len(self._made) >= MOST_PLANS:
                self._made.clear()
            made = self._made[key] = self._make(*key)
        return made

    def _make(self, name: str, rates: tuple[str, ...]) -> tuple[Step, ...]:
        declared = [(f"{name} {limit.text}", f"route {limit.text}", limit) for limit in map(read_rate, rates)]
        found = [(limit.text, limit.text, limit) for limit in self._own] + declared
        # Two ways of writing the same limit, "5/s" and "5/1s", are two limits; the same text twice is one.
        unique = {quota: (shown, limit) for quota, shown, limit in found}
        return tuple(
            _step(by, [(quota, *each) for quota, each in unique.items() if each[1].by == by])
            for by in self._phase
            if any(limit.by == by for _, limit in unique.values())
        )


def _step(by: By, limits: list[tuple[str, str, Limit]]) -> Step:
    shown = [f'"{name}"'.encode() for _, name, _ in limits]
    policies = [
        b"%b;q=%d;w=%d" % (item, limit.most, limit.window_s) for item, (*_, limit) in zip(shown, limits, strict=True)
    ]
    return Step(
        by,
        tuple(Quota(quota, limit.most, float(limit.window_s)) for quota, _, limit in limits),
        tuple(quota for quota, _, _ in limits),
        b"RateLimit-Policy: %b\r\n" % b", ".join(policies),
        tuple(shown),
    )


# --- callers ---------------------------------------------------------------------------------------------


def caller_by(by: By, request: Request) -> str:
    """The caller of a request as limits count it: "principal alice", "address 2001:db8:1:2::/64"."""
    return _CALLERS[by](request)


def _address(request: Request) -> str:
    return _network(request.client)


@lru_cache(MOST_ADDRESSES)
def _network(address: str) -> str:
    """The address, or the /64 of an IPv6 address: one customer of a provider has at least that many addresses."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"address {address[:LONGEST_NAME]}"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return f"address {parsed.ipv4_mapped}"
        return f"address {ipaddress.ip_network((parsed, 64), strict=False)}"
    return f"address {parsed}"


def _principal(request: Request) -> str:
    identity = request.identity
    return _named("principal", identity.principal) if identity is not None and identity.principal else _address(request)


def _key(request: Request) -> str:
    identity = request.identity
    return _named("key", identity.key) if identity is not None and identity.key else _principal(request)


def _tenant(request: Request) -> str:
    identity = request.identity
    return _named("tenant", identity.tenant) if identity is not None and identity.tenant else _principal(request)


def _route(request: Request) -> str:
    entry = request.entry
    return f"route {entry.name or entry.prefix}"


def _named(kind: str, name: str) -> str:
    if len(name) > LONGEST_NAME:
        name = "#" + hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{kind} {name}"


_CALLERS: Final[dict[By, Callable[[Request], str]]] = {
    "address": _address,
    "principal": _principal,
    "key": _key,
    "tenant": _tenant,
    "route": _route,
}
