"""Which rate limits apply to a request, the caller that they count it for, and the header fields that announce them.

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
from mesh.errors import Unavailable
from mesh.gateway.entry import Entry
from mesh.gateway.request import Request
from mesh.policy.rate_table import Quota, Standing

#: Limits that need no authenticated caller, and are applied before authentication.
EARLY: Final[tuple[By, ...]] = ("address",)
#: The others: the fewest requests first, so that a request that is refused for a caller is not counted for its tenant.
LATE: Final[tuple[By, ...]] = ("key", "principal", "tenant", "route")

_ITEM: Final = b'"%b";r=%d;t=%d'

#: Entries of which the plans are kept. There are more only when services with many routes come and go.
MOST_PLANS: Final = 4096

#: Longer names of callers are replaced by their digest: a token may hold a name of any length.
LONGEST_NAME: Final = 128

#: Addresses of which the network is remembered.
MOST_ADDRESSES: Final = 4096


class Step(NamedTuple):
    """The limits of one request that count by the same thing.

    Attributes:
        caller: the caller of a request, as these limits count it.
        quotas: the limits, for the table.
        texts: names of the limits for clients.
        policy: the line RateLimit-Policy.
        lines: the two lines, with the places of `r` and `t` of each limit.
        single: the name of the only limit; "" for several.
    """

    caller: Callable[[Request], str]
    quotas: tuple[Quota, ...]
    texts: tuple[str, ...]
    policy: bytes
    lines: bytes
    single: str

    def announce(self, standings: Sequence[Standing | None]) -> bytes:
        """The header lines after a decision; limits without a standing are left out of RateLimit."""
        if len(standings) == 1 and (only := standings[0]) is not None:
            return self.lines % (only.left, math.ceil(only.reset_s))
        told = [
            _ITEM % (text.encode(), standing.left, math.ceil(standing.reset_s))
            for text, standing in zip(self.texts, standings, strict=True)
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
        self._made: dict[tuple[str, ...], tuple[Step, ...]] = {}

    def of(self, entry: Entry) -> tuple[Step, ...]:
        """The steps of an entry; () when nothing limits it.

        Raises:
            Unavailable: this gateway cannot read a limit that the entry declares.
        """
        # Two routes of one method may declare different limits, and so may two releases.
        key = (entry.name, *entry.policy.rates)
        made = self._made.get(key)
        if made is None:
            if len(self._made) >= MOST_PLANS:
                self._made.clear()
            made = self._made[key] = self._make(*key)
        return made

    def _make(self, name: str, *rates: str) -> tuple[Step, ...]:
        found = {limit.text: (limit.text, limit) for limit in self._own}
        for rate in rates:
            limit = read_declared(rate)
            if limit is None:
                raise Unavailable(f'{name}: this gateway cannot read its limit "{rate[:100]}"; update the gateway')
            # The same text twice is one limit.
            found[f"{name} {limit.text}"] = (f"route {limit.text}", limit)
        return tuple(
            _step(by, [(quota, *each) for quota, each in found.items() if each[1].by == by])
            for by in self._phase
            if any(limit.by == by for _, limit in found.values())
        )


def read_declared(rate: str) -> Limit | None:
    """A limit in the record of a service; None when a newer release has written it in a way that is unknown here."""
    try:
        return read_rate(rate)
    except ValueError:
        return None


def _step(by: By, limits: list[tuple[str, str, Limit]]) -> Step:
    policies = [b'"%b";q=%d;w=%d' % (text.encode(), limit.most, limit.window_s) for _, text, limit in limits]
    policy = b"RateLimit-Policy: %b\r\n" % b", ".join(policies)
    items = b", ".join(b'"%b";r=%%d;t=%%d' % text.encode() for _, text, _ in limits)
    return Step(
        _CALLERS[by],
        tuple(Quota(quota, limit.most, float(limit.window_s)) for quota, _, limit in limits),
        tuple(text for _, text, _ in limits),
        policy,
        # No limit has a percent sign in its text.
        b"%bRateLimit: %b\r\n" % (policy, items),
        limits[0][0] if len(limits) == 1 else "",
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
    if identity is None or not (name := identity.principal):
        return _address(request)
    return f"principal {name}" if len(name) <= LONGEST_NAME else _named("principal", name)


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
