"""A gateway without an authentication method: routes that require a caller are refused, never public.

Owns: this refusal, and its line in the log.
Leaves to others: when the guard is put in (server): with the first such route, so that a gateway without one pays
nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from mesh.gateway.edge.auth.concern import NAME
from mesh.gateway.edge.auth.contract import AuthNotConfigured
from mesh.gateway.edge.contract import Proceed
from mesh.gateway.entry import is_protected
from mesh.gateway.front import Concern
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.request import Request
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")


def guard() -> Callable[[Request, Proceed], Awaitable[Answer]]:
    """The hook that refuses them."""
    logged: set[str] = set()

    async def hook(request: Request, proceed: Proceed) -> Answer:
        entry = request.entry
        if not is_protected(entry.policy):
            return await proceed(request)
        # One line for each target; targets are those that services declare, so that their number is bounded.
        if entry.name not in logged:
            logged.add(entry.name)
            _log.error(
                "auth.not_configured",
                target=entry.name or entry.prefix,
                remedy="configure an authentication method in [auth], or declare auth=None",
            )
        raise AuthNotConfigured(f"{entry.name or entry.prefix} requires a caller, and [auth] has no method")

    return hook


def needs_guard(concerns: Sequence[Concern]) -> bool:
    """Whether none of a gateway's concerns authenticates callers."""
    return all(each.name != NAME for each in concerns)
