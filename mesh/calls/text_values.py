"""Converts text from a path, a query string or a form to the type that a JSON Schema requires.

Owns: one converter per schema, created when a route is compiled. Pure.
Leaves to others: the source of the text and the name of its place (gateway.binding, gateway.fields, forms.fields),
ranges, patterns and formats (the worker, which knows the types themselves).
"""

from __future__ import annotations

import math
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from mesh.errors import BadArguments

#: Text in, value out. Raises ValueError; its message completes the sentence "query.width: …".
Convert = Callable[[str], Any]

# Long enough for 128 bits; int() of megabytes of digits would take minutes.
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,40}\Z")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\Z")
_TRUTH: Final = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}

# The order in which the types of a union are tried: stricter types first.
_STRICTNESS: Final = ("null", "boolean", "integer", "number", "array", "object", "string")


def resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow `$ref` into the root's `$defs`; an unknown reference gives the empty schema."""
    for _ in range(16):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        found = root.get("$defs", {}).get(reference.removeprefix("#/$defs/"))
        schema = found if isinstance(found, Mapping) else {}
    return {}


def is_bytes(schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    """Whether a schema describes `bytes` (or `bytes | None`)."""
    schema = resolve(schema, root)
    if schema.get("contentEncoding") == "base64":
        return True
    union = schema.get("anyOf", ())
    return any(is_bytes(part, root) for part in union) and all(
        is_bytes(part, root) or part.get("type") == "null" for part in union
    )


def is_many(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of the items when several values with one name form an array, else None."""
    schema = resolve(schema, root)
    for part in schema.get("anyOf", (schema,)):
        part = resolve(part, root)
        if part.get("type") == "array":
            items = part.get("items")
            return items if isinstance(items, Mapping) else {}
    return None


def converter(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Convert | None:
    """The converter for `schema`; None when the text is the value.

    Args:
        schema: of one parameter.
        root: the object with the `$defs` that `schema` refers to.
    """
    schema = resolve(schema, root)
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(choices, list):
        return _one_of(choices)
    if schema.get("contentEncoding") == "base64":
        return _bytes
    union = [resolve(part, root) for part in schema.get("anyOf", ())]
    if union:
        return _any_of(union, root)
    named = schema.get("type")
    return None if named is None else _BY_TYPE.get(named)


def convert(text: str, how: Convert | None, place: str) -> Any:
    """Apply a converter. Raises BadArguments naming `place`."""
    if how is None:
        return text
    try:
        return how(text)
    except ValueError as exc:
        raise BadArguments(f"{place}: {exc}", details={"path": place}) from exc


def _shown(text: str) -> str:
    return f'"{text}"' if len(text) <= 40 else f'"{text[:40]}…"'


def _integer(text: str) -> int:
    if not _INTEGER.match(text):
        raise ValueError(f"{_shown(text)} is not an integer")
    return int(text)


def _number(text: str) -> float:
    if not _NUMBER.match(text):
        raise ValueError(f"{_shown(text)} is not a number")
    value = float(text)
    if math.isinf(value):
        # In JSON it would become null, which is another value.
        raise ValueError(f"{_shown(text)} is beyond the range of a 64-bit float")
    return value


def _boolean(text: str) -> bool:
    value = _TRUTH.get(text.lower())
    if value is None:
        raise ValueError(f"{_shown(text)} is not a boolean; write true or false")
    return value


def _null(text: str) -> None:
    if text not in ("", "null"):
        raise ValueError(f"{_shown(text)} is not null")


def _bytes(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError as exc:
        raise ValueError(f"{_shown(text)} is not base64") from exc


def _json(wanted: type, name: str) -> Convert:
    def read(text: str) -> Any:
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as exc:
            raise ValueError(f"{_shown(text)} is not JSON ({exc})") from exc
        if not isinstance(value, wanted):
            raise ValueError(f"{_shown(text)} is not {name}")
        return value

    return read


_BY_TYPE: Final[dict[str, Convert | None]] = {
    "string": None,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "null": _null,
    "array": _json(list, "a JSON array"),
    "object": _json(dict, "a JSON object"),
}


def _one_of(choices: list[Any]) -> Convert:
    by_text = {
        choice if isinstance(choice, str) else msgspec.json.encode(choice).decode(): choice for choice in choices
    }

    def read(text: str) -> Any:
        if text not in by_text:
            raise ValueError(f"{_shown(text)} is not one of {', '.join(by_text)}")
        return by_text[text]

    return read


def _any_of(union: list[Mapping[str, Any]], root: Mapping[str, Any]) -> Convert | None:
    if any(part.get("type") == "string" and "contentEncoding" not in part for part in union):
        # With a string in the union, an empty value is the empty string; a client omits the name to send null.
        union = [part for part in union if part.get("type") != "null"]
        if len(union) == 1:
            return converter(union[0], root)
    order = sorted(union, key=lambda part: _STRICTNESS.index(part.get("type", "string")))
    tries = [converter(part, root) for part in order]

    def read(text: str) -> Any:
        reason: ValueError | None = None
        for attempt in tries:
            if attempt is None:
                return text
            try:
                return attempt(text)
            except ValueError as exc:
                reason = exc
        raise reason or ValueError(f"{_shown(text)} fits none of the types")

    return read
