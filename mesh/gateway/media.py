"""What a Content-Type means to the gateway, and what an Accept asks of it.

Owns: telling JSON, MessagePack and everything else apart, and which form of a stream a client wants. Pure.
Leaves to others: whether a method takes that kind of body (binding), writing it (answers, sse).
"""

from __future__ import annotations

from typing import Final, Literal

Kind = Literal["json", "msgpack", "other"]
StreamForm = Literal["sse", "ndjson", "raw"]

JSON_TYPE: Final = "application/json"
MSGPACK_TYPE: Final = "application/msgpack"
BINARY_TYPE: Final = "application/octet-stream"
PROBLEM_TYPE: Final = "application/problem+json"
SSE_TYPE: Final = "text/event-stream"
NDJSON_TYPE: Final = "application/x-ndjson"

_MSGPACK: Final = frozenset({MSGPACK_TYPE, "application/x-msgpack", "application/vnd.msgpack"})
_NDJSON: Final = frozenset({NDJSON_TYPE, "application/ndjson", "application/jsonl", "application/x-jsonlines"})
#: What asks for a stream by name.
STREAM_TYPES: Final = _NDJSON | {SSE_TYPE}
_FORM: Final = "application/x-www-form-urlencoded"


def essence(value: str) -> str:
    """A media type without its parameters: `Text/HTML; charset=utf-8` → `text/html`."""
    return value.partition(";")[0].strip().lower()


def kind_of(content_type: str | None, *, from_page: bool = False) -> Kind:
    """How to read a body.

    Args:
        content_type: the header, or None when there is none: then it is JSON.
        from_page: the request carries an Origin, so a web page made it.
    """
    if content_type is None or content_type == JSON_TYPE:
        return "json"
    name = essence(content_type)
    if name == JSON_TYPE or name == "" or name == "text/json":
        return "json"
    if name.startswith("application/") and name.endswith("+json"):
        return "json"
    if name in _MSGPACK:
        return "msgpack"
    # `curl -d` says form when it sends JSON. A page of another site may send a form unasked, but not JSON:
    # reading its form as JSON would let any page call any method.
    if name == _FORM and not from_page:
        return "json"
    return "other"


def accepts(accept: str | None, names: frozenset[str]) -> bool:
    """Whether an Accept header asks for one of `names` by name, and not with q=0."""
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
    """How to write a stream.

    Server-Sent Events unless the client asks for NDJSON by name; the bytes as they are when the method yields bytes
    and either its route names their type or the client asks for them.
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
