"""[auth.sessions]: login sessions of browsers.

Owns: the keys, their defaults, and what makes no sense together.
Leaves to others: secrets themselves, and using all of this (gateway.edge.auth.sessions). See docs/sessions.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final

from msgspec import Struct, field

from mesh.config.secrets import HIDDEN, Secret
from mesh.config.values import DURATION, DURATION_OR_ZERO, TEXTS, Kind, choice

#: The most keys: each is tried by its id, so that this is not about speed. More than a few were not removed in time.
MOST_KEYS: Final = 8
_COOKIE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _read_keys(value: Any) -> list[Secret]:
    texts = value.split(",") if isinstance(value, str) else value
    if (
        not isinstance(texts, list)
        or not all(isinstance(each, str | Secret) for each in texts)
        or len(texts) > MOST_KEYS
    ):
        raise ValueError
    return [each if isinstance(each, Secret) else Secret(each) for each in texts if each]


def _read_cookie(value: Any) -> str:
    if not isinstance(value, str) or _COOKIE.fullmatch(value.strip()) is None:
        raise ValueError
    return value.strip()


KEYS: Final = Kind(
    f'a list of at most {MOST_KEYS} references to secrets, such as ["env:SESSION_KEY"]',
    _read_keys,
    lambda keys: [HIDDEN] * len(keys),
    hidden=True,
)
COOKIE: Final = Kind("a name of letters, digits, _ and -, without the prefix __Host-", _read_cookie)


class SessionSettings(Struct, frozen=True, kw_only=True):
    """[auth.sessions]: login sessions of browsers, in a signed cookie. Handlers begin them with `http.login(…)`."""

    keys: Annotated[
        list[Secret],
        KEYS,
        "the secrets that sign cookies: the first signs, all verify. Each has at least 32 characters, such as the "
        "output of `openssl rand -hex 32`. Setting them switches sessions on",
    ] = []
    login: Annotated[
        list[str],
        TEXTS,
        'the methods that may begin sessions with their answers, such as "users.login"; * is any text',
    ] = []
    idle_s: Annotated[float, DURATION, "a session without requests ends after so long"] = field(
        default=1800.0, name="idle"
    )
    absolute_s: Annotated[float, DURATION, "every session ends so long after its login"] = field(
        default=43200.0, name="absolute"
    )
    cookie: Annotated[str, COOKIE, "the name of the cookie; over HTTPS __Host- is put before it"] = "session"
    secure: Annotated[
        str,
        choice("auto", "always", "never"),
        "whether cookies are for HTTPS only: auto is always, but not on localhost; never is for networks without TLS",
    ] = "auto"
    same_site: Annotated[
        str,
        choice("lax", "strict"),
        "strict: following a link from another site begins without the session",
    ] = "lax"
    revocation: Annotated[
        str,
        choice("state", "none"),
        "state: ended sessions are noted in the state of the mesh, and refused by all gateways; none: logging out only "
        "deletes the cookie",
    ] = "state"
    check_s: Annotated[
        float, DURATION_OR_ZERO, "how long a gateway uses what it has read about a session: how late it sees its end"
    ] = field(default=5.0, name="check")
    grace_s: Annotated[
        float, DURATION_OR_ZERO, "how long a session that was read before is believed while the state cannot be read"
    ] = field(default=60.0, name="grace")

    @property
    def is_on(self) -> bool:
        """Whether sessions are accepted. A list of login methods alone counts, so that the keys are asked for."""
        return bool(self.keys or self.login)


def session_problems(sessions: SessionSettings) -> Iterator[tuple[str, str]]:
    """(the key, what is wrong with it), for each problem."""
    if not sessions.is_on:
        return
    if not sessions.keys:
        yield "auth.sessions.keys", 'is missing: a secret that signs cookies, such as ["env:SESSION_KEY"]'
    if not sessions.login:
        yield "auth.sessions.login", 'is missing: the methods that may begin sessions, such as ["users.login"]'
    if sessions.absolute_s < sessions.idle_s:
        yield "auth.sessions.absolute", "is shorter than auth.sessions.idle, which would never apply"
    if sessions.idle_s < 10 or sessions.check_s > sessions.idle_s:
        yield "auth.sessions.idle", "is shorter than 10 s or than auth.sessions.check"
