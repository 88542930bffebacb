"""[access]: the rules about who may call, defer, publish, subscribe, read, write, lock, schedule, run and administer.

Owns: the types of rules, reading their tables, and errors that name the line.
Leaves to others: what a rule for principals or roles may contain (config.personal_rules), authorization (policy.access,
engines.authorization), the lines of keys (config.places), the rest of the file (config.load).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from msgspec import Struct

from mesh.config.personal_rules import check_personal
from mesh.suggest import suggest

#: (path of the key, what is wrong with it)
Tell = Callable[[tuple[str, ...], str], None]

#: The role of the `mesh` commands, and the name of their key.
OPERATOR: Final = "operator"

#: The role of gateways, which authenticate users.
GATEWAY: Final = "gateway"

_WANTED: Final = 'a name, a pattern like "get*", or an array of them'
_TOPICS: Final = 'a topic, a pattern like "order.*" or "order.#", or an array of them'


class AccessRule(Struct, frozen=True, kw_only=True):
    """One [[access.allow]]: what these callers may do. Each entry is a name or a pattern, in which * is any text and ?
    any character; the entries of `publish` and `subscribe` are topic patterns.

    Attributes:
        callers: names of keys; for a process without a key (over ipc) its role: gateway, client, operator, or its first
            service.
        principals, roles: the rule applies only to work on behalf of one of these principals, and of one that has one
            of these roles; empty for all work of the callers. They count only from callers in AccessSettings.asserting.
        services, methods: methods that they may call, and tasks that they may defer. `methods` is ("*",), all methods,
            when the table has none.
        tasks: "service.task" that they may defer, in addition to the tasks of `services`.
        publish, subscribe: topics of durable events.
        reads, writes: namespaces of state.
        locks, schedules: names of locks and schedules.
        place: where the rule is written, "mesh.toml:14".
    """

    callers: tuple[str, ...]
    principals: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("*",)
    tasks: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()
    place: str = ""

    def __str__(self) -> str:
        parts = [f"{', '.join(self.services)}: {', '.join(self.methods)}"] if self.services else []
        named = {
            "tasks": self.tasks,
            "events.publish": self.publish,
            "events.subscribe": self.subscribe,
            "state.read": self.reads,
            "state.write": self.writes,
            "locks": self.locks,
            "schedules": self.schedules,
        }
        parts += [f"{key} {', '.join(patterns)}" for key, patterns in named.items() if patterns]
        users = {"principals": self.principals, "roles": self.roles}
        conditions = "".join(f" for {key} {', '.join(names)}" for key, names in users.items() if names)
        return f"{', '.join(self.callers)}{conditions} → {'; '.join(parts)}"

    @property
    def personal(self) -> bool:
        """Whether the rule depends on the principal of the work."""
        return bool(self.principals or self.roles)


class ServeRule(Struct, frozen=True, kw_only=True):
    """One [[access.serve]]: these processes may run these services. Names and patterns as in an AccessRule."""

    workers: tuple[str, ...]
    services: tuple[str, ...]
    place: str = ""

    def __str__(self) -> str:
        return f"{', '.join(self.workers)} runs {', '.join(self.services)}"


class AccessSettings(Struct, frozen=True, kw_only=True):
    """[access]: the rules. When [access] is declared, everything that no rule allows is denied.

    Attributes:
        allow: which callers may do what.
        serve: which processes may run which services. While it is empty, hubs let every process run every service, and
            the store gives the tasks of a service to the process that is named after it.
        operators: callers that may do everything, such as the `mesh` commands.
        asserting: callers that may assert a principal and its roles; `assert` in the file. From all others they are
            not verified, and no rule for principals or roles applies.
    """

    allow: tuple[AccessRule, ...] = ()
    serve: tuple[ServeRule, ...] = ()
    operators: tuple[str, ...] = (OPERATOR,)
    asserting: tuple[str, ...] = (GATEWAY,)


class _Key(NamedTuple):
    """A key of a rule.

    Attributes:
        attribute: the attribute of the rule that gets the value; "" for a key with `parts`.
        required: the key must be present.
        parts: for a key with a table as its value: key in that table -> attribute of the rule.
        array: a key with parts may also be an array, which then applies to all its parts.
        topics: the patterns are topic patterns.
    """

    attribute: str = ""
    required: bool = False
    parts: Mapping[str, str] = {}
    array: bool = True
    topics: bool = False


_ALLOW: Final = {
    "caller": _Key("callers", required=True),
    "principals": _Key("principals"),
    "roles": _Key("roles"),
    "service": _Key("services"),
    "methods": _Key("methods"),
    "tasks": _Key("tasks"),
    "events": _Key(parts={"publish": "publish", "subscribe": "subscribe"}, array=False, topics=True),
    "state": _Key(parts={"read": "reads", "write": "writes"}),
    "locks": _Key("locks"),
    "schedules": _Key("schedules"),
}
#: Keys that grant something; a rule needs at least one of them.
_GRANTS: Final = ("service", "tasks", "events", "state", "locks", "schedules")
_SERVE: Final = {"worker": _Key("workers", required=True), "service": _Key("services", required=True)}


def read_access(table: Any, tell: Tell, place: Callable[[tuple[str, ...]], str]) -> AccessSettings:
    """Read the table [access] of the parsed TOML.

    Args:
        tell: called with the path of each wrong key, and what is wrong with it.
        place: returns the file and line of a path.
    """
    if not isinstance(table, dict):
        tell((), "must be a table: write [access], and a [[access.allow]] for each rule")
        return AccessSettings()
    for key in table:
        if key not in ("allow", "serve", "operators", "assert"):
            tell(
                (key,),
                "no such key; [access] holds rules, each a table [[access.allow]] or [[access.serve]], and "
                "operators = [...] and assert = [...]",
            )
    operators = _callers(table, "operators", (OPERATOR,), tell)
    asserting = _callers(table, "assert", (GATEWAY,), tell)
    allow = []
    for at, read in _rules(table, "allow", _ALLOW, tell):
        rule = AccessRule(**read, place=place(at))
        if not rule.personal or check_personal(table["allow"][int(at[1])], at, rule.callers, asserting, tell):
            allow.append(rule)
    serve = [ServeRule(**read, place=place(at)) for at, read in _rules(table, "serve", _SERVE, tell)]
    return AccessSettings(allow=tuple(allow), serve=tuple(serve), operators=operators, asserting=asserting)


def _callers(table: dict[str, Any], name: str, default: tuple[str, ...], tell: Tell) -> tuple[str, ...]:
    """The callers that a key of [access] lists. An empty array is valid, and means none."""
    if name not in table:
        return default
    return () if table[name] == [] else _patterns(table[name], (name,), tell) or ()


def _rules(
    table: dict[str, Any], kind: str, keys: Mapping[str, _Key], tell: Tell
) -> Iterator[tuple[tuple[str, ...], dict[str, tuple[str, ...]]]]:
    """The path and the attributes of each valid rule of a kind."""
    rules = table.get(kind, [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        tell((kind,), f"must be an array of tables: write [[access.{kind}]]")
        return
    for number, rule in enumerate(rules):
        at = (kind, str(number))
        read = _read_rule(rule, at, keys, tell)
        if read is not None:
            yield at, read


def _read_rule(
    rule: dict[str, Any], at: tuple[str, ...], keys: Mapping[str, _Key], tell: Tell
) -> dict[str, tuple[str, ...]] | None:
    wrong = _unknown(rule, at, keys, tell)
    read: dict[str, tuple[str, ...]] = {}
    for name, key in keys.items():
        if name not in rule:
            if key.required:
                tell(at, f"has no {name}: write {name} = {_WANTED}")
                wrong = True
            continue
        found = _read_key(name, key, rule[name], (*at, name), tell)
        if found is None:
            wrong = True
        else:
            read |= found
    if keys is _ALLOW:
        if not any(name in rule for name in _GRANTS):
            tell(at, f"has no service: write service = {_WANTED}, or one of {', '.join(_GRANTS[1:])}")
            wrong = True
        elif "methods" in rule and "service" not in rule:
            tell((*at, "methods"), "needs a service: add service = ...")
            wrong = True
    return None if wrong else read


def _unknown(table: dict[str, Any], at: tuple[str, ...], keys: Mapping[str, Any], tell: Tell) -> bool:
    """Whether the table has unknown keys; reports each of them."""
    wrong = False
    for key in table:
        if key not in keys:
            tell((*at, key), f"no such key; {suggest(key, keys, 'known are ' + ', '.join(keys))}")
            wrong = True
    return wrong


def _read_key(name: str, key: _Key, value: Any, at: tuple[str, ...], tell: Tell) -> dict[str, tuple[str, ...]] | None:
    """attribute → patterns; None, after reporting it, when the value is wrong."""
    if not key.parts:
        patterns = _patterns(value, at, tell)
        if patterns is not None and name == "methods" and any("." in each for each in patterns):
            tell(at, 'contains a "."; write the method only, `service` names the service')
            return None
        return None if patterns is None else {key.attribute: patterns}
    if isinstance(value, dict) and value:
        wrong = _unknown(value, at, key.parts, tell)
        read: dict[str, tuple[str, ...]] = {}
        for part, attribute in key.parts.items():
            if part in value:
                patterns = _patterns(value[part], (*at, part), tell, topics=key.topics)
                if patterns is None:
                    wrong = True
                else:
                    read[attribute] = patterns
        return None if wrong else read
    if not key.array or isinstance(value, dict):
        tell(at, f"must be a table: write {name} = {{ {', '.join(f'{part} = [...]' for part in key.parts)} }}")
        return None
    patterns = _patterns(value, at, tell)
    return None if patterns is None else dict.fromkeys(key.parts.values(), patterns)


def _patterns(value: Any, at: tuple[str, ...], tell: Tell, *, topics: bool = False) -> tuple[str, ...] | None:
    """A pattern or an array of them as a tuple; None, after reporting it, when the value is neither."""
    patterns = [value] if isinstance(value, str) else value
    if (
        not isinstance(patterns, list)
        or not patterns
        or not all(isinstance(each, str) and each.strip() for each in patterns)
    ):
        tell(at, f"is not {_TOPICS if topics else _WANTED}")
        return None
    found = tuple(each.strip() for each in patterns)
    for each in found if topics else ():
        # Other rules for the words of a topic are checked where patterns are compiled (events.topics).
        if any(not word or (len(word) > 1 and ("*" in word or "#" in word)) for word in each.split(".")):
            tell(
                at,
                f"{each!r} is not a topic pattern: words separated by dots, * for one word, # for any number, like "
                '"order.#"',
            )
            return None
    return found
