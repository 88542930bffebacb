"""The status and the header fields that code sets for an HTTP answer: what is allowed, and how they travel.

Owns: the rules for names, values and statuses, the header fields that belong to the gateway, and the metadata of a
reply that carries them. Pure.
Leaves to others: the classes that users write (calls.http_response), writing the answer (gateway.reply).

Source: docs/wire.md, section 5.2; RFC 9110, sections 5.1 and 5.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

#: Metadata of a reply: the status in decimal, and the header fields as a JSON array of pairs.
STATUS: Final = "mesh.http.status"
HEADERS: Final = "mesh.http.headers"
#: What the gateway is to do with the client's login session; see protocol.http_session.
SESSION: Final = "mesh.http.session"

#: The most bytes of all header fields of one answer. Proxies commonly refuse more than 8 KiB.
MAX_HEADERS: Final = 8192

Fields = tuple[tuple[str, str], ...]
#: Header fields as users write them: a field with several lines has a list of values.
Headers = Mapping[str, str | Sequence[str]]

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
_VALUE: Final = re.compile(r"(?:[!-~](?:[ -~\t]*[!-~])?)?")

#: Fields that the gateway writes itself, and fields about one connection (RFC 9110, section 7.6.1), with the remedy.
_OWNED: Final = {
    **dict.fromkeys(
        ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        "it belongs to the connection, which the gateway manages",
    ),
    "proxy-authenticate": "it belongs to the connection, which the gateway manages",
    "proxy-authorization": "it belongs to the connection, which the gateway manages",
    "content-length": "the gateway sets it from the body",
    "date": "the gateway sets it",
    "server": "the gateway sets it",
    "traceparent": "the gateway sets it",
    "x-request-id": "the gateway returns the client's",
    "set-cookie": "pass the cookie in cookies=[…]",
}
_CORS: Final = "access-control-"


class Head(NamedTuple):
    """What code has set: the status (0: not set), the header fields, in order, and what is to happen to the session, as
    protocol.http_session encodes it ("": nothing)."""

    status: int = 0
    fields: Fields = ()
    session: str = ""


def is_token(name: str) -> bool:
    """Whether a text can be the name of a header field or of a cookie."""
    return _TOKEN.fullmatch(name) is not None


def check_status(status: int) -> None:
    """Check the status of an answer.

    Raises:
        ValueError: it is not one from 200 to 599.
    """
    if type(status) is not int or not 200 <= status <= 599:
        raise ValueError(f"status {status!r} is not a valid status of an answer (200 to 599)")


def check_field(name: str, value: str) -> None:
    """Check one header field that code outside of the gateway sets.

    Raises:
        ValueError: the name or the value is malformed, or the field belongs to the gateway. The text names the field.
    """
    if not isinstance(name, str) or not is_token(name):
        raise ValueError(f"{name!r:.80} is not a valid name of a header field")
    lower = name.lower()
    if lower in _OWNED:
        raise ValueError(f"the header field {name} cannot be set: {_OWNED[lower]}")
    if lower.startswith(_CORS):
        raise ValueError(f"the header field {name} cannot be set: list the origins in [gateway] origins")
    check_value(name, value)


def check_value(name: str, value: str) -> None:
    """Check the value of a header field.

    Raises:
        ValueError: it holds anything but printable ASCII, such as a line break, or begins or ends with a space.
    """
    if not isinstance(value, str):
        raise ValueError(f"the header field {name} is a str, not {type(value).__name__}: {value!r:.80}")
    if _VALUE.fullmatch(value) is None:
        raise ValueError(
            f"the header field {name} contains characters other than printable ASCII: {value!a:.80}; "
            "percent-encode other characters"
        )


def read_headers(headers: Headers) -> Fields:
    """The header fields of a mapping, checked.

    Raises:
        ValueError: see `check_field`; or all fields together are longer than MAX_HEADERS.
    """
    found: list[tuple[str, str]] = []
    for name, value in headers.items():
        for each in value if isinstance(value, list | tuple) else (value,):
            check_field(name, each)
            found.append((name, each))
    check_size(found)
    return tuple(found)


def check_size(fields: Iterable[tuple[str, str]]) -> None:
    """Raises:
    ValueError: the fields together are longer than MAX_HEADERS.
    """
    size = sum(len(name) + len(value) + 4 for name, value in fields)
    if size > MAX_HEADERS:
        raise ValueError(f"the header fields of the answer have {size} bytes; at most {MAX_HEADERS} are allowed")


def lines(fields: Iterable[tuple[str, str]]) -> bytes:
    """Checked fields as they are written, each line ended by CR LF."""
    return "".join(f"{name}: {value}\r\n" for name, value in fields).encode("ascii")


# --- on the wire --------------------------------------------------------------------------------


def to_meta(head: Head) -> dict[str, str] | None:
    """The metadata of the reply; None when nothing was set."""
    meta: dict[str, str] = {}
    if head.status:
        meta[STATUS] = str(head.status)
    if head.fields:
        meta[HEADERS] = msgspec.json.encode(head.fields).decode()
    if head.session:
        meta[SESSION] = head.session
    return meta or None


def from_meta(meta: Mapping[str, str]) -> Head:
    """What a reply's metadata says about the HTTP answer.

    Raises:
        ValueError: it says anything that `check_status` and `check_field` refuse. It comes from another process.
    """
    status = 0
    if told := meta.get(STATUS):
        if not told.isdecimal() or len(told) > 3:
            raise ValueError(f"the status {told[:20]!a} is not a number")
        status = int(told)
        check_status(status)
    fields: Fields = ()
    if listed := meta.get(HEADERS):
        try:
            fields = msgspec.json.decode(listed, type=Fields)
        except msgspec.DecodeError as exc:
            raise ValueError(f"the header fields cannot be read ({exc})") from exc
        for name, value in fields:
            if name.lower() == "set-cookie":
                check_value(name, value)
            else:
                check_field(name, value)
        check_size(fields)
    return Head(status, fields, meta.get(SESSION, ""))
