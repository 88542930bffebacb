"""Checks and adds the part of the OpenAPI document that a mount of another package has.

Owns: what a part may contain, and the errors that name what is wrong. Pure.
Leaves to others: operations of services (openapi), which mounts there are (mounts.registry).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from mesh.errors import ConfigError
from mesh.suggest import suggest

_KEYS: Final = ("paths", "components", "tags")
_OPERATIONS: Final = frozenset({"get", "head", "post", "put", "patch", "delete", "options", "trace"})
_ITEM_KEYS: Final = _OPERATIONS | {"summary", "description", "parameters", "servers"}
_REF: Final = "#/components/"


class BadPart(ConfigError):
    """The OpenAPI part of a mount cannot be added to the document; the message names the place."""

    code = "bad_openapi"


def add_part(
    part: Mapping[str, Any],
    prefix: str,
    paths: dict[str, dict[str, Any]],
    components: dict[str, dict[str, Any]],
    tags: dict[str, str],
    ids: set[str],
) -> None:
    """Check a part as a whole, then add it. Nothing is added when it is wrong.

    Args:
        prefix: of the mount; paths of the part must be below it.
        paths, components, tags, ids: of the document.

    Raises:
        BadPart: it is not what OpenAPI allows, or contradicts what the document has.
    """
    where = f'mount "{prefix}": openapi'
    _mapping(part, where)
    for key in part:
        if key not in _KEYS:
            raise BadPart(f"{where}: {key!r} is unknown; {suggest(str(key), _KEYS, 'known are ' + ', '.join(_KEYS))}")
    try:
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(part))
    except (TypeError, ValueError, RecursionError) as exc:
        raise BadPart(f"{where}: it cannot be encoded as JSON ({exc})") from exc
    own_paths = _mapping(plain.get("paths", {}), f"{where}.paths")
    own_ids = _check_paths(own_paths, prefix, f"{where}.paths", ids)
    own_components = _mapping(plain.get("components", {}), f"{where}.components")
    for kind, named in own_components.items():
        for name, value in _mapping(named, f"{where}.components.{kind}").items():
            if components.get(kind, {}).get(name, value) != value:
                raise BadPart(
                    f"{where}.components.{kind}.{name}: the document already has another one of this name; rename it"
                )
    for reference in _references(plain):
        kind, _, name = reference.removeprefix(_REF).partition("/")
        if not reference.startswith(_REF) or not (
            name in own_components.get(kind, {}) or name in components.get(kind, {})
        ):
            raise BadPart(f"{where}: the reference {reference!r:.200} does not exist")
    own_tags = _read_tags(plain.get("tags", []), f"{where}.tags")
    paths.update(own_paths)
    for kind, named in own_components.items():
        components.setdefault(kind, {}).update(named)
    for name, doc in own_tags.items():
        tags.setdefault(name, doc)
    ids.update(own_ids)


def _check_paths(paths: Mapping[str, Any], prefix: str, where: str, ids: set[str]) -> set[str]:
    own: set[str] = set()
    for path, item in paths.items():
        if path != prefix and not path.startswith(prefix + "/"):
            raise BadPart(f'{where}: "{path}" is not below {prefix}; write full paths')
        for key, operation in _mapping(item, f'{where}."{path}"').items():
            if key not in _ITEM_KEYS:
                raise BadPart(f'{where}."{path}": {key!r} is not an HTTP method in lower case, such as "get"')
            if key not in _OPERATIONS:
                continue
            place = f'{where}."{path}".{key}'
            if not _mapping(_mapping(operation, place).get("responses", {}), f"{place}.responses"):
                raise BadPart(f'{place}: it has no responses; add {{"200": {{"description": "…"}}}}')
            for status, response in operation["responses"].items():
                if not {"description", "$ref"} & set(_mapping(response, f"{place}.responses.{status}")):
                    raise BadPart(f"{place}.responses.{status}: it has no description")
            id = operation.setdefault("operationId", f"{prefix[1:].replace('/', '.')}.{key}{path[len(prefix) :]}")
            if not isinstance(id, str) or id in ids or id in own:
                raise BadPart(f"{place}: the operationId {id!r:.100} is not text, or is not unique")
            own.add(id)
            operation.setdefault("tags", [prefix[1:]])
    return own


def _read_tags(tags: Any, where: str) -> dict[str, str]:
    if not isinstance(tags, list):
        raise BadPart(f"{where}: it must be a list of objects with name and description, not {tags!r:.80}")
    found: dict[str, str] = {}
    for tag in tags:
        name = _mapping(tag, where).get("name")
        doc = tag.get("description", "")
        if not isinstance(name, str) or not isinstance(doc, str):
            raise BadPart(f"{where}: {tag!r:.80} has no name, or its name or description is not text")
        found[name] = doc
    return found


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str):
            yield reference
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadPart(f"{where}: it must be an object, not {value!r:.80}")
    return value
