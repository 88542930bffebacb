"""Which pages of a gateway are public, and which only operators get.

Owns: the list of pages for operators, and the rule. Pure.
Leaves to others: enforcing it (gateway.listeners.admin), reporting it (`mesh doctor`).
"""

from __future__ import annotations

import ipaddress
from typing import Final

from mesh.config.settings import GatewaySettings, Settings

#: The pages of the gateway that declared routes do not need: metrics and the registry, the documentation, and access to
#: exposed methods and tasks by their names.
OPERATORS: Final = ("/metrics", "/mesh", "/docs", "/openapi.json", "/rpc", "/tasks", "/jobs")
#: In `gateway.public`: all of them.
EVERY: Final = "*"


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine only."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def is_open(gateway: GatewaySettings) -> bool:
    """Whether requests from elsewhere reach the public listener: directly, or through a proxy that connects to a Unix
    socket or speaks the PROXY protocol."""
    return gateway.unix is not None or gateway.proxy_protocol or not is_loopback(gateway.host)


def withheld(settings: Settings) -> frozenset[str]:
    """The prefixes of the pages that only the admin listener serves.

    Without an admin listener a page is served where `auth.mounts` requires a caller for it by name. `auth.default` is
    not enough: it lets in every user of the application, and few of them are operators.
    """
    gateway = settings.gateway
    if EVERY in gateway.public or not (is_open(gateway) or gateway.admin):
        return frozenset()
    hidden = frozenset(OPERATORS).difference(gateway.public)
    if gateway.admin:
        return hidden
    return hidden.difference(prefix for prefix, required in settings.auth.mounts.items() if required.user)
