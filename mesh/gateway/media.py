"""Interprets Content-Type and Accept headers.

Owns: distinguishing JSON, MessagePack and other types, and choosing the form of a stream. Pure.
Leaves to others: whether a method takes that kind of body (binding), writing it (answers, sse).
"""

from __future__ import annotations

from typing import Final, Literal

from mesh.errors import UnsupportedMedia

#: "form": the types that an HTML form sends without a CORS preflight; "none": a body without a Content-Type.
Kind = Literal["json", "msgpack", "form", "none", "other"]
StreamForm = Literal["sse", "ndjson", "raw"]

JSON_TYPE: Final = "application/json"
MSGPACK_TYPE: Final = "application/msgpack"
BINARY_TYPE: Final = "application/octet-stream"
PROBLEM_TYPE: Final = "application/problem+json"
SSE_TYPE: Final = "text/event-stream"
NDJSON_TYPE: Final = "application/x-ndjson"

_MSGPACK: Final = frozenset({MSGPACK_TYPE, "application/x-msgpack", "application/vnd.msgpack"})
_NDJSON: Final = frozenset({NDJSON_TYPE, "application/ndjson", "application/jsonl", "application/x-jsonlines"})
#: Media types that request a stream by name.
STREAM_TYPES: Final = _NDJSON | {SSE_TYPE}
_JSON: Final = frozenset({JSON_TYPE, "text/json"})
URLENCODED_TYPE: Final = "application/x-www-form-urlencoded"
MULTIPART_TYPE: Final = "multipart/form-data"
_FORMS: Final = frozenset({URLENCODED_TYPE, MULTIPART_TYPE})
_AS_JSON: Final = "Content-Type: application/json (curl --json, or -H 'Content-Type: application/json' with -d)"


def essence(value: str) -> str:
    """A media type without its parameters: `Text/HTML; charset=utf-8` → `text/html`."""
    return value.partition(";")[0].strip().lower()


def kind_of(content_type: str | None) -> Kind:
    """The kind of a body, from its Content-Type header."""
    if content_type == JSON_TYPE:
        return "json"
    name = essence(content_type or "")
    if not name:
        return "none"
    if name in _JSON or (name.startswith("application/") and name.endswith("+json")):
        return "json"
    if name in _MSGPACK:
        return "msgpack"
    return "form" if name in _FORMS else "other"


def is_ndjson(content_type: str | None) -> bool:
    """Whether a body is one JSON value per line, by its Content-Type."""
    return essence(content_type or "") in _NDJSON


def check_body_kind(kind: Kind, *, binary: bool) -> None:
    """Reject a body of an unsupported type.

    A form is never read as JSON or as a file: any web page may send a form without a preflight, and its envelope is not
    the file.

    Args:
        binary: the unchanged body is a parameter of bytes; otherwise it must be JSON or MessagePack.

    Raises:
        UnsupportedMedia: the body's type is not accepted.
    """
    if kind == "form":
        wanted = "the bytes themselves, with their own Content-Type" if binary else f"JSON, with {_AS_JSON}"
        raise UnsupportedMedia(f"HTML forms are not accepted; send {wanted}")
    if kind not in ("json", "msgpack") and not binary:
        found = "has no Content-Type" if kind == "none" else "is neither JSON nor MessagePack"
        raise UnsupportedMedia(f"the body {found}; send JSON with {_AS_JSON}")


def accepts(accept: str | None, names: frozenset[str]) -> bool:
    """Whether an Accept header lists one of `names` explicitly, and not with q=0."""
    if not accept:
        return False
    for part in accept.split(","):
        if essence(part) in names and not part.replace(" ", "").endswith((";q=0", ";q=0.0")):
            return True
    return False


def wants_msgpack(accept: str | None) -> bool:
    """Whether the answer is to be MessagePack instead of JSON."""
    return accept is not None and "msgpack" in accept and accepts(accept, _MSGPACK)


def stream_form(accept: str | None, *, binary: bool, produces: str) -> StreamForm:
    """The form of a stream.

    Server-Sent Events unless the client requests NDJSON by name; the raw bytes when the method yields bytes and either
    its route declares their type or the client requests them.
    """
    if accepts(accept, _NDJSON):
        return "ndjson"
    if (
        binary
        and not accepts(accept, frozenset({SSE_TYPE}))
        and (produces or accepts(accept, frozenset({BINARY_TYPE})))
    ):
        return "raw"
    return "sse"
