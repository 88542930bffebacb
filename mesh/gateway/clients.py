"""The client behind a connection: its address, scheme and host, also behind a trusted reverse proxy.

Owns: `gateway.proxies`, and which of their header fields are believed.
Leaves to others: the syntax of these fields (forwarded), the PROXY protocol (listeners), limits by address (admission),
the log (request_log).
"""

from __future__ import annotations

import ipaddress
from typing import Any, Final

from aiohttp import hdrs, web
from multidict import istr

from mesh.config.edge_listeners import ForwardedHeaders
from mesh.errors import ConfigError
from mesh.gateway.forwarded import read_forwarded

#: The number of addresses for which the result of `is_exempt` is cached.
MOST_KNOWN = 4096

_PROTO: Final = istr("X-Forwarded-Proto")
_HOST: Final = istr("X-Forwarded-Host")


class Clients:
    """Addresses of clients.

    Args:
        proxies: addresses and networks of trusted proxies, such as "10.0.0.5" and "10.1.0.0/16". Their header fields
            are trusted, and the limit per client does not apply to their connections. Connections over a Unix socket
            are always from a trusted proxy.
        headers: which fields they set. Only one kind is read: a proxy that sets one passes the other on from clients.
        behind: a proxy is in front, also when `proxies` is empty: the gateway listens on a Unix socket.

    Attributes:
        behind: whether some connections may be from trusted proxies.

    Raises:
        ConfigError: one of `proxies` is neither an address nor a network.
    """

    def __init__(self, proxies: list[str], headers: ForwardedHeaders = "x-forwarded", *, behind: bool = False) -> None:
        self._proxies = [_network(text) for text in proxies]
        self._standard = headers == "forwarded"
        self._exempt: dict[str, bool] = {}
        self.behind = behind or bool(proxies)

    def is_exempt(self, address: str) -> bool:
        """Whether the limit of connections per client does not apply: for loopback, and for proxies."""
        found = self._exempt.get(address)
        if found is None:
            if len(self._exempt) >= MOST_KNOWN:
                self._exempt.clear()
            found = self._exempt[address] = _is_loopback(address) or self.is_proxy(address)
        return found

    def of(self, request: web.BaseRequest) -> str:
        """The client's address; "-" when it is not known."""
        address = request.remote or ""
        if self.behind and self.is_proxy(address):
            # The nearest proxy appends its entry last; earlier entries may be forged by the client.
            for told in reversed(self._hops(request)):
                if _parsed(told) is None:
                    break
                address = told
                if not self.is_proxy(address):
                    break
        return address or "-"

    def scheme(self, request: web.BaseRequest) -> str:
        """ "https" when the client speaks TLS, to the gateway or to a trusted proxy; else "http"."""
        if request.secure:
            return "https"
        told = getattr(request.protocol, "told", None)
        if told is not None and told.secure:
            return "https"
        if not self.behind or not self.is_proxy(request.remote or ""):
            return "http"
        proto = self._last(request, _PROTO) if not self._standard else self._nearest(request, "proto")
        return "https" if proto.lower() == "https" else "http"

    def host(self, request: web.BaseRequest) -> str:
        """The Host header that the client has sent to a trusted proxy; "" when the gateway's own Host header is it."""
        if not self.behind or not self.is_proxy(request.remote or ""):
            return ""
        return self._last(request, _HOST) if not self._standard else self._nearest(request, "host")

    def is_proxy(self, address: str) -> bool:
        """Whether an address is that of a trusted proxy; "" is that of a connection over a Unix socket."""
        if not address:
            return True
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._proxies)

    def _hops(self, request: web.BaseRequest) -> list[str]:
        if self._standard:
            return [hop.client for hop in read_forwarded(request.headers.getall(hdrs.FORWARDED, ()))]
        # A proxy may add a line of its own below that of the client.
        lines = request.headers.getall(hdrs.X_FORWARDED_FOR, ())
        return [each.strip() for each in ",".join(lines).split(",")] if lines else []

    def _last(self, request: web.BaseRequest, name: istr) -> str:
        lines = request.headers.getall(name, ())
        return lines[-1].rpartition(",")[2].strip() if lines else ""

    def _nearest(self, request: web.BaseRequest, key: str) -> str:
        hops = read_forwarded(request.headers.getall(hdrs.FORWARDED, ()))
        return str(getattr(hops[-1], key)) if hops else ""


def _parsed(address: str) -> Any:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _is_loopback(address: str) -> bool:
    # A connection over a Unix socket has no address; it comes from this machine.
    parsed = _parsed(address)
    return not address or (parsed is not None and parsed.is_loopback)


def _network(text: str) -> Any:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(
            f'gateway.proxies: "{text}" is neither an address nor a network; write "10.0.0.5" or "10.1.0.0/16"'
        ) from None
