"""The options of [gateway.proxy]: HTTP servers behind prefixes of the gateway.

Owns: the keys, their defaults, and the form of an address. Leaves to others: forwarding (gateway.forwarding).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from msgspec import Struct, field

from mesh.config.prefix_tables import prefixes
from mesh.config.values import DURATION, FLAG, SIZE, Kind, choice, whole

#: "http://host:port/base", "https://…", "http+unix:/run/app.sock".
_HTTP: Final = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?(?:/[!$&'()*+,\-./0-9:;=@A-Z_a-z~]*)?"
)
_UNIX: Final = re.compile(r"http\+unix:(?://)?(/[^\s?#]+)")
_TOKEN: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_PATH: Final = re.compile(r"/[!-~]*")


def is_address(text: str) -> bool:
    """Whether a text is the address of an HTTP server that requests can be forwarded to."""
    return _HTTP.fullmatch(text) is not None or _UNIX.fullmatch(text) is not None


def unix_path(address: str) -> str:
    """The path of a Unix socket's address; "" for other addresses."""
    found = _UNIX.fullmatch(address)
    return found[1] if found else ""


def _read_addresses(value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not found:
        raise ValueError
    for each in found:
        if not isinstance(each, str) or not is_address(each.strip()):
            raise ValueError(f"it names {each!r:.100}")
    return [each.strip().rstrip("/") for each in found]


def _read_header(value: Any) -> str:
    if not isinstance(value, str) or (value and _TOKEN.fullmatch(value) is None):
        raise ValueError
    return value


def _read_path(value: Any) -> str:
    if not isinstance(value, str) or (value and _PATH.fullmatch(value) is None):
        raise ValueError
    return value


ADDRESSES: Final = Kind(
    'an address like "http://127.0.0.1:9000" or "http+unix:/run/app.sock", or a list', _read_addresses
)
HEADER: Final = Kind("the name of a header field", _read_header)
PATH: Final = Kind('a path like "/health"', _read_path)

Hosts = Literal["client", "upstream"]
Auth = Literal["", "none", "user"]


class ProxySettings(Struct, frozen=True, kw_only=True):
    """What one prefix of [gateway.proxy] forwards to, and how."""

    to: Annotated[list[str], ADDRESSES, "the upstream servers"]
    strip: Annotated[bool, FLAG, "remove the prefix from the path, and send it as X-Forwarded-Prefix"] = False
    host: Annotated[Hosts, choice("client", "upstream"), "the Host field: the client's, or the upstream's own"] = (
        "client"
    )
    rewrite: Annotated[
        bool, FLAG, "rewrite Location, and the Domain and Path of cookies, to the gateway's address and prefix"
    ] = False
    auth: Annotated[Auth, choice("", "none", "user"), 'who may call, as `auth` of a route; "" takes the default'] = ""
    principal: Annotated[str, HEADER, "the header field that tells the upstream the authenticated caller"] = ""
    max_body_bytes: Annotated[int, SIZE, "the largest request body; gateway.max_body when absent"] = field(
        default=0, name="max_body"
    )
    connect_timeout_s: Annotated[float, DURATION, "how long connecting may take"] = field(
        default=2.0, name="connect_timeout"
    )
    timeout_s: Annotated[
        float, DURATION, "how long the upstream may take to begin its answer; gateway.timeout when absent"
    ] = field(default=0.0, name="timeout")
    idle_timeout_s: Annotated[float, DURATION, "the longest silence within an answer, and within a WebSocket"] = field(
        default=60.0, name="idle_timeout"
    )
    connections: Annotated[int, whole(1, 65_536), "concurrent requests of one gateway to each upstream"] = 256
    keep_alive_s: Annotated[float, DURATION, "how long an idle connection is kept; shorter than the upstream does"] = (
        field(default=4.0, name="keep_alive")
    )
    retries: Annotated[
        int, whole(0, 10), "further attempts of GET, HEAD and OPTIONS when the connection ended before the answer"
    ] = 1
    health: Annotated[str, PATH, "a path that a healthy upstream answers with a status below 400; none when absent"] = (
        ""
    )
    health_every_s: Annotated[float, DURATION, "the interval of these checks"] = field(default=2.0, name="health_every")


PROXIES: Final = prefixes(ProxySettings, "to", 'a table of prefixes like { "/legacy" = "http://127.0.0.1:9000" }')
