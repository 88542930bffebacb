"""Who may call what, who may run what, and who may do everything: the decision.

Owns: matching a caller with rules, what is open without one, and the rule that would allow what was denied.
Leaves to others: reading rules (config.access), who a caller is (transport, calls.door), what the store's operations
touch (engines.authorization), refusing (calls.server, discovery.hub, the store).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from mesh.config import OPERATOR, AccessRule, AccessSettings, ServeRule

#: What every process answers about itself, and what pages and `mesh ps` ask. It changes nothing, and a caller that may
#: do nothing else may still see the state of a set-up. A rule that names the service closes it.
OPEN: Final = frozenset({("$worker", "info"), ("$worker", "metrics")})
#: The store authorizes each of its operations by what that touches (engines.authorization), so a call of it is not
#: judged by the method's name.
STORE: Final = "mesh-store"
#: The service of `mesh listen`, by which a command hears of events.
LISTEN: Final = "listen"


class Access:
    """Rules, ready to be asked. What none of them allows is denied, but to operators."""

    __slots__ = ("_named", "_operators", "_rules", "_serve")

    def __init__(
        self,
        rules: Iterable[AccessRule],
        serve: Iterable[ServeRule] = (),
        operators: Iterable[str] = (OPERATOR,),
    ) -> None:
        self._rules = tuple(rules)
        self._serve = tuple(serve)
        self._operators = tuple(operators)
        self._named = {service for rule in self._rules for service in rule.services}

    @classmethod
    def of(cls, settings: AccessSettings | None) -> Access | None:
        """The rules of a mesh.toml; None when it declares none, and everything is allowed."""
        return None if settings is None else cls(settings.allow, settings.serve, settings.operators)

    @property
    def rules(self) -> tuple[AccessRule, ...]:
        """All of them."""
        return self._rules

    @property
    def operators(self) -> tuple[str, ...]:
        """As [access] names them."""
        return self._operators

    def is_operator(self, caller: str) -> bool:
        """Whether this caller may do everything."""
        return is_one(caller, self._operators)

    def rules_of(self, caller: str) -> tuple[AccessRule, ...]:
        """Those that are about this caller."""
        return tuple(rule for rule in self._rules if is_one(caller, rule.callers))

    def allows(self, caller: str, service: str, method: str) -> bool:
        """Whether this caller may call "service.method".

        Args:
            caller: the name of its key, "orders@host-1", which a rule for "orders" means as well; or its role.
        """
        if service == STORE or self.is_operator(caller):
            return True
        if (service, method) in OPEN and service not in self._named:
            return True
        return self.names(caller, service, method)

    def names(self, caller: str, service: str, method: str) -> bool:
        """Whether a rule lets this caller call it."""
        return any(
            matches_any(rule.services, service) and matches_any(rule.methods, method) and is_one(caller, rule.callers)
            for rule in self._rules
        )

    def may_serve(self, worker: str, service: str) -> bool:
        """Whether a hub registers that service for this process; named as a caller is. It registers every service
        while no rule says who."""
        if not self._serve or (service == LISTEN and self.is_operator(worker)):
            return True
        return any(matches_any(rule.services, service) and is_one(worker, rule.workers) for rule in self._serve)

    def may_work(self, worker: str, service: str) -> bool:
        """Whether the store gives this process the tasks of that service: as `may_serve`, but while no rule says who,
        only to a process that is named after it."""
        if not self._serve:
            return bool(service) and service == worker.partition("@")[0]
        return self.may_serve(worker, service)


def is_one(caller: str, names: Iterable[str]) -> bool:
    """Whether names, which may be patterns, mean this caller: as it is, or without its host."""
    return matches_any(names, caller) or matches_any(names, caller.partition("@")[0])


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether one of them is this name, or a pattern of it: * is any text, ? any character, all else is itself."""
    # Of fnmatch's sets, "[ab]", nothing is documented: a rule for the lock "job[1]" means that one, and not "job1".
    return any(fnmatchcase(name, pattern.replace("[", "[[]")) for pattern in patterns)


def remedy(caller: str, **keys: str | dict[str, str]) -> str:
    """The rule that would allow it, as part of a sentence: '[[access.allow]] with caller = "a", tasks = "b.c"'."""
    written = [f"{key} = {_toml(value)}" for key, value in {"caller": caller[:100], **keys}.items()]
    hint = f"; a command of an operator has a key of its own (`mesh keys make {OPERATOR}`)"
    return f"[[access.allow]] with {', '.join(written)}{hint if caller.partition('@')[0] == 'client' else ''}"


def _toml(value: str | dict[str, str]) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value.items())} }}"
    # A basic string of TOML is written as JSON writes it.
    return json.dumps(value[:200], ensure_ascii=False)
