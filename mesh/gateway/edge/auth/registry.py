"""The authentication methods, and the order in which they are asked.

Owns: the list. A new method is a module and a line here. The first method that finds its credential decides: a request
with a wrong token is not tried as another caller.
Leaves to others: the methods (one module each), the concern (concern).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mesh.gateway.edge.auth import api_key_method, basic_method, certificate, proxy_method
from mesh.gateway.edge.auth.contract import Authenticator
from mesh.gateway.edge.auth.jwt import method as jwt
from mesh.gateway.edge.auth.sessions import method as sessions
from mesh.gateway.front import Front

#: Makes a method from the settings; None when they do not switch it on.
Make = Callable[[Front], Authenticator | None]

#: A proxy that vouches for its callers comes first: it removes credentials that it has used. Credentials that a client
#: attaches to one request come before cookies, which a browser attaches to all of them.
AUTHENTICATORS: Final[tuple[Make, ...]] = (
    proxy_method.make,
    jwt.make,
    api_key_method.make,
    basic_method.make,
    sessions.make,
    certificate.make,
)


def authenticators(front: Front) -> list[Authenticator]:
    """The methods that the settings switch on, in order.

    Raises:
        ConfigError: a setting is wrong; the message names it.
    """
    return [found for make in AUTHENTICATORS if (found := make(front)) is not None]
