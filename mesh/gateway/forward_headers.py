"""Header fields of forwarded requests and answers.

Owns: which fields end at the gateway, and those that it adds. Pure.
Leaves to others: sending them (forwarding), which proxies are trusted (clients).

Sources: RFC 9110, sections 7.6.1 and 7.6.3; RFC 7239; W3C Trace Context.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from multidict import CIMultiDict, CIMultiDictProxy

from mesh.errors import BadRequest

#: Fields about one connection (RFC 9110, section 7.6.1), and those that the gateway makes anew from the message itself.
_HOP: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
#: Fields that tell an upstream about the client. They are removed under every spelling that CGI and WSGI cannot tell
#: apart: X_Forwarded_For and X-Forwarded-For are one variable there.
_ABOUT_CLIENT: Final = frozenset(
    {
        "forwarded",
        "host",
        "traceparent",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-proto",
        "x-forwarded-server",
        "x-real-ip",
        "x-request-id",
        "x-request-timeout",
    }
)
#: Fields of answers that the gateway writes itself, or that are about another server.
_OWN: Final = frozenset({"alt-svc", "date", "server", "traceparent", "x-request-id"})
#: Fields that may occur several times, so that the gateway's own do not replace the upstream's.
_LISTS: Final = frozenset({b"vary", b"set-cookie", b"link", b"server-timing"})

#: aiohttp's client is lenient about what servers send; what reaches clients is not.
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NODE: Final = re.compile(r"[A-Za-z0-9.-]+")


class Facts(NamedTuple):
    """What the gateway knows about a request, for its upstream.

    Attributes:
        host: the Host field to send.
        peer: the address of the other end of the connection; "" when it has none.
        trusted: the peer is a proxy of `gateway.proxies`: what it says about its client is passed on.
        secure: the connection uses TLS.
        asked_host: the Host field as received.
        prefix: the prefix that was removed from the path; "" when none was.
        traceparent: of the span of this hop.
        request_id: X-Request-Id.
        timeout_ms: the time that is left of the client's X-Request-Timeout; None when it named none.
        principal: name and value of the field with the authenticated caller; the name is "" when it is not sent.
    """

    host: str
    peer: str
    trusted: bool
    secure: bool
    asked_host: str
    prefix: str
    traceparent: str
    request_id: str
    timeout_ms: int | None = None
    principal: tuple[str, str] = ("", "")


def listed(values: Iterable[str]) -> frozenset[str]:
    """The names in Connection fields, in lower case."""
    return frozenset(name.strip().lower() for value in values for name in value.split(","))


def for_upstream(headers: CIMultiDictProxy[str], facts: Facts) -> CIMultiDict[str]:
    """The header fields of a forwarded request.

    Raises:
        BadRequest: a value is not UTF-8.
    """
    hop = _HOP | listed(headers.getall("Connection", ()))
    principal = facts.principal[0].lower()
    sent: CIMultiDict[str] = CIMultiDict()
    sent["Host"] = facts.host
    for name, value in headers.items():
        lower = name.lower()
        if lower in hop:
            continue
        plain = lower.replace("_", "-")
        if plain in _ABOUT_CLIENT or plain == principal or (plain != lower and plain in hop):
            continue
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise BadRequest(
                    f"the header field {name[:80]} is not UTF-8", details={"path": f"header.{name[:80]}"}
                ) from None
        sent.add(name, value)
    _add_forwarded(sent, headers, facts)
    sent["traceparent"] = facts.traceparent
    if "traceparent" not in headers:
        # A tracestate without a traceparent belongs to no trace.
        sent.popall("tracestate", None)
    sent["X-Request-Id"] = facts.request_id
    if facts.timeout_ms is not None:
        sent["X-Request-Timeout"] = f"{facts.timeout_ms}ms"
    if facts.prefix:
        sent["X-Forwarded-Prefix"] = facts.prefix
    if facts.principal[1]:
        sent[facts.principal[0]] = facts.principal[1]
    return sent


def _add_forwarded(sent: CIMultiDict[str], headers: CIMultiDictProxy[str], facts: Facts) -> None:
    def told(name: str) -> str:
        return ",".join(headers.getall(name, ())) if facts.trusted else ""

    peer = facts.peer or "unknown"
    proto = "https" if facts.secure else "http"
    earlier = told("X-Forwarded-For")
    sent["X-Forwarded-For"] = f"{earlier}, {peer}" if earlier else peer
    sent["X-Forwarded-Proto"] = told("X-Forwarded-Proto") or proto
    if host := told("X-Forwarded-Host") or facts.asked_host:
        sent["X-Forwarded-Host"] = host
    node = f"for={_quoted(f'[{peer}]' if ':' in peer else peer)};proto={proto}"
    if facts.asked_host:
        node += f";host={_quoted(facts.asked_host)}"
    earlier = told("Forwarded")
    sent["Forwarded"] = f"{earlier}, {node}" if earlier else node


def _quoted(value: str) -> str:
    return value if _NODE.fullmatch(value) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def own_names(lines: bytes) -> frozenset[bytes]:
    """The names of the fields in header lines, in lower case, without those that may occur several times."""
    return frozenset(line.partition(b":")[0].lower() for line in lines.split(b"\r\n") if line) - _LISTS


def for_client(raw_headers: Iterable[tuple[bytes, bytes]], own: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """The header fields of an upstream's answer that reach the client.

    Args:
        own: names of fields that the gateway writes itself, in lower case.
    """
    fields = tuple(raw_headers)
    hop = _HOP | listed(value.decode("latin-1") for name, value in fields if name.lower() == b"connection")
    dropped = hop | _OWN
    found = []
    for name, value in fields:
        lower = name.lower()
        if lower.decode("latin-1") in dropped or lower in own:
            continue
        if _NAME.fullmatch(name) is None or _CONTROL.search(value) is not None:
            continue
        found.append((name, value))
    return found


def lines_of(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Fields as they are written, each line ended by CR LF."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


# --- rewriting ----------------------------------------------------------------------------------


def rewrite_location(value: bytes, base: str, prefix: str) -> bytes:
    """A Location below the upstream's address, as one below the gateway's prefix; another one unchanged.

    Args:
        base: the address of the upstream, "http://127.0.0.1:9000".
        prefix: what was removed from the path of the request; "" when nothing was.
    """
    text = value.decode("latin-1")
    if text == base or text.startswith((f"{base}/", f"{base}?", f"{base}#")):
        rest = text[len(base) :]
        return f"{prefix}{rest if rest.startswith('/') else '/' + rest}".encode("latin-1")
    if prefix and text.startswith("/") and not text.startswith("//"):
        return f"{prefix}{text}".encode("latin-1")
    return value


def rewrite_cookie(value: bytes, prefix: str) -> bytes:
    """A Set-Cookie for the gateway's own host, with its path below the prefix."""
    parts: list[bytes] = []
    for part in value.split(b";"):
        name, _, path = part.partition(b"=")
        attribute = name.strip().lower()
        if parts and attribute == b"domain":
            continue
        if parts and attribute == b"path" and prefix and path.strip().startswith(b"/"):
            rest = path.strip()
            part = b" Path=" + prefix.encode() + (b"" if rest == b"/" else rest)
        parts.append(part)
    return b";".join(parts)
