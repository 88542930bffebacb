"""Authorization decisions: which callers may call which methods, which workers may run which services, operators.

Owns: matching a caller and its principal with rules, methods that need no rule, and the rule that would allow a denied
request.
Leaves to others: reading rules (config.access), authentication (transport, calls.authorization), which objects an
operation of the store uses (engines.authorization), refusing (calls.server, discovery.hub, the store).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from mesh.config import OPERATOR, AccessRule, AccessSettings, ServeRule
from mesh.config.access import GATEWAY
from mesh.config.patterns import is_one, matches_any

#: Methods that every caller may call unless a rule names their service: the read-only status of a process, for pages
#: and `mesh ps`.
OPEN: Final = frozenset({("$worker", "info"), ("$worker", "metrics")})
#: The store authorizes each operation by the objects that it uses (engines.authorization), so calls to the store are
#: not authorized by method name.
STORE: Final = "mesh-store"
#: The service of `mesh listen`, through which the command receives events.
LISTEN: Final = "listen"


class Access:
    """The rules of [access]. Requests that no rule allows are denied, except to operators."""

    __slots__ = ("_asserting", "_named", "_operators", "_personal", "_plain", "_serve", "rules")

    def __init__(
        self,
        rules: Iterable[AccessRule],
        serve: Iterable[ServeRule] = (),
        operators: Iterable[str] = (OPERATOR,),
        asserting: Iterable[str] = (GATEWAY,),
    ) -> None:
        #: All [[access.allow]].
        self.rules = tuple(rules)
        self._plain = tuple(rule for rule in self.rules if not rule.personal)
        self._personal = tuple(rule for rule in self.rules if rule.personal)
        self._serve = tuple(serve)
        self._operators = tuple(operators)
        self._asserting = tuple(asserting)
        self._named = {service for rule in self.rules for service in rule.services}

    @classmethod
    def of(cls, settings: AccessSettings | None) -> Access | None:
        """The rules of a mesh.toml; None when it declares none, and everything is allowed."""
        return None if settings is None else cls(settings.allow, settings.serve, settings.operators, settings.asserting)

    @property
    def operators(self) -> tuple[str, ...]:
        """The names or patterns of operators in [access]."""
        return self._operators

    def is_operator(self, caller: str) -> bool:
        """Whether this caller may do everything."""
        return is_one(caller, self._operators)

    def asserts(self, caller: str) -> bool:
        """Whether the principal and roles that this caller names are verified."""
        return is_one(caller, self._asserting)

    def rules_of(self, caller: str) -> tuple[AccessRule, ...]:
        """The rules that apply to all work of this caller, for whichever principal."""
        return tuple(rule for rule in self._plain if is_one(caller, rule.callers))

    def personal_rules_of(self, caller: str) -> tuple[AccessRule, ...]:
        """The rules that apply to work of this caller for some principals; see `admits`."""
        return tuple(rule for rule in self._personal if is_one(caller, rule.callers))

    def allows(self, caller: str, service: str, method: str) -> bool:
        """Whether this caller may call "service.method" for every principal.

        Args:
            caller: the name of its key, such as "orders@host-1" (a rule for "orders" applies to it too), or its role.
        """
        if service == STORE or self.is_operator(caller):
            return True
        if service == GATEWAY and is_one(caller, (GATEWAY,)):
            # Gateways count requests together (gateway.edge.rate_mesh).
            return True
        if (service, method) in OPEN and service not in self._named:
            return True
        return self.names(caller, service, method)

    def names(self, caller: str, service: str, method: str) -> bool:
        """Whether a rule allows this caller to call this method for every principal."""
        return any(
            matches_any(rule.services, service) and matches_any(rule.methods, method) and is_one(caller, rule.callers)
            for rule in self._plain
        )

    def personal(self, caller: str, service: str, method: str) -> tuple[AccessRule, ...]:
        """The rules that allow this caller to call this method for some principals; see `admits`."""
        if not self._personal:
            return ()
        return tuple(
            rule
            for rule in self.personal_rules_of(caller)
            if matches_any(rule.services, service) and matches_any(rule.methods, method)
        )

    def may_serve(self, worker: str, service: str) -> bool:
        """Whether a hub registers this service for this process, which is named like a caller. Without any
        [[access.serve]], it registers every service."""
        if not self._serve or (service == LISTEN and self.is_operator(worker)):
            return True
        return any(matches_any(rule.services, service) and is_one(worker, rule.workers) for rule in self._serve)

    def may_work(self, worker: str, service: str) -> bool:
        """Whether the store gives this process the tasks of this service. Like `may_serve`, but without any
        [[access.serve]], only the process that is named after the service gets them."""
        if not self._serve:
            return bool(service) and service == worker.partition("@")[0]
        return self.may_serve(worker, service)


def role_of(identity: str) -> str:
    """The role in an identity: "gateway" of "gateway-3f9ac2d1"; an identity without a number is a role itself."""
    return identity.rpartition("-")[0] or identity


def name_of(user: str, identity: str) -> str:
    """The name of a process in the rules.

    Args:
        user: the name of the key that it proved to hold; "" on links without keys.
        identity: the identity that it claims; its role counts where it proved nothing.
    """
    return user or role_of(identity)


def admits(rules: Iterable[AccessRule], principal: str, roles: str) -> bool:
    """Whether one of these rules for principals and roles applies to work for this principal.

    Args:
        principal: a verified one; "" for none, which no rule admits.
        roles: its roles, with a space between them.
    """
    if not principal:
        return False
    held = roles.split()
    return any(
        (not rule.principals or matches_any(rule.principals, principal))
        and (not rule.roles or any(matches_any(rule.roles, role) for role in held))
        for rule in rules
    )


def remedy(caller: str, **keys: str | dict[str, str]) -> str:
    """The rule that would allow a denied request, for messages: '[[access.allow]] with caller = "a", tasks = "b.c"'."""
    written = [f"{key} = {_toml(value)}" for key, value in {"caller": caller[:100], **keys}.items()]
    hint = f"; a command of an operator has a key of its own (`mesh keys make {OPERATOR}`)"
    return f"[[access.allow]] with {', '.join(written)}{hint if caller.partition('@')[0] == 'client' else ''}"


def _toml(value: str | dict[str, str]) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value.items())} }}"
    # A basic string of TOML has the same syntax as a JSON string.
    return json.dumps(value[:200], ensure_ascii=False)
