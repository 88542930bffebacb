"""[access]: who may call what and who may run what, as it is written.

Owns: the shapes of rules, reading their tables, and errors that name the line.
Leaves to others: deciding (policy.access), lines of keys (config.places), the rest of the file (config.load).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from msgspec import Struct

#: (path of the key, what is wrong with it)
Tell = Callable[[tuple[str, ...], str], None]

_WANTED: Final = 'a name, a pattern like "get*", or an array of them'


class AccessRule(Struct, frozen=True, kw_only=True):
    """One [[access.allow]]: these callers may call these methods of these services. Each is a name or a pattern, in
    which * is any text and ? any character.

    Attributes:
        callers: names of keys; of a process without one (over ipc), its role: gateway, client, or its first service.
        methods: ("*",), which is all of them, when the table names none.
        place: where it was written, "mesh.toml:14".
    """

    callers: tuple[str, ...]
    services: tuple[str, ...]
    methods: tuple[str, ...] = ("*",)
    place: str = ""

    def __str__(self) -> str:
        callers, services = ", ".join(self.callers), ", ".join(self.services)
        return f"{callers} → {services}: {', '.join(self.methods)}"


class ServeRule(Struct, frozen=True, kw_only=True):
    """One [[access.serve]]: these processes may run these services. Names and patterns as in an AccessRule."""

    workers: tuple[str, ...]
    services: tuple[str, ...]
    place: str = ""

    def __str__(self) -> str:
        return f"{', '.join(self.workers)} runs {', '.join(self.services)}"


class AccessSettings(Struct, frozen=True, kw_only=True):
    """[access]: rules. Once it is declared, a call that none of them allows is denied.

    Attributes:
        serve: who may run what; everybody may run everything while it is empty.
    """

    allow: tuple[AccessRule, ...] = ()
    serve: tuple[ServeRule, ...] = ()


class _Key(NamedTuple):
    """A key of a rule: the attribute that holds it, and whether it must be there."""

    attribute: str
    required: bool = True


_ALLOW: Final = {"caller": _Key("callers"), "service": _Key("services"), "methods": _Key("methods", required=False)}
_SERVE: Final = {"worker": _Key("workers"), "service": _Key("services")}


def read_access(table: Any, tell: Tell, place: Callable[[tuple[str, ...]], str]) -> AccessSettings:
    """[access] as TOML gave it. What is wrong is told, each with its path; `place(path)` is where that stands."""
    if not isinstance(table, dict):
        tell((), "is a table: write [access], and a [[access.allow]] for each rule")
        return AccessSettings()
    for key in table:
        if key not in ("allow", "serve"):
            tell((key,), "no such key; [access] holds rules, each a table [[access.allow]] or [[access.serve]]")
    allow = [AccessRule(**read, place=place(at)) for at, read in _rules(table, "allow", _ALLOW, tell)]
    serve = [ServeRule(**read, place=place(at)) for at, read in _rules(table, "serve", _SERVE, tell)]
    return AccessSettings(allow=tuple(allow), serve=tuple(serve))


def _rules(
    table: dict[str, Any], kind: str, keys: Mapping[str, _Key], tell: Tell
) -> Iterator[tuple[tuple[str, ...], dict[str, tuple[str, ...]]]]:
    """Where each rule of a kind stands and what it says, of those that are right."""
    rules = table.get(kind, [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        tell((kind,), f"is one table for each rule: write [[access.{kind}]]")
        return
    for number, rule in enumerate(rules):
        at = (kind, str(number))
        read = _read_rule(rule, at, keys, tell)
        if read is not None:
            yield at, read


def _read_rule(
    rule: dict[str, Any], at: tuple[str, ...], keys: Mapping[str, _Key], tell: Tell
) -> dict[str, tuple[str, ...]] | None:
    wrong = False
    for key in rule:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            tell((*at, key), f"no such key; {f'did you mean {near[0]}?' if near else 'known are ' + ', '.join(keys)}")
            wrong = True
    read = {}
    for key, (attribute, required) in keys.items():
        if key not in rule:
            if required:
                tell(at, f"has no {key}: write {key} = {_WANTED}")
                wrong = True
            continue
        value = rule[key]
        patterns = [value] if isinstance(value, str) else value
        if (
            not isinstance(patterns, list)
            or not patterns
            or not all(isinstance(each, str) and each.strip() for each in patterns)
        ):
            tell((*at, key), f"is not {_WANTED}")
            wrong = True
        elif key == "methods" and any("." in each for each in patterns):
            tell((*at, key), 'holds a "."; write the method alone, its service has a key of its own')
            wrong = True
        else:
            read[attribute] = tuple(each.strip() for each in patterns)
    return None if wrong else read
