"""Answers of handlers with a status, header fields and cookies of HTTP.

Owns: the classes that users write, and their checks.
Leaves to others: the rules for fields (protocol.http_head), sending them (handling), writing them (gateway.reply).

A caller from Python gets the body alone: status, fields and cookies are only for HTTP.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

from mesh.protocol import http_head
from mesh.protocol.http_head import Head, Headers

T = TypeVar("T")
SameSite = Literal["strict", "lax", "none"]

#: Statuses of answers without a body (RFC 9110, sections 15.3.5 and 15.4.5).
BODILESS: Final = frozenset({204, 205, 304})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_COOKIE_OCTETS: Final = frozenset(map(chr, range(0x21, 0x7F))) - set('",;\\')
_ATTRIBUTE: Final = frozenset(map(chr, range(0x20, 0x7F))) - {";"}


class SetCookie(msgspec.Struct, frozen=True, kw_only=True):
    """A cookie for the client to store: `http.SetCookie(name="session", value=token, max_age_s=3600)`.

    The defaults are the safe ones: scripts cannot read it, it is sent over HTTPS (and to localhost) only, and not with
    requests that other sites start, other than links.

    Args:
        name: letters, digits and the other characters of a token. `__Host-` and `__Secure-` names are checked.
        value: visible ASCII without quotes, commas, semicolons and backslashes; percent-encode or base64 other text.
        max_age_s: seconds until the client forgets it; 0 deletes it; None: at the end of the client's session.
        expires_at: the same as an instant, for old clients; it must have a time zone.
        path: the paths that it is sent with.
        domain: sent to this domain and those below it; "": to the host that set it only.
        secure: sent over HTTPS only.
        http_only: hidden from scripts.
        same_site: "strict", "lax", or "none", which needs `secure`.

    Raises:
        ValueError: an argument is malformed, or they contradict each other. The text names the cookie.
    """

    name: str
    value: str = ""
    max_age_s: int | None = None
    expires_at: datetime | None = None
    path: str = "/"
    domain: str = ""
    secure: bool = True
    http_only: bool = True
    same_site: SameSite = "lax"

    def __post_init__(self) -> None:
        name = self.name
        if not isinstance(name, str) or not http_head.is_token(name):
            raise ValueError(f"{name!r:.80} is not the name of a cookie")
        what = f'cookie "{name}"'
        if not isinstance(self.value, str) or not _COOKIE_OCTETS.issuperset(self.value):
            raise ValueError(
                f"{what}: the value must be visible ASCII without quotes, commas, semicolons and backslashes; "
                "encode it with percent-encoding or base64"
            )
        if self.max_age_s is not None and type(self.max_age_s) is not int:
            raise ValueError(f"{what}: max_age_s is a whole number of seconds, not {self.max_age_s!r:.40}")
        if self.expires_at is not None and (
            not isinstance(self.expires_at, datetime) or self.expires_at.tzinfo is None
        ):
            raise ValueError(f"{what}: expires_at is a datetime with a time zone, not {self.expires_at!r:.60}")
        if not isinstance(self.path, str) or not self.path.startswith("/") or not _ATTRIBUTE.issuperset(self.path):
            raise ValueError(f"{what}: {self.path!r:.80} is not a path")
        domain = self.domain
        if not isinstance(domain, str) or not all(
            part and part.isascii() and part.replace("-", "").isalnum() for part in domain.split(".") if domain
        ):
            raise ValueError(f'{what}: {domain!r:.80} is not a domain; write "shop.example", without a leading dot')
        if self.same_site not in ("strict", "lax", "none"):
            raise ValueError(f'{what}: same_site is "strict", "lax" or "none", not {self.same_site!r:.40}')
        if self.same_site == "none" and not self.secure:
            raise ValueError(f'{what}: same_site="none" needs secure=True; browsers drop it otherwise')
        if name.startswith(("__Secure-", "__Host-")) and not self.secure:
            raise ValueError(f"{what}: its prefix needs secure=True; browsers drop it otherwise")
        if name.startswith("__Host-") and (domain or self.path != "/"):
            raise ValueError(f'{what}: the prefix __Host- needs path="/" and no domain; browsers drop it otherwise')

    def header(self) -> str:
        """The value of its Set-Cookie field."""
        parts = [f"{self.name}={self.value}"]
        if self.max_age_s is not None:
            parts.append(f"Max-Age={self.max_age_s}")
        if self.expires_at is not None:
            parts.append(f"Expires={format_datetime(self.expires_at.astimezone(UTC), usegmt=True)}")
        parts.append(f"Path={self.path}")
        if self.domain:
            parts.append(f"Domain={self.domain}")
        if self.secure:
            parts.append("Secure")
        if self.http_only:
            parts.append("HttpOnly")
        parts.append(f"SameSite={self.same_site.capitalize()}")
        return "; ".join(parts)


def delete_cookie(name: str, *, path: str = "/", domain: str = "", secure: bool = True) -> SetCookie:
    """A cookie that makes the client forget one; `path` and `domain` must be those that it was set with."""
    return SetCookie(
        name=name,
        max_age_s=0,
        expires_at=datetime.fromtimestamp(0, UTC),
        path=path,
        domain=domain,
        secure=secure,
    )


class Response(Generic[T]):
    """An answer with a status, header fields and cookies: `return http.Response(order, status=201)`.

    A method that returns one is annotated `-> http.Response[Order]`, or `-> Order | http.Response[Order]` when it
    returns a plain value as well. Callers from Python get the body.

    Args:
        body: the answer; checked against the annotation, as every answer.
        status: 200 to 599; None: the status that the route declares. 204, 205 and 304 have no body, so that `body` is
            None. A redirect (301, 302, 303, 307, 308) has a Location.
        headers: header fields; several lines of one field are a list. Those that the gateway writes (Content-Length,
            Date, traceparent and others) are refused. Content-Type replaces the route's `produces`.
        cookies: to be set.

    Raises:
        ValueError: a part is malformed or not allowed; the text names it.
    """

    __slots__ = ("body", "head")

    def __init__(
        self,
        body: T,
        *,
        status: int | None = None,
        headers: Headers | None = None,
        cookies: Sequence[SetCookie] = (),
    ) -> None:
        if status is not None:
            status = int(status) if isinstance(status, int) else status  # an HTTPStatus is an int, too
            http_head.check_status(status)
        fields = list(http_head.read_headers(headers)) if headers else []
        fields += [("Set-Cookie", cookie.header()) for cookie in cookies]
        http_head.check_size(fields)
        if status in BODILESS and body is not None:
            raise ValueError(f"an answer with status {status} has no body; return None as its body")
        if status in _REDIRECTS and not any(name.lower() == "location" for name, _ in fields):
            raise ValueError(f'an answer with status {status} needs a Location; use http.redirect("/path")')
        self.body = body
        self.head = Head(status or 0, tuple(fields))

    def __repr__(self) -> str:
        return f"<Response {self.head.status or ''} {self.body!r:.100}>"

    @property
    def status(self) -> int | None:
        """The status; None: the one that the route declares."""
        return self.head.status or None

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The header fields, Set-Cookie among them, in order."""
        return list(self.head.fields)


def redirect(
    location: str, *, status: int = 303, headers: Headers | None = None, cookies: Sequence[SetCookie] = ()
) -> Response[None]:
    """An answer that leads the client to another address.

    Args:
        location: a path such as "/orders/7", or a whole URL; percent-encoded.
        status: 303 (fetch it with GET, the default), 301, 302, 307 or 308 (the same method again).

    Raises:
        ValueError: the status is not that of a redirect, or a part is malformed.
    """
    if status not in _REDIRECTS:
        raise ValueError(f"{status!r} is not the status of a redirect: 301, 302, 303, 307 or 308")
    others = {name: value for name, value in (headers or {}).items() if name.lower() != "location"}
    return Response(None, status=status, headers={**others, "Location": location}, cookies=cookies)


def unwrapped(hint: Any) -> tuple[Any, bool]:
    """The type of the body that an annotation promises, and whether a method with it may return a Response.

    `Response[Order]` and `Order | Response[Order]` promise an Order.
    """
    if _is_response(hint):
        return _body_of(hint), True
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    parts = typing.get_args(hint)
    if not any(_is_response(part) for part in parts):
        return hint, False
    bodies = tuple(_body_of(part) if _is_response(part) else part for part in parts)
    return typing.Union[bodies], True  # noqa: UP007  # the parts are values here


def _is_response(hint: Any) -> bool:
    return hint is Response or typing.get_origin(hint) is Response


def _body_of(hint: Any) -> Any:
    return (typing.get_args(hint) or (Any,))[0]
