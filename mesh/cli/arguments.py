"""Converts words on a command line to the arguments of a call.

Owns: `name=value`, positions, JSON values, `@file`, and using the method's schema to interpret a word.
Leaves to others: checking the arguments (the service does).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import msgspec

from mesh.calls.signature import encode_arguments
from mesh.protocol.messages import JSON, MSGPACK

_NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_KINDS: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    Decimal: "number",
    list: "array",
    dict: "object",
}


def read(words: Iterable[str], params: Mapping[str, Any] | None = None) -> tuple[list[Any], dict[str, Any]]:
    """(positional, named) arguments.

    A value that is JSON is read as JSON, anything else as text; where the schema requires text, `123` stays text.
    `@path` is the content of a file (`@-` is stdin): bytes where the schema requires bytes, else text or JSON. `@@…` is
    text that begins with @.

    Args:
        words: `ujun`, `name=ujun`, `tags=["a","b"]`, `image=@photo.jpg`.
        params: the method's JSON Schema of an object with one property per parameter, in order.

    Raises:
        click.UsageError: a file cannot be read, or a name is given twice.
    """
    properties: Mapping[str, Any] = (params or {}).get("properties", {})
    in_order = list(properties.values())
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for word in words:
        match = _NAMED.fullmatch(word)
        if match:
            name, text = match.groups()
            if name in named:
                raise click.UsageError(f"{name} is given twice")
            named[name] = value(text, properties.get(name))
        else:
            schema = in_order[len(positional)] if len(positional) < len(in_order) else None
            positional.append(value(word, schema))
    return positional, named


def encode(
    positional: list[Any], named: dict[str, Any], params: Mapping[str, Any] | None, target: str
) -> tuple[bytes, int]:
    """The body of a call and its encoding: JSON when a number needs more digits than a float has, else MessagePack.

    Raises:
        BadArguments: a value cannot be sent.
    """
    if not _is_exact((positional, named)):
        names = list((params or {}).get("properties", {}))
        if not named:
            return _JSON.encode(positional), JSON
        if len(positional) <= len(names):
            return _JSON.encode({**dict(zip(names, positional, strict=False)), **named}), JSON
    return encode_arguments(tuple(positional), named, target), MSGPACK


_JSON = msgspec.json.Encoder(decimal_format="number")


def exact_number(text: str) -> float | Decimal:
    """A JSON number with a fraction or an exponent: a float, or a Decimal when a float would lose digits."""
    number = float(text)
    return number if Decimal(repr(number)) == Decimal(text) else Decimal(text)


def _is_exact(value: Any) -> bool:
    """Whether MessagePack represents all numbers in the value exactly as written."""
    if isinstance(value, dict):
        return all(map(_is_exact, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_exact, value))
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return not isinstance(value, Decimal)


def value(text: str, schema: Mapping[str, Any] | None = None) -> Any:
    """The value of one word; `schema` is that of the parameter, None when it is unknown."""
    if text.startswith("@@"):
        return text[1:]
    if text.startswith("@"):
        return _content(text[1:], schema)
    if _wants_bytes(schema):
        return text.encode()
    return _json_or_text(text, schema)


def _json_or_text(text: str, schema: Mapping[str, Any] | None) -> Any:
    try:
        read = json.loads(text, parse_float=exact_number)
    except ValueError:
        return text
    kinds = _kinds(schema)
    if "string" in kinds and not isinstance(read, str):
        kind = "null" if read is None else _KINDS[type(read)]
        fits = kind in kinds or (kind == "integer" and "number" in kinds)
        return read if fits else text
    return read


def _content(path: str, schema: Mapping[str, Any] | None) -> Any:
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).expanduser().read_bytes()
    except OSError as exc:
        raise click.UsageError(f"{path} cannot be read: {exc.strerror}") from exc
    if _wants_bytes(schema):
        return raw
    try:
        return _json_or_text(raw.decode(), schema)
    except UnicodeDecodeError:
        return raw


def _wants_bytes(schema: Mapping[str, Any] | None) -> bool:
    return bool(schema) and any("contentEncoding" in each for each in _alternatives(schema or {}))


def _kinds(schema: Mapping[str, Any] | None) -> set[str]:
    found: set[str] = set()
    for each in _alternatives(schema or {}):
        kind = each.get("type")
        found |= {kind} if isinstance(kind, str) else set(kind or ())
        if all(isinstance(one, str) for one in each.get("enum", (0,))):
            found.add("string")
    return found


def _alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]


class Span(click.ParamType[float]):
    """Seconds: `2`, `0.5`, or with a unit, `250ms`, `1m`."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from mesh.config.values import read_duration

        if isinstance(value, int | float):
            return float(value)
        text = str(value)
        try:
            seconds = read_duration(f"{text}s" if text.replace(".", "", 1).isdigit() else text)
        except ValueError:
            seconds = 0.0
        if seconds <= 0:
            self.fail(f'{text!r} is not a duration like 2, "250ms" or "1m"', param, ctx)
        return seconds


def pairs(words: Iterable[str], option: str) -> dict[str, str]:
    """`a=b` words as a map.

    Raises:
        click.UsageError: one has no "=".
    """
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{option} {word!r}: write NAME=VALUE")
        found[name] = text
    return found
