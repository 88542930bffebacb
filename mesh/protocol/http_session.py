"""What a handler asks the gateway to do with the login session of its client: begin one, end one, or end all of a user.

Owns: the two requests, their limits, and how they travel in the metadata of a reply. Pure.
Leaves to others: the functions that users call (calls.http_session), whether the handler may ask for this, cookies and
signatures (gateway.edge.auth.sessions).

Source: docs/wire.md, section 5.2.
"""

from __future__ import annotations

from typing import Final

import msgspec

#: The longest request, in bytes of JSON. A cookie has at most 4096 bytes.
MAX_REQUEST: Final = 8192


class Login(msgspec.Struct, tag="login", tag_field="do", omit_defaults=True, frozen=True):
    """Begin a session for this principal.

    Attributes:
        max_age_s: the session ends after so many seconds at the latest; 0: when `auth.sessions.absolute` says.
    """

    principal: str
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    tenant: str = ""
    max_age_s: int = 0


class Logout(msgspec.Struct, tag="logout", tag_field="do", omit_defaults=True, frozen=True):
    """End the session of the request.

    Attributes:
        everywhere: end all sessions of its principal.
        principal: end all sessions of this principal instead, and that of the request only if it is one of them.
    """

    everywhere: bool = False
    principal: str = ""


Request = Login | Logout

_decode: Final = msgspec.json.Decoder(Request).decode


def encode(request: Request) -> str:
    """The value of the metadata."""
    return msgspec.json.encode(request).decode()


def decode(text: str) -> Request:
    """The request in received metadata.

    Raises:
        ValueError: it is not one, or it is too long.
    """
    if len(text) > MAX_REQUEST:
        raise ValueError(f"the request about the session has {len(text)} characters; at most {MAX_REQUEST} are allowed")
    try:
        return _decode(text)
    except msgspec.DecodeError as exc:
        raise ValueError(f"the request about the session cannot be read ({exc})") from exc
