"""Tables with prefixes of addresses as keys: [gateway.static] and [gateway.proxy].

Owns: their syntax: `"/prefix" = VALUE`, where VALUE is the main value alone or a table of options.
Leaves to others: the options (one Struct for each table), and what the prefixes mean (gateway.mounts).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, get_type_hints

import msgspec

from mesh.config.values import Kind
from mesh.suggest import suggestion

_PREFIX: Final = re.compile(r"/|(?:/[A-Za-z0-9\-._~!$&'()*+,;=:@]+)+")


def options_of(table: type[msgspec.Struct]) -> dict[str, tuple[str, Kind]]:
    """The options of a table: the attribute and the kind of each, by key."""
    hints = get_type_hints(table, include_extras=True)
    return {item.encode_name: (item.name, hints[item.name].__metadata__[0]) for item in msgspec.structs.fields(table)}


def prefixes(table: type[msgspec.Struct], main: str, wanted: str) -> Kind:
    """The kind of a table of prefixes.

    Args:
        table: the options behind a prefix, annotated as settings are.
        main: the option that a value without a table stands for.
        wanted: what is allowed, in words, for errors.
    """
    entries = options_of(table)

    def read_one(prefix: str, value: Any) -> Any:
        if not _PREFIX.fullmatch(prefix) or any(part in (".", "..") for part in prefix.split("/")):
            raise ValueError(f'it has the key "{prefix}", which is not a prefix; write one like "/assets" or "/"')
        if isinstance(value, table):
            return value
        given = value if isinstance(value, Mapping) else {main: value}
        found = {}
        for key, each in given.items():
            if key not in entries:
                raise ValueError(f'it has no option "{key}" for "{prefix}"{suggestion(key, entries)}')
            attribute, kind = entries[key]
            try:
                found[attribute] = kind.read(each)
            except (ValueError, OverflowError) as exc:
                why = str(exc)
                more = f" ({why})" if why.startswith("it ") else ""
                raise ValueError(f'it has at "{prefix}" the option {key}, which is not {kind.wanted}{more}') from None
        try:
            return table(**found)
        except TypeError:
            raise ValueError(f'it lacks {main} for "{prefix}"') from None

    def read(value: Any) -> dict[str, Any]:
        if isinstance(value, str):  # in the environment: /=web/dist,/assets=web/assets
            pairs = [part.partition("=") for part in value.split(",") if part.strip()]
            value = {prefix.strip(): each.strip() for prefix, _, each in pairs}
        if not isinstance(value, Mapping):
            raise ValueError
        return {prefix: read_one(prefix, each) for prefix, each in value.items()}

    def show(value: Mapping[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for prefix, each in value.items():
            default = {item.name: item.default for item in msgspec.structs.fields(table)}
            options = {
                key: kind.show(getattr(each, attribute))
                for key, (attribute, kind) in entries.items()
                if key == main or getattr(each, attribute) != default[attribute]
            }
            shown[prefix] = options[main] if len(options) == 1 else options
        return shown

    return Kind(wanted, read, show)
