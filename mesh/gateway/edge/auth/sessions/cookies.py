"""The cookies of a session: names, attributes, and reading them from a request.

Owns: the session cookie, which scripts cannot read, and the CSRF cookie, which the scripts of the page read.
Leaves to others: their values (token, csrf).

Over HTTPS the names have the prefix __Host-: a browser accepts such a cookie only with Secure, for this host alone and
from it alone, so that no neighbouring host and no plain HTTP can plant one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from aiohttp import hdrs

from mesh.config.edge_auth import is_loopback
from mesh.config.edge_sessions import SessionSettings
from mesh.errors import Unauthenticated
from mesh.gateway.request import RawRequest

#: The answer belongs to one user: no cache may keep it.
NO_STORE: Final = b"Cache-Control: no-store\r\n"
#: An answer to a request with a session depends on it.
VARY: Final = b"Vary: Cookie\r\n"
_SET: Final = re.compile(rb"(?im)^set-cookie:[ \t]*([^\r\n]*)")
_PORT: Final = re.compile(r":\d*$")


class Cookies:
    """The cookies of one gateway."""

    def __init__(self, settings: SessionSettings) -> None:
        self._secure = settings.secure
        self._name = settings.cookie
        self._same_site = settings.same_site.capitalize()
        names = (self._name, f"{self._name}_csrf")
        #: The names that no handler may set by itself, in lower case.
        self.reserved = frozenset(each.lower() for name in names for each in (name, f"__Host-{name}"))

    def is_secure(self, raw: RawRequest) -> bool:
        """Whether the cookies of this request's host are for HTTPS only."""
        if self._secure == "auto":
            return not _is_local(raw.headers.get(hdrs.HOST, ""))
        return self._secure == "always"

    def session_name(self, raw: RawRequest) -> str:
        """The name of the session cookie at this request's host."""
        return f"__Host-{self._name}" if self.is_secure(raw) else self._name

    def csrf_name(self, raw: RawRequest) -> str:
        """The name of the CSRF cookie at this request's host."""
        return f"{self.session_name(raw)}_csrf"

    def read(self, raw: RawRequest) -> str:
        """The value of the session cookie; "" when the request has none.

        Raises:
            Unauthenticated: there are several: a neighbouring host may have planted one.
        """
        name = self.session_name(raw)
        found: str | None = None
        for line in raw.headers.getall(hdrs.COOKIE, ()):
            if name not in line:
                continue
            for pair in line.split(";"):
                key, equals, value = pair.partition("=")
                if equals and key.strip(" \t") == name:
                    if found is not None:
                        raise Unauthenticated("the request has several session cookies; delete them and log in again")
                    found = value.strip(" \t")
        return found or ""

    def set(self, raw: RawRequest, token: str, csrf: str, max_age_s: float) -> bytes:
        """The header lines that set both cookies."""
        tail = f"; Max-Age={max(1, int(max_age_s))}{self._tail(raw)}"
        return (
            f"Set-Cookie: {self.session_name(raw)}={token}{tail}; HttpOnly\r\n"
            f"Set-Cookie: {self.csrf_name(raw)}={csrf}{tail}\r\n"
        ).encode() + NO_STORE

    def delete(self, raw: RawRequest) -> bytes:
        """The header lines that delete both cookies."""
        tail = f"; Max-Age=0{self._tail(raw)}"
        return (
            f"Set-Cookie: {self.session_name(raw)}={tail}; HttpOnly\r\nSet-Cookie: {self.csrf_name(raw)}={tail}\r\n"
        ).encode() + NO_STORE

    def _tail(self, raw: RawRequest) -> str:
        return f"; Path=/{'; Secure' if self.is_secure(raw) else ''}; SameSite={self._same_site}"

    def sets_reserved(self, lines: bytes) -> str:
        """The reserved name of a cookie that these header lines set; "" for none.

        Browsers ignore white space around a name, and may send a cookie without a name as if its value were the name.
        """
        for found in _SET.findall(lines):
            pair = found.split(b";")[0].decode("latin-1").strip(" \t=")
            name = str(pair.partition("=")[0].strip(" \t"))
            if name.lower() in self.reserved:
                return name
        return ""


@lru_cache(256)
def _is_local(host: str) -> bool:
    """Whether a Host header names this machine's loopback."""
    return is_loopback(_PORT.sub("", host).strip("[]").lower().removesuffix("."))
