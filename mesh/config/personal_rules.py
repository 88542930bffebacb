"""Rules of [access] for principals and roles: what they may contain.

Owns: refusing a rule that could never apply, or could not be enforced as it is written.
Leaves to others: the rest of a rule (access), the decision (policy.access, engines.authorization).

A process authorizes a call, a deferred task and a durable event by the principal in that message. Everything else that
rules are about is done by a process for all of its work: its requests name no principal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from mesh.config.patterns import is_one, is_pattern

#: key of a rule, and part of its value ("" for all of it) -> why it cannot depend on the principal.
_IMPERSONAL: Final = {
    ("events", "subscribe"): "a worker subscribes for all of its work, not on behalf of a principal",
    ("state", ""): "the store does not learn for which principal a process reads or writes",
    ("locks", ""): "the store does not learn for which principal a process takes a lock",
    ("schedules", ""): "schedules are declared and fired without a principal",
}
_STORE: Final = "mesh-store"


def check_personal(
    table: dict[str, Any],
    at: tuple[str, ...],
    callers: Sequence[str],
    asserting: Sequence[str],
    tell: Callable[[tuple[str, ...], str], None],
) -> bool:
    """Check a rule that has `principals` or `roles`; returns whether it can be used.

    Args:
        table: the rule as parsed, otherwise valid.
        at: its path.
        callers: its callers.
        asserting: the callers that may assert principals.
        tell: called with the path of each wrong key, and what is wrong with it.
    """
    named = " and ".join(f"`{key}`" for key in ("principals", "roles") if key in table)
    valid = True

    def wrong(path: tuple[str, ...], what: str) -> None:
        nonlocal valid
        valid = False
        tell((*at, *path), what)

    for (key, part), why in _IMPERSONAL.items():
        if key in table and (not part or part in table[key]):
            wrong((key, part) if part else (key,), f"cannot be in a rule with {named}: {why}; write a rule without")
    services = table.get("service", ())
    if _STORE in ([services] if isinstance(services, str) else services):
        wrong(("service",), f"{_STORE} cannot be in a rule with {named}: it serves processes, not principals")
    for caller in callers:
        if not is_pattern(caller) and not is_one(caller, asserting):
            wrong(
                ("caller",),
                f'"{caller}" may not assert principals, so this rule would never apply to it; if every process with '
                f'this key is trusted to name any principal, add it to [access] assert = ["{caller}", ...]',
            )
    return valid
