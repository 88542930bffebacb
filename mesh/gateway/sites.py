"""Which host names this gateway answers for, and which web pages may send it state-changing requests.

Owns: checking Host (against DNS rebinding), Origin and Sec-Fetch-Site (against cross-site request forgery).
Leaves to others: lists of origins (origins), the header fields of CORS (edge.cors), answering the request (server).

The default hosts are the address that the gateway listens on, the names of loopback, and, when it listens beyond
loopback, the addresses and names of this machine; `[gateway] hosts` adds to them. A page on a host name outside this
list cannot reach the gateway, even if its name resolves to the gateway's address.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from typing import Final

from aiohttp import hdrs, web
from multidict import istr

from mesh.config import Settings
from mesh.config.edge_listeners import UNIX
from mesh.config.exposure import is_loopback
from mesh.discovery.record import EdgePolicy
from mesh.errors import BadRequest, ConfigError
from mesh.gateway.origins import ORIGIN, PORTS, HostPort, SharedOrigins, split_host

SEC_FETCH_SITE: Final = istr("Sec-Fetch-Site")

#: Methods that change nothing by definition (RFC 9110, section 9.2.1) and that links and images may therefore use.
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

#: The values of Sec-Fetch-Site for requests from the gateway's own pages, or from a typed address.
_OWN_SITE: Final = frozenset({"same-origin", "none"})

#: The number of accepted Host values to cache; a pattern may accept any number of them.
MOST_KNOWN: Final = 256


class WrongHost(BadRequest):
    """The request is for a host name that this gateway does not answer for."""

    code = "wrong_host"
    status = 421


class CrossSite(BadRequest):
    """A web page of another site sent the request; nothing was done."""

    code = "cross_site"
    status = 403


def read_authority(text: str) -> HostPort | None:
    """`Shop.Example.:8080` → ("shop.example", "8080"), for comparison; None when it is not a host."""
    found = split_host(text)
    return None if found is None else HostPort(_plain_host(found.host), found.port)


def _plain_host(host: str) -> str:
    host = host.lower().removesuffix(".")
    address = _address(host)
    return str(address) if address is not None else host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class _Names:
    """Host names and patterns of them: `*.example.com` is every name below example.com, `*` is every name."""

    def __init__(self, names: list[str], key: str) -> None:
        self.everything = "*" in names
        self.exact: set[str] = set()
        self.below: tuple[str, ...] = ()
        for name in names:
            pattern = name.removeprefix("*.")
            authority = read_authority(pattern) if name != "*" else HostPort("*", "")
            if authority is None or authority.port:
                raise ConfigError(
                    f'{key}: "{name}" is not a host name; write "shop.example", "*.shop.example" or "*", without a port'
                )
            if pattern != name:
                self.below += ("." + authority.host,)
            else:
                self.exact.add(authority.host)

    def __contains__(self, host: str) -> bool:
        return self.everything or host in self.exact or (bool(self.below) and host.endswith(self.below))


class Sites:
    """The rules of one gateway.

    Raises:
        ConfigError: `gateway.hosts` or `gateway.origins` holds something that is neither a name nor a pattern.
    """

    def __init__(self, settings: Settings) -> None:
        gateway = settings.gateway
        bound = {_plain_host(gateway.host)}
        if gateway.admin and not gateway.admin.startswith(UNIX):
            bound.add(_plain_host(gateway.admin.rpartition(":")[0]))
        self._on_loopback = all(is_loopback(each) for each in bound)
        self._names = _Names(gateway.hosts, "gateway.hosts")
        self._names.exact |= {*bound, "localhost", *map(_plain_host, gateway.acme.domains)}
        self._names.below += (".localhost",)
        if not self._on_loopback:
            machine = _plain_host(socket.gethostname())
            own = {machine, machine.partition(".")[0], _plain_host(settings.mesh.host)}
            own.add(_plain_host(settings.mesh.advertise))
            self._names.exact |= own - {""}
        self.origins = SharedOrigins(gateway.origins)
        #: Accepted Host headers, as received: nearly every request needs only one lookup.
        self.known: set[str] = set()

    # --- hosts ----------------------------------------------------------------------------------

    def check_host(self, host: str | None) -> None:
        """Reject a request for a host that is not this gateway's.

        Args:
            host: the Host header; None, which HTTP/1.0 allows and no browser sends, is accepted.

        Raises:
            BadRequest: it is malformed.
            WrongHost: it is another host.
        """
        if host in self.known or host is None:
            return
        authority = read_authority(host)
        if authority is None:
            raise BadRequest(f"Host: {host[:80]!a} is not a host name with an optional port", details=_HOST_DETAILS)
        if not self._is_own(authority.host):
            raise WrongHost(
                f'this gateway does not answer for the host "{authority.host[:80]}"; '
                "add it to gateway.hosts in mesh.toml, or send the request to a host that is listed there"
            )
        if len(self.known) >= MOST_KNOWN:
            self.known.clear()
        self.known.add(host)

    def check_target(self, request: web.BaseRequest) -> None:
        """Reject an absolute request target, `GET http://host/path`, for another host than this one and that of Host.

        Raises:
            BadRequest: its host is malformed, carries user information, or contradicts Host: a proxy in front may have
                gone by the other one.
            WrongHost: it is another host.
        """
        found = re.match(r"https?://([^/?#]*)", request.raw_path, re.IGNORECASE)
        if found is None:
            raise BadRequest("the request target must be a path, or begin with http://", details={"path": "target"})
        self.check_host(found[1])
        host = request.headers.get(hdrs.HOST)
        if host is not None:
            self.check_host(host)
            if not is_same_origin(f"http://{found[1]}", host):
                raise BadRequest("the request target and Host name different hosts", details=_HOST_DETAILS)

    def _is_own(self, host: str) -> bool:
        if host in self._names:
            return True
        address = _address(host)
        if address is None:
            return False
        return address.is_loopback or (not self._on_loopback and _is_local(address))

    # --- origins --------------------------------------------------------------------------------

    def check_origin(self, request: web.BaseRequest, policy: Callable[[], EdgePolicy], forwarded: str = "") -> None:
        """Reject a request from a page of another site, unless the route or `gateway.origins` lists that site.

        Call it for methods outside SAFE.

        Args:
            policy: finds the policy of the request's route; not called for the gateway's own pages.
            forwarded: the host that the client has asked a trusted proxy for; it has passed `check_host`.

        Raises:
            CrossSite: the request is from such a page.
        """
        headers = request.headers
        # No browser sends several values; values that a proxy adds or merges must not hide the browser's value.
        origins = headers.getall(hdrs.ORIGIN, ())
        sites = headers.getall(SEC_FETCH_SITE, ())
        if not origins and not sites:
            return
        host = forwarded or headers.get(hdrs.HOST, "")
        other = next((origin for origin in origins if not is_same_origin(origin, host)), None)
        own = _OWN_SITE.issuperset(sites)
        if own and other is None:
            return
        if origins:
            listed = self.origins.of(policy())
            if listed and all(origin in listed for origin in origins):
                return
        if not own or other is None:
            raise CrossSite(
                "the request comes from a page of another site; list its origin in gateway.origins to allow it"
            )
        raise CrossSite(
            f'the request comes from the origin "{other[:80]}", which is not this host; '
            "list it in gateway.origins to allow it"
        )


_HOST_DETAILS: Final = {"path": "header.Host"}


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an Origin belongs to the host of the request. `null` (sandboxed pages, files) never does."""
    found = ORIGIN.fullmatch(origin)
    if found is None:
        return False
    ours, theirs = read_authority(host), read_authority(found[2])
    if ours is None or theirs is None or ours.host != theirs.host:
        return False
    default = PORTS[found[1]]
    return (ours.port or default) == (theirs.port or default)


def _is_local(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether this machine currently has the address: only then can a socket be bound to it."""
    if address.is_unspecified or address.is_multicast:
        return False
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
