"""Converts a registered JSON Schema back to types, so that msgspec checks a body as the worker will.

Owns: the types, and the error message for a body. Pure.
Leaves to others: the body (jobs), the schemas (calls.signature).

A task's arguments are checked when it is deferred, perhaps long before any worker reads them, and the gateway has no
class of the service: only its schema. Properties that a schema does not express, such as the type of a map's keys, are
not checked.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Union

import msgspec

from mesh.errors import BadArguments
from mesh.gateway.binding import unknown_argument

_FORMATS: Final[dict[str, Any]] = {
    "date-time": datetime.datetime,
    "date": datetime.date,
    "time": datetime.time,
    "duration": datetime.timedelta,
    "uuid": uuid.UUID,
    "decimal": Decimal,
}
_NUMBERS: Final = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
}
_LENGTHS: Final[dict[str, dict[str, str]]] = {
    "string": {"minLength": "min_length", "maxLength": "max_length", "pattern": "pattern"},
    "array": {"minItems": "min_length", "maxItems": "max_length"},
    "object": {"minProperties": "min_length", "maxProperties": "max_length"},
}


class Arguments:
    """The arguments of one task, as its record describes them.

    Args:
        params: JSON Schema of an object with one property per parameter.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        properties = params.get("properties", {})
        self.names: tuple[str, ...] = tuple(properties)
        required = params.get("required", ())
        needed = [name for name in self.names if name in required]
        whole = {**params, "type": "object", "additionalProperties": False}
        array = {"type": "array", "prefixItems": list(properties.values()), "minItems": len(needed), "items": False}
        types = _Types(params)
        by_name, by_position = types.make(whole), types.make(array)
        self._json_named, self._json_array = msgspec.json.Decoder(by_name), msgspec.json.Decoder(by_position)
        self._pack_named, self._pack_array = msgspec.msgpack.Decoder(by_name), msgspec.msgpack.Decoder(by_position)

    def check_json(self, body: bytes) -> None:
        """Raises BadArguments: the body is not JSON, or not what the task takes; `details["path"]` says where."""
        self._check(body, self._json_array if body[:1] == b"[" else self._json_named, "JSON")

    def check_msgpack(self, body: bytes) -> None:
        """The same for MessagePack."""
        named = not body or body[0] >> 4 == 8 or body[0] in (0xDE, 0xDF)
        self._check(body or b"\x80", self._pack_named if named else self._pack_array, "MessagePack")

    def _check(self, body: bytes, decoder: Any, form: str) -> None:
        try:
            decoder.decode(body)
        except msgspec.ValidationError as exc:
            raise self._complaint(str(exc)) from None
        except (msgspec.DecodeError, RecursionError) as exc:
            raise BadArguments(f"body: is not {form} that can be read ({exc})", details={"path": "body"}) from None

    def _complaint(self, text: str) -> BadArguments:
        what, _, where = text.rpartition(" - at ")
        what = (what or where).replace("`", "")
        place = "body" + (where[where.find("`$") + 2 : -1] if what and "`$" in where else "")
        if found := re.fullmatch(r"body\[(\d+)\](.*)", place, re.DOTALL):
            number = int(found[1])
            place = f"body.{self.names[number]}{found[2]}" if number < len(self.names) else place
        if found := re.fullmatch(r"Object missing required field (\w+)", what):
            place, what = f"{place}.{found[1]}", "is missing"
        elif found := re.fullmatch(r"Object contains unknown field (.*)", what, re.DOTALL):
            if place == "body":
                return unknown_argument(f"body.{found[1][:100]}", found[1][:100], self.names)
            place, what = f"{place}.{found[1][:100]}", "is unknown"
        return BadArguments(f"{place[:200]}: {what[:300]}", details={"path": place[:200]})


class _Types:
    """The types of one schema.

    Args:
        root: contains the `$defs` of the references.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._definitions = root.get("$defs", {})
        self._open: set[str] = set()
        self._made: dict[str, Any] = {}

    def make(self, schema: Any) -> Any:
        """The type; Any where a schema has nothing to check, or types that msgspec cannot tell apart."""
        made = self._make(schema)
        try:
            msgspec.json.Decoder(made)
        except (TypeError, ValueError):
            return Any
        return made

    def _make(self, schema: Any) -> Any:
        if not isinstance(schema, Mapping):
            return Any
        if isinstance(reference := schema.get("$ref"), str):
            return self._referred(reference)
        if isinstance(union := schema.get("anyOf"), list):
            return self._union(union, schema.get("discriminator"))
        if isinstance(choices := schema.get("enum"), list):
            plain = choices and all(isinstance(choice, str | int | None) for choice in choices)
            return Literal[tuple(choices)] if plain else Any
        kind = schema.get("type")
        if kind == "string":
            return self._text(schema)
        if kind in ("integer", "number"):
            return _limited(int if kind == "integer" else float, schema, _NUMBERS)
        if kind == "boolean":
            return bool
        if kind == "null":
            return None
        if kind == "array":
            return self._array(schema)
        return self._object(schema) if kind == "object" else Any

    def _referred(self, reference: str) -> Any:
        if reference in self._made:
            return self._made[reference]
        if reference in self._open:
            return Any  # a recursive type: only its first level is checked
        self._open.add(reference)
        made = self.make(self._definitions.get(reference.removeprefix("#/$defs/")))
        self._open.discard(reference)
        self._made[reference] = made
        return made

    def _union(self, union: list[Any], discriminator: Any) -> Any:
        if isinstance(discriminator, Mapping):
            field, mapping = discriminator.get("propertyName", ""), discriminator.get("mapping", {})
            parts = [
                self._object(self._definitions.get(str(to).removeprefix("#/$defs/"), {}), (field, tag))
                for tag, to in mapping.items()
            ]
            others = [
                each for each in union if not (isinstance(each, Mapping) and each.get("$ref") in mapping.values())
            ]
            parts += [self.make(each) for each in others]
        else:
            parts = [self.make(each) for each in union]
        return Any if Any in parts or not parts else Union[tuple(parts)]  # noqa: UP007

    def _text(self, schema: Mapping[str, Any]) -> Any:
        if schema.get("contentEncoding") == "base64":
            return bytes
        made = _FORMATS.get(schema.get("format", ""), str)
        return _limited(str, schema, _LENGTHS["string"]) if made is str else made

    def _array(self, schema: Mapping[str, Any]) -> Any:
        first = schema.get("prefixItems")
        if not isinstance(first, list):
            return _limited(list[self.make(schema.get("items"))], schema, _LENGTHS["array"])  # type: ignore[misc]
        least = schema.get("minItems", 0)
        fields = [
            (f"f{index}", self.make(each)) if index < least else (f"f{index}", self.make(each), None)
            for index, each in enumerate(first)
        ]
        return msgspec.defstruct(
            "array",
            fields,
            array_like=True,
            forbid_unknown_fields=schema.get("items") is False or schema.get("maxItems") == len(first),
        )

    def _object(self, schema: Mapping[str, Any], tag: tuple[str, str] | None = None) -> Any:
        properties = schema.get("properties")
        if not isinstance(properties, Mapping):
            # In JSON the keys of a map are always text, whatever their type is in the service.
            return _limited(dict[Any, self.make(schema.get("additionalProperties"))], schema, _LENGTHS["object"])  # type: ignore[misc]
        required = schema.get("required", ())
        names = [name for name in properties if tag is None or name != tag[0]]
        fields = [
            (f"f{index}", self.make(properties[name]))
            if name in required
            else (f"f{index}", self.make(properties[name]), None)
            for index, name in enumerate(names)
        ]
        return msgspec.defstruct(
            "object",
            fields,
            kw_only=True,
            rename={f"f{index}": name for index, name in enumerate(names)},
            forbid_unknown_fields=schema.get("additionalProperties") is False,
            tag_field=tag[0] if tag else None,
            tag=tag[1] if tag else None,
        )


def _limited(made: Any, schema: Mapping[str, Any], limits: Mapping[str, str]) -> Any:
    given = {limits[name]: schema[name] for name in limits if name in schema}
    return Annotated[made, msgspec.Meta(**given)] if given else made
