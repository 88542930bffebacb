"""`attempt_timeout`: one attempt may not take the whole time of the call."""

from __future__ import annotations

from typing import Any

from mesh.calls.interceptors import Hook, OutgoingCall, Proceed
from mesh.config.policies import PolicySettings
from mesh.resilience.contract import Site


def make(policy: PolicySettings, site: Site) -> Hook | None:
    """See contract."""
    attempt_s = policy.attempt_timeout_s
    if attempt_s is None:
        return None
    now = site.clock.now

    async def hook(call: OutgoingCall, proceed: Proceed[OutgoingCall]) -> Any:
        return await proceed(call.again(deadline_at=min(call.deadline_at, now() + attempt_s)))

    return hook
