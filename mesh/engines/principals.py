"""The principals of tasks and durable events: rules that depend on them, and the mark on those that are not verified.

Owns: the decision for one principal, in bounded memory, and marking the units of callers that may not assert any.
Leaves to others: everything that does not depend on a principal (authorization), the rules (policy.access), what the
metadata of messages contain (calls.propagation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeVar

from msgspec.structs import replace

from mesh.calls.propagation import PRINCIPAL, asserted, unverified
from mesh.config import AccessRule
from mesh.config.patterns import matches_any
from mesh.engines.contract import Unit
from mesh.events.log import NewEvent
from mesh.events.topics import Matcher
from mesh.policy.access import Access, admits, remedy
from mesh.tasks.contract import NewTask

#: Cached decisions, and callers; when a cache is full, it is emptied.
REMEMBERED: Final = 4096
#: Decisions with longer lists of roles are not cached, which bounds the cache to a few MB.
LONGEST_CACHED_ROLES: Final = 512

Item = TypeVar("Item", NewTask, NewEvent)


class Denied(Protocol):
    """The part of a Refusal that this module uses; see mesh.engines.authorization."""

    @property
    def caller(self) -> str: ...
    @property
    def right(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def conditions(self) -> Sequence[AccessRule]: ...


class Principals:
    """The decisions of one engine."""

    def __init__(self, access: Access, identity: str) -> None:
        """`identity` names the engine in errors."""
        self._access = access
        self._identity = identity
        # (caller, right, name, principal, roles) → (the message of the refusal, "" when it is allowed; the principal).
        self._known: dict[tuple[str, str, str, str, str], tuple[str, str]] = {}
        self._asserting: dict[str, bool] = {}

    def asserts(self, caller: str) -> bool:
        """Whether the principals that this caller names are verified."""
        found = self._asserting.get(caller)
        if found is None:
            if len(self._asserting) >= REMEMBERED:
                self._asserting.clear()
            found = self._asserting[caller] = self._access.asserts(caller)
        return found

    def conditions(self, caller: str, right: str, name: str) -> tuple[AccessRule, ...]:
        """The rules that give this caller the right on the name for some principals."""
        rules = self._access.personal_rules_of(caller)
        if right == "defer":
            service, _, task = name.rpartition(".")
            return tuple(
                rule
                for rule in rules
                if matches_any(rule.tasks, name)
                or (matches_any(rule.services, service) and matches_any(rule.methods, task))
            )
        if right == "publish":
            return tuple(rule for rule in rules if Matcher((pattern, None) for pattern in rule.publish).match(name))
        return ()

    def may_look(self, caller: str, queue: str) -> bool:
        """Whether this caller may defer tasks to the queue for some principals, and so may look at its jobs."""
        return self.asserts(caller) and bool(self.conditions(caller, "defer", queue))

    def decide(self, denied: Denied, meta: Mapping[str, str] | None) -> tuple[str, str, bool]:
        """Decide on a task or event that is denied to the caller unless it is for one of some principals.

        Args:
            meta: the metadata of the task or event.

        Returns:
            The message of the refusal, "" when it is allowed; the verified principal, "" for none; whether the decision
            is new.
        """
        asserts = self.asserts(denied.caller)
        principal, roles = asserted(meta) if asserts else ("", "")
        key = denied.caller, denied.right, denied.target, principal, roles
        known = self._known.get(key)
        if known is not None:
            return (*known, False)
        message = ""
        if not admits(denied.conditions, principal, roles):
            message = self._message(denied, principal, asserts)
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        if len(roles) <= LONGEST_CACHED_ROLES:
            self._known[key] = message, principal
        return message, principal, True

    def _message(self, denied: Denied, principal: str, asserts: bool) -> str:
        caller, name = denied.caller, denied.target[:200]
        wants = f"{denied.right} {name}: no [[access.allow]] of {self._identity} allows it"
        if not asserts:
            return (
                f"{caller[:100]!r} may not {wants} but for some principals, and those that {caller[:100]!r} names are "
                "not verified: [access] assert does not list it"
            )
        if not principal:
            return f"{caller[:100]!r} may not {wants} without a verified principal"
        keys: dict[str, str | dict[str, str]] = (
            {"events": {"publish": name}} if denied.right == "publish" else {"tasks": name}
        )
        rule = remedy(caller, principals=principal, **keys)
        return f"{caller[:100]!r} may not {wants} for the principal {principal!r}. To allow it, add {rule}"

    # --- marking ------------------------------------------------------------------------------------------

    def verified(self, caller: str, unit: Unit) -> Unit:
        """The unit to commit: the principals in it are marked as not verified when the caller may not assert any."""
        if not (unit.tasks or unit.events) or self.asserts(caller):
            return unit
        tasks, events = _marked(unit.tasks), _marked(unit.events)
        if tasks is unit.tasks and events is unit.events:
            return unit
        return replace(unit, tasks=tasks, events=events)


def _marked(items: Sequence[Item]) -> Sequence[Item]:
    """The items with marked metadata; the same sequence when none of them names a principal."""
    for item in items:
        if item.meta and PRINCIPAL in item.meta:
            return [replace(each, meta=dict(unverified(each.meta))) for each in items]
    return items
