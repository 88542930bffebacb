"""The authentication method "proxy": a reverse proxy authenticates callers, and names them in header fields.

Owns: reading these fields, and refusing them from everywhere else.
Leaves to others: which addresses are proxies (gateway.clients).

The address is that of the connection, which cannot be forged; X-Forwarded-For has no part in it. A request from any
other address that has one of the fields is refused wherever it leads: a handler might read the field itself.
"""

from __future__ import annotations

from typing import Final

from multidict import istr

from mesh.config.edge_auth import ProxySettings
from mesh.config.edge_auth_checks import require
from mesh.errors import Unauthenticated
from mesh.gateway.clients import Clients
from mesh.gateway.edge.auth.contract import Authenticator, Denied
from mesh.gateway.edge.identity import Identity
from mesh.gateway.front import Front
from mesh.gateway.request import Request

#: Separate scopes and roles in a header field.
_SEPARATORS: Final = str.maketrans(",", " ")


def make(front: Front) -> Authenticator | None:
    """The method; None when `auth.proxy.header` is not set.

    Raises:
        ConfigError: no proxy is trusted.
    """
    settings = front.settings
    proxy = settings.auth.proxy
    if not proxy.header:
        return None
    require(settings, "auth.proxy")
    return Authenticator(
        name="proxy",
        authenticate=Vouched(proxy, front.clients).authenticate,
        facts={"header": proxy.header},
    )


class Vouched:
    """Reads the header fields of trusted proxies."""

    def __init__(self, settings: ProxySettings, clients: Clients) -> None:
        self._clients = clients
        self._header = istr(settings.header)
        self._scopes, self._roles, self._tenant = (
            istr(name) if name else None for name in (settings.scopes, settings.roles, settings.tenant)
        )
        fields = (settings.header, settings.scopes, settings.roles, settings.tenant)
        #: The names in the form in which CGI and WSGI give them to programs: X_User is X-User there.
        self._guarded = frozenset(_plain(name) for name in fields if name)
        self._exact = frozenset(name.lower() for name in fields if name)

    async def authenticate(self, request: Request) -> Identity | None:
        """The identity that a proxy names; None when it names none.

        Raises:
            Denied: the request is not from a proxy, and has one of the fields; or it has one in another spelling.
            Unauthenticated: a field is there twice, or is not readable text.
        """
        trusted = self._clients.is_proxy(request.raw.remote or "")
        for name in request.raw.headers:
            lower = name.lower()
            if _plain(lower) in self._guarded and (not trusted or lower not in self._exact):
                raise Denied(f"{name[:64]}: only the proxies of gateway.proxies may send this header field")
        principal = self._one(request, self._header) if trusted else ""
        if not principal:
            return None
        return Identity(
            principal,
            "proxy",
            scopes=frozenset(self._one(request, self._scopes).translate(_SEPARATORS).split()),
            roles=frozenset(self._one(request, self._roles).translate(_SEPARATORS).split()),
            tenant=self._one(request, self._tenant),
        )

    @staticmethod
    def _one(request: Request, name: istr | None) -> str:
        if name is None:
            return ""
        values = request.raw.headers.getall(name, ())
        if len(values) > 1:
            # The second one may be the client's own, passed on by the proxy.
            raise Unauthenticated(f"the request has more than one {name}")
        return values[0].strip() if values else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
