"""Converts an HTTP request to the body of a call.

Owns: the mapping of parts of a request to arguments, computed once per route, and the encoding of the call's body,
done once per request. Pure: text and bytes in, bytes out. For an invalid field, `details["path"]` contains its place in
the request (`query.width`, `path.name`, `body.user.email`).
Leaves to others: reading the body from the socket (server), checking types in depth (the worker).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy

from mesh.discovery.record import MethodRecord, RouteRecord
from mesh.errors import BadArguments, MeshError
from mesh.gateway.convert import Convert, convert, converter, is_bytes, is_many
from mesh.gateway.fields import Fields
from mesh.gateway.media import Kind, check_body_kind
from mesh.gateway.query import read_pairs
from mesh.protocol.messages import JSON, MSGPACK, RAW
from mesh.suggest import suggest

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_WHITESPACE: Final = b" \t\r\n"

Call = tuple[bytes, int]
NO_HEADERS: Final[CIMultiDictProxy[str]] = CIMultiDictProxy(CIMultiDict())


class _Text:
    """A parameter that arrives as text, from the path or the query."""

    __slots__ = ("how", "many", "name", "place", "required")

    def __init__(self, name: str, place: str, method: MethodRecord, *, query: bool) -> None:
        schema = _properties(method).get(name, {})
        items = is_many(schema, method.params) if query else None
        self.name = name
        self.place = place
        self.many = items is not None
        self.how: Convert | None = converter(schema if items is None else items, method.params)
        self.required = name in method.params.get("required", ())


class Binding:
    """Converts the requests of one route to calls."""

    __slots__ = (
        "_bytes",
        "_elsewhere",
        "_fields",
        "_forms",
        "_only",
        "_path",
        "_plain",
        "_query",
        "_required",
        "_whole",
        "_whole_required",
        "reads_body",
    )

    def __init__(self, route: RouteRecord, method: MethodRecord) -> None:
        sources = route.sources
        self._elsewhere = Fields(method)
        required = method.params.get("required", ())
        self._path = [_Text(name, f"path.{name}", method, query=False) for name in _path_names(route.path)]
        self._query = {
            name: _Text(name, f"query.{name}", method, query=True)
            for name, source in sources.items()
            if source == "query"
        }
        self._fields = tuple(name for name, source in sources.items() if source == "field")
        self._required = tuple(name for name in self._fields if name in required)
        whole = [name for name, source in sources.items() if source == "body"]
        self._whole = whole[0] if whole else ""
        self._whole_required = self._whole in required
        self._bytes = bool(whole) and is_bytes(_properties(method).get(whole[0], {}), method.params)
        self._forms = route.forms
        # When a body of bytes is the only parameter of the method, it is passed on unchanged.
        self._only = self._bytes and len(_properties(method)) == 1
        self.reads_body = bool(whole or self._fields)
        # Fast path: only path parameters, which stay text.
        self._plain = (
            tuple(text.name for text in self._path)
            if not (self._query or self._elsewhere or self.reads_body) and all(text.how is None for text in self._path)
            else None
        )

    def bind(
        self,
        values: list[str],
        query: str,
        body: bytes = b"",
        kind: Kind = "json",
        headers: CIMultiDictProxy[str] = NO_HEADERS,
    ) -> Call:
        """The body of the call and its encoding.

        Args:
            values: of the path parameters, decoded, in order.
            query: the raw query string.
            body: the whole request body.
            kind: what the Content-Type says the body is.
            headers: the header fields of the request.

        Raises:
            BadArguments: a value is missing, doubled, unknown or not of its type; `details["path"]` says which.
            UnsupportedMedia: the body is neither JSON nor what the method takes.
        """
        if self._plain is not None:
            return _encode_json(dict(zip(self._plain, values, strict=True))), JSON
        arguments: dict[str, Any] = {}
        for text, value in zip(self._path, values, strict=True):
            arguments[text.name] = convert(value, text.how, text.place)
        if self._query:
            read_query(query, self._query, arguments)
        if self._elsewhere:
            self._elsewhere.read(headers, arguments)
        if self._bytes:
            if body and not self._forms:
                check_body_kind(kind, binary=True)
            if self._only:
                return body, RAW
            # An empty body omits the parameter only if it is optional; the worker knows the default.
            if body or self._whole_required:
                arguments[self._whole] = body
            return _pack(arguments, self), MSGPACK
        if self.reads_body:
            if kind == "msgpack":
                self._read_msgpack(body, arguments)
                return _pack(arguments, self), MSGPACK
            if kind != "json" and body:
                check_body_kind(kind, binary=False)
            self._read_json(body, arguments)
        return _encode_json(arguments), JSON

    def _read_json(self, body: bytes, arguments: dict[str, Any]) -> None:
        if self._whole:
            if not body.strip(_WHITESPACE):
                if not self._whole_required:
                    return
                raise BadArguments("body: is missing; send JSON", details={"path": "body"})
            # Decode it although it is passed on unchanged: bytes that are not a single JSON value could add other
            # arguments.
            try:
                arguments[self._whole] = _decode_raw(body)
            except msgspec.DecodeError as exc:
                raise _not_json(exc) from exc
            return
        fields: Mapping[str, Any] = {}
        if body.strip(_WHITESPACE):
            try:
                fields = _decode_fields(body)
            except msgspec.ValidationError as exc:
                raise BadArguments("body: must be a JSON object", details={"path": "body"}) from exc
            except msgspec.DecodeError as exc:
                raise _not_json(exc) from exc
        self._take(fields, arguments)

    def _read_msgpack(self, body: bytes, arguments: dict[str, Any]) -> None:
        try:
            value = msgspec.msgpack.decode(body)
        except msgspec.DecodeError as exc:
            raise BadArguments(f"body: is not MessagePack ({exc})", details={"path": "body"}) from exc
        except RecursionError as exc:
            raise BadArguments("body: is nested too deeply", details={"path": "body"}) from exc
        if self._whole:
            arguments[self._whole] = value
        elif isinstance(value, dict):
            self._take(value, arguments)
        else:
            raise BadArguments("body: must be a map", details={"path": "body"})

    def _take(self, fields: Mapping[str, Any], arguments: dict[str, Any]) -> None:
        for name, value in fields.items():
            if name not in self._fields:
                self._elsewhere.refuse(name)
                raise unknown_argument(f"body.{name}", str(name), self._fields)
            arguments[name] = value
        for name in self._required:
            if name not in fields:
                raise BadArguments(f"body.{name}: is missing", details={"path": f"body.{name}"})

    def place(self, path: str) -> str:
        """The place in the request of the worker's `$.width`: `query.width`."""
        name, rest = _first_step(path)
        if name == self._whole and name:
            return f"body{rest}"
        for text in (*self._path, *self._query.values()):
            if text.name == name:
                return text.place + rest
        if place := self._elsewhere.place(name):
            return place + rest
        return f"body.{name}{rest}" if name in self._fields else path


class RpcBinding:
    """Converts a `POST /rpc/{service}/{method}` to a call."""

    __slots__ = ("_bytes", "_elsewhere", "_only", "_query")
    reads_body = True

    def __init__(self, method: MethodRecord) -> None:
        self._elsewhere = Fields(method)
        properties = _properties(method)
        own = [name for name in properties if name not in self._elsewhere]
        binary = [name for name in own if is_bytes(properties[name], method.params)]
        self._bytes = binary[0] if len(binary) == 1 else ""
        self._only = bool(self._bytes) and len(properties) == 1
        self._query = {name: _Text(name, f"query.{name}", method, query=True) for name in own if name != self._bytes}

    def bind(self, query: str, body: bytes, kind: Kind, headers: CIMultiDictProxy[str] = NO_HEADERS) -> Call:
        """The body of the call and its encoding.

        JSON is passed on unchanged, unless the method reads header fields or cookies; no body means no arguments. A
        method with one `bytes` parameter also accepts a body of any other type as that parameter, with the other
        parameters in the query string.

        Raises:
            BadArguments: the body is not an object or array, or a query value is invalid; `details["path"]` names it.
            UnsupportedMedia: the body is neither JSON nor what the method takes.
        """
        if kind == "json":
            start = body.lstrip(_WHITESPACE)[:1]
            if start == b"{" or start == b"[":
                return self._merged(body, JSON, headers)
            if start:
                raise BadArguments(
                    "body: must be a JSON object of named arguments, or an array of positional ones",
                    details={"path": "body"},
                )
            return self._merged(b"{}", JSON, headers)
        if kind == "msgpack":
            return self._merged(body or b"\x80", MSGPACK, headers)
        if not body and (kind != "other" or not self._bytes):
            return self._merged(b"{}", JSON, headers)
        check_body_kind(kind, binary=bool(self._bytes))
        if self._only:
            return body, RAW
        arguments: dict[str, Any] = {}
        read_query(query, self._query, arguments)
        if self._elsewhere:
            self._elsewhere.read(headers, arguments)
        arguments[self._bytes] = body
        return _pack(arguments, self), MSGPACK

    def _merged(self, body: bytes, encoding: int, headers: CIMultiDictProxy[str]) -> Call:
        return (self._elsewhere.merge(body, encoding, headers) if self._elsewhere else body), encoding

    def place(self, path: str) -> str:
        """The place in the request of the worker's `$.width`: `body.width`."""
        if self._elsewhere:
            name, rest = _first_step(path)
            if place := self._elsewhere.place(name):
                return place + rest
        return f"body{path[1:]}" if path.startswith("$") else path


def _pack(arguments: dict[str, Any], binding: Binding | RpcBinding) -> bytes:
    """The arguments as MessagePack.

    Raises:
        BadArguments: an integer has more than 64 bits, which MessagePack cannot hold (JSON can).
    """
    try:
        return _encode_msgpack(arguments)
    except OverflowError:
        for name, value in arguments.items():
            try:
                _encode_msgpack(value)
            except OverflowError as exc:
                text = binding._query.get(name)
                place = text.place if text is not None else binding.place(f"$.{name}")
                raise BadArguments(f"{place}: the integer does not fit into 64 bits", details={"path": place}) from exc
        raise


def read_query(query: str, wanted: Mapping[str, _Text], arguments: dict[str, Any]) -> None:
    """Add the values of a query string to `arguments`; names that are not in `wanted` are ignored.

    Raises:
        BadArguments: a value is missing, doubled or not of its type, or the string is not UTF-8.
    """
    for name, value in read_pairs(query):
        text = wanted.get(name)
        if text is None:
            continue
        if text.many:
            arguments.setdefault(name, []).append(convert(value, text.how, text.place))
        elif name in arguments:
            raise BadArguments(f"{text.place}: is given more than once", details={"path": text.place})
        else:
            arguments[name] = convert(value, text.how, text.place)
    for name, text in wanted.items():
        if text.required and name not in arguments:
            raise BadArguments(f"{text.place}: is missing", details={"path": text.place})


def relocate(error: MeshError, binding: Binding | RpcBinding) -> None:
    """Change `details["path"]` of a worker's BadArguments to the place in the request."""
    path = error.details.get("path")
    if isinstance(path, str) and path.startswith("$"):
        error.details["path"] = binding.place(path)


def unknown_argument(place: str, name: str, known: tuple[str, ...]) -> BadArguments:
    """The error for an unknown parameter name, with the most similar known name."""
    remedy = suggest(name, known, f"known are {', '.join(known)}" if known else "it takes no arguments")
    return BadArguments(f"{place}: is unknown; {remedy}", details={"path": place})


def _not_json(exc: msgspec.DecodeError) -> BadArguments:
    return BadArguments(f"body: is not JSON ({exc})", details={"path": "body"})


def _properties(method: MethodRecord) -> Mapping[str, Any]:
    found = method.params.get("properties", {})
    return found if isinstance(found, Mapping) else {}


def _path_names(path: str) -> list[str]:
    return [
        part[1:-1].removesuffix("...")
        for part in path.split("/")
        if len(part) > 2 and part[0] == "{" and part[-1] == "}"
    ]


def _first_step(path: str) -> tuple[str, str]:
    """`$.user.name[0]` → ("user", ".name[0]")."""
    inner = path.removeprefix("$.")
    ends = [at for at in (inner.find("."), inner.find("[")) if at >= 0]
    end = min(ends, default=len(inner))
    return inner[:end], inner[end:]
