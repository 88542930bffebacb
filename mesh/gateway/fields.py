"""Parameters of a method that come from header fields and cookies of the HTTP request.

Owns: reading and converting them, and adding them to a body of arguments, which can never set them itself. Pure.
Leaves to others: the other parameters (binding), converters (convert), who declares them (service.http_sources).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

import msgspec
from aiohttp import hdrs
from multidict import CIMultiDictProxy

from mesh.discovery.record import MethodRecord, TaskRecord
from mesh.errors import BadArguments
from mesh.gateway.convert import Convert, convert, converter, is_many
from mesh.protocol.messages import JSON, MSGPACK

_encode_json: Final = msgspec.json.Encoder().encode
_encode_msgpack: Final = msgspec.msgpack.Encoder().encode
_json_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_json_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_msgpack_map: Final = msgspec.msgpack.Decoder(dict[int | str, msgspec.Raw]).decode
_msgpack_array: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
#: The first bytes of the longer arrays of MessagePack.
_WIDE_ARRAYS: Final = frozenset({0xDC, 0xDD})


class _Field:
    """One parameter: where it is, and how its text is converted."""

    __slots__ = ("how", "many", "name", "parameter", "place", "required")

    def __init__(self, parameter: str, name: str, kind: str, record: MethodRecord | TaskRecord) -> None:
        schema = record.params.get("properties", {}).get(parameter, {})
        items = is_many(schema, record.params)
        self.parameter = parameter
        self.name = name
        self.place = f"{kind}.{name}"
        self.many = items is not None
        self.how: Convert | None = converter(schema if items is None else items, record.params)
        self.required = parameter in record.params.get("required", ())


class Fields:
    """The header fields and cookies of one method or task. False when there are none."""

    __slots__ = ("_cookies", "_headers", "_names", "_positional")

    def __init__(self, record: MethodRecord | TaskRecord) -> None:
        self._headers = [_Field(parameter, name, "header", record) for parameter, name in record.headers.items()]
        self._cookies = [_Field(parameter, name, "cookie", record) for parameter, name in record.cookies.items()]
        self._names = {field.parameter: field for field in (*self._headers, *self._cookies)}
        self._positional = [name for name in record.params.get("properties", {}) if name not in self._names]

    def __bool__(self) -> bool:
        return bool(self._names)

    def __contains__(self, parameter: str) -> bool:
        return parameter in self._names

    def place(self, parameter: str) -> str:
        """The place of a parameter in the request: `header.X-Tenant`; "" for other parameters."""
        field = self._names.get(parameter)
        return "" if field is None else field.place

    def read(self, headers: CIMultiDictProxy[str], arguments: dict[str, Any]) -> None:
        """Add the values to `arguments`; those that the request does not have are left out, for their defaults.

        Raises:
            BadArguments: a value is missing, doubled, not UTF-8 or not of its type; `details["path"]` says which.
        """
        for field in self._headers:
            self._add(field, list(headers.getall(field.name, ())), arguments)
        if self._cookies:
            cookies = read_cookies(headers)
            for field in self._cookies:
                found = cookies.get(field.name, [])
                # Of cookies with one name, browsers send the one with the longest path first (RFC 6265, section 5.4).
                self._add(field, found if field.many else found[:1], arguments)

    def _add(self, field: _Field, texts: list[str], arguments: dict[str, Any]) -> None:
        place = field.place
        if not texts:
            if field.required:
                raise BadArguments(f"{place}: is missing", details={"path": place})
            return
        for text in texts:
            try:
                text.encode()  # fails for bytes that were not UTF-8, which are surrogates here
            except UnicodeEncodeError:
                raise BadArguments(f"{place}: is not UTF-8", details={"path": place}) from None
        if field.many:
            if place.startswith("header."):
                texts = [each for text in texts for each in split_list(text)]
            arguments[field.parameter] = [convert(text, field.how, place) for text in texts]
            return
        if len(texts) > 1:
            raise BadArguments(f"{place}: is given more than once", details={"path": place})
        arguments[field.parameter] = convert(texts[0], field.how, place)

    def refuse(self, name: str) -> None:
        """Refuse an argument in a body that only a header field or cookie may set.

        Raises:
            BadArguments: `name` is such an argument.
        """
        field = self._names.get(name)
        if field is not None:
            kind, _, _ = field.place.partition(".")
            what = "header field" if kind == "header" else "cookie"
            raise BadArguments(
                f"body.{name}: is not read from the body; send the {what} {field.name}",
                details={"path": f"body.{name}"},
            )

    def merge(self, body: bytes, encoding: int, headers: CIMultiDictProxy[str]) -> bytes:
        """A body of arguments, by name or by position, with the values of this request added.

        Args:
            encoding: JSON or MSGPACK, also of the result.

        Raises:
            BadArguments: the body sets one of them itself, or cannot be read; or as for `read`.
        """
        named: dict[str, Any] = {}
        try:
            if encoding == JSON:
                text = body.lstrip(b" \t\r\n")
                given: Any = _json_array(text) if text[:1] == b"[" else _json_object(text or b"{}")
            elif body and (body[0] >> 4 == 9 or body[0] in _WIDE_ARRAYS):
                given = _msgpack_array(body)
            else:
                given = _msgpack_map(body or b"\x80")
        except (msgspec.DecodeError, RecursionError) as exc:
            _unreadable(exc, encoding)
        pairs: Any = enumerate(given) if isinstance(given, list) else given.items()
        for key, value in pairs:
            if isinstance(key, int):
                if not 0 <= key < len(self._positional):
                    raise BadArguments(
                        f"body[{key}]: there are at most {len(self._positional)} positional arguments",
                        details={"path": f"body[{key}]"},
                    )
                key = self._positional[key]
            self.refuse(key)
            if key in named:
                raise BadArguments(f"body.{key}: is given by position and by name", details={"path": f"body.{key}"})
            named[key] = value
        own: dict[str, Any] = {}
        self.read(headers, own)
        named |= own
        if encoding == JSON:
            return _encode_json(named)
        try:
            return _encode_msgpack(named)
        except OverflowError as exc:
            place = next(self.place(name) for name, value in own.items() if isinstance(value, int))
            raise BadArguments(f"{place}: the integer does not fit into 64 bits", details={"path": place}) from exc


def _unreadable(exc: Exception, encoding: int) -> NoReturn:
    if isinstance(exc, RecursionError):
        raise BadArguments("body: is nested too deeply", details={"path": "body"}) from exc
    if isinstance(exc, msgspec.ValidationError):
        raise BadArguments("body: must be an object or an array of arguments", details={"path": "body"}) from exc
    form = "MessagePack" if encoding == MSGPACK else "JSON"
    raise BadArguments(f"body: is not {form} ({exc})", details={"path": "body"}) from exc


def read_cookies(headers: CIMultiDictProxy[str]) -> Mapping[str, list[str]]:
    """The cookies of a request by name, in order. Malformed ones are skipped, as browsers and servers do.

    Source: RFC 6265, section 5.4; quotes around a value are removed.
    """
    found: dict[str, list[str]] = {}
    for line in headers.getall(hdrs.COOKIE, ()):
        for pair in line.split(";"):
            name, equals, value = pair.partition("=")
            name, value = name.strip(" \t"), value.strip(" \t")
            if not equals or not name:
                continue
            if len(value) >= 2 and value[0] == value[-1] == '"':
                value = value[1:-1]
            found.setdefault(name, []).append(value)
    return found


def split_list(text: str) -> list[str]:
    """The elements of a header field that is a list: separated by commas, which may stand in quoted strings.

    Source: RFC 9110, section 5.6.1. Empty elements are left out; the quotes stay.
    """
    if '"' not in text:
        return [each for part in text.split(",") if (each := part.strip(" \t"))]
    found: list[str] = []
    start = 0
    quoted = escaped = False
    for at, char in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            found.append(text[start:at])
            start = at + 1
    found.append(text[start:])
    return [each for part in found if (each := part.strip(" \t"))]
