"""The header fields of HTTP authentication: Authorization and WWW-Authenticate. Pure.

Owns: their syntax (RFC 9110, section 11; RFC 6750). Leaves to others: the credentials themselves (the methods).
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import hdrs

from mesh.errors import Unauthenticated
from mesh.gateway.request import Request

_AUTHORIZATION: Final = hdrs.AUTHORIZATION


def credentials(request: Request, scheme: str) -> str | None:
    """What follows a scheme in the Authorization field; None without the field, or for another scheme.

    Args:
        scheme: in small letters, such as "bearer".

    Raises:
        Unauthenticated: the field is there more than once. Which one counts would depend on who reads them.
    """
    headers = request.raw.headers
    told = headers.get(_AUTHORIZATION)
    if told is None:
        return None
    if len(headers.getall(_AUTHORIZATION)) > 1:
        raise Unauthenticated("the request has more than one Authorization field")
    name, _, rest = told.partition(" ")
    return rest.strip(" ") if name.lower() == scheme else None


def challenge(scheme: str, **parameters: str) -> str:
    """The value of a WWW-Authenticate field: `Bearer realm="mesh", error="invalid_token"`."""
    return f"{scheme} " + ", ".join(f'{name}="{_quoted(value)}"' for name, value in parameters.items())


def _quoted(value: Any) -> str:
    plain = "".join(each if " " <= each <= "~" else "?" for each in str(value))
    return plain.replace("\\", "\\\\").replace('"', '\\"')
