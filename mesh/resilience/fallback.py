"""`fallback`: an answer for the case that there is none."""

from __future__ import annotations

from typing import Any

from mesh.calls.interceptors import Hook, OutgoingCall, Proceed
from mesh.config.policies import PolicySettings
from mesh.errors import MeshError
from mesh.protocol.messages import JSON
from mesh.resilience.contract import Site, is_failure


def make(policy: PolicySettings, site: Site) -> Hook | None:
    """See contract."""
    value = policy.fallback
    if value is None:
        return None
    used = site.counter("fallbacks", "Calls that failed and were answered by the fallback.")

    async def hook(call: OutgoingCall, proceed: Proceed[OutgoingCall]) -> Any:
        try:
            return await proceed(call)
        except MeshError as error:
            if not (error.retryable or is_failure(error)):
                raise
        used.add()
        return call.decode(value, JSON)

    return hook
