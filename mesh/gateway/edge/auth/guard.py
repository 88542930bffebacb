"""A gateway without an authentication method: routes that require a caller are refused, never public.

Owns: this refusal, and its line in the log.
Leaves to others: putting it into the chain with the first such route (server), so that others pay nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mesh.gateway.edge.auth.contract import AuthNotConfigured
from mesh.gateway.edge.contract import Concern, Proceed
from mesh.gateway.entry import is_protected
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.request import Request
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")


def make(front: Front) -> Concern:
    """The concern of a gateway without an authentication method."""
    return Concern(name="guard", hook=_hook(), wanted=lambda: front.catalog.protected)


def _hook() -> Callable[[Request, Proceed], Awaitable[Answer]]:
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
