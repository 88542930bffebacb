"""The address of the client behind a connection, also behind a trusted reverse proxy.

Owns: `gateway.proxies`, and reading their X-Forwarded-For. Pure.
Leaves to others: limits by address (connections), the log (request_log).
"""

from __future__ import annotations

import ipaddress
from typing import Any

from aiohttp import hdrs, web

from mesh.errors import ConfigError

#: The number of addresses for which the result of `is_exempt` is cached.
MOST_KNOWN = 4096


class Clients:
    """Addresses of clients.

    Args:
        proxies: addresses and networks of trusted proxies, such as "10.0.0.5" and "10.1.0.0/16". Their X-Forwarded-For
            is trusted, and the limit per client does not apply to their connections.

    Raises:
        ConfigError: one of them is neither an address nor a network.
    """

    def __init__(self, proxies: list[str]) -> None:
        self._proxies = [_network(text) for text in proxies]
        self._exempt: dict[str, bool] = {}

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
        address = request.remote or "-"
        if self._proxies and hdrs.X_FORWARDED_FOR in request.headers and self.is_proxy(address):
            # The nearest proxy appends its entry last; earlier entries may be forged by the client.
            for told in reversed(request.headers[hdrs.X_FORWARDED_FOR].split(",")):
                if _parsed(told.strip()) is None:
                    break
                address = told.strip()
                if not self.is_proxy(address):
                    break
        return address

    def is_proxy(self, address: str) -> bool:
        """Whether an address is one of `gateway.proxies`."""
        if not self._proxies:
            return False
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._proxies)


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
