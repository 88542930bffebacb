"""The content of a session cookie: who has logged in, when, and until when that holds.

Owns: its form, and the rules for its times. Pure.
Leaves to others: the signature (keys), the cookie around it (cookies), sessions that ended early (revocation).
"""

from __future__ import annotations

import secrets
from typing import Final

import msgspec

from mesh.calls.propagation import accept_name, accept_names
from mesh.errors import Unauthenticated
from mesh.gateway.edge.auth.sessions.keys import KeyRing
from mesh.gateway.edge.identity import Identity

#: Part of each signature: a change of the form below gets another number.
PURPOSE: Final = b"mesh session 1"
#: The scheme of identities that sessions establish.
SCHEME: Final = "session"
#: Browsers keep cookies of up to 4096 bytes, name and attributes included.
MAX_TOKEN: Final = 3800
#: How far the clock of another gateway may be ahead of this one.
SKEW_S: Final = 60.0
#: Verified tokens that are kept decoded; when there are more, all are dropped.
REMEMBERED: Final = 2048

_LENGTH: Final = 16


class Session(msgspec.Struct, array_like=True, frozen=True):
    """One session.

    Attributes:
        id: random; made at login, and the same until the session ends.
        began_at: when its principal logged in, wall clock.
        issued_at: when this cookie was made.
        expires_at: when the session ends although it is used.
    """

    id: bytes
    principal: str
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    tenant: str
    began_at: float
    issued_at: float
    expires_at: float

    def identity(self) -> Identity:
        """The caller of a request with this session."""
        return Identity(
            self.principal, SCHEME, frozenset(self.scopes), frozenset(self.roles), self.tenant, key=self.id.hex()
        )


class Expired(Unauthenticated):
    """The session has ended; log in again."""


_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(Session).decode


def new_id() -> bytes:
    """The id of a new session."""
    return secrets.token_bytes(_LENGTH)


class Tokens:
    """Signs sessions and reads them back.

    Args:
        idle_s: a session ends so long after its latest cookie was made.
    """

    def __init__(self, ring: KeyRing, idle_s: float) -> None:
        self._ring = ring
        self._idle_s = idle_s
        self._known: dict[str, Session] = {}

    def sign(self, session: Session) -> str:
        """The text of a session.

        Raises:
            ValueError: it is too long for a cookie.
        """
        text = self._ring.sign(_pack(session))
        if len(text) > MAX_TOKEN:
            raise ValueError(
                f"the session has {len(text)} bytes, and a cookie holds {MAX_TOKEN}: give the principal fewer or "
                "shorter roles and scopes"
            )
        return text

    def read(self, text: str, now: float) -> Session:
        """The session in a text.

        Args:
            now: wall clock.

        Raises:
            Expired: it has ended.
            Unauthenticated: no key has signed it.
        """
        session = self._known.get(text)
        if session is None:
            session = self._decode(text)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[text] = session
        # Written this way, NaN is refused, too.
        if not (now < session.expires_at and now < session.issued_at + self._idle_s):
            raise Expired("the session has expired; log in again")
        if not session.issued_at <= now + SKEW_S:
            raise Unauthenticated("the session begins in the future; the clocks of the gateways differ")
        return session

    def is_due(self, text: str, session: Session, now: float) -> bool:
        """Whether the cookie is to be made anew: half of the idle time has passed, or its key is an older one."""
        return now >= session.issued_at + self._idle_s / 2 or not self._ring.is_latest(text)

    def _decode(self, text: str) -> Session:
        content = self._ring.content(text) if len(text) <= MAX_TOKEN else None
        if content is None:
            raise Unauthenticated("the session cookie is not valid; log in again")
        try:
            session = _unpack(content)
        except msgspec.DecodeError:
            raise Unauthenticated("the session cookie cannot be read; log in again") from None
        if (
            len(session.id) != _LENGTH
            or not accept_name(session.principal)
            or accept_name(session.tenant) != session.tenant
            or not all(accept_names(name) for name in (*session.roles, *session.scopes))
        ):
            raise Unauthenticated("the session cookie cannot be read; log in again")
        return session
