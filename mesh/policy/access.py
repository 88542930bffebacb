"""Who may call what, and who may run what: the decision.

Owns: matching a caller, a service and a method with rules, and what is open without one.
Leaves to others: reading rules (config.access), who somebody is (transport, calls.door), saying no (calls.server,
discovery.hub).
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from mesh.config import AccessRule, ServeRule

#: What every process answers about itself, and what pages and `mesh ps` ask. It changes nothing, and who may do
#: nothing else may at least be told so by a set-up whose state can be seen. A rule that names the service closes it.
OPEN: Final = frozenset({("$worker", "info"), ("$worker", "metrics")})


class Access:
    """Rules, ready to be asked. What none of them allows is denied."""

    __slots__ = ("_named", "_rules", "_serve")

    def __init__(self, rules: Iterable[AccessRule], serve: Iterable[ServeRule] = ()) -> None:
        self._rules = tuple(rules)
        self._serve = tuple(serve)
        self._named = {service for rule in self._rules for service in rule.services}

    def allows(self, caller: str, service: str, method: str) -> bool:
        """Whether this caller may call "service.method".

        Args:
            caller: the name of its key, "orders@host-1", which a rule for "orders" means as well; or its role.
        """
        if (service, method) in OPEN and service not in self._named:
            return True
        role = caller.partition("@")[0]
        return any(
            _any(rule.services, service)
            and _any(rule.methods, method)
            and (_any(rule.callers, caller) or _any(rule.callers, role))
            for rule in self._rules
        )

    def may_serve(self, worker: str, service: str) -> bool:
        """Whether this process may run that service; named as a caller is. Everybody may while no rule says who."""
        if not self._serve:
            return True
        role = worker.partition("@")[0]
        return any(
            _any(rule.services, service) and (_any(rule.workers, worker) or _any(rule.workers, role))
            for rule in self._serve
        )


def _any(patterns: Iterable[str], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
