"""The policies, and their order.

Owns: the list, the outermost first, and the hooks of one method.
Leaves to others: each policy (one module each), what is set for a method (table).
"""

from __future__ import annotations

from typing import Final

from mesh.calls.interceptors import Hook
from mesh.config.policies import PolicySettings
from mesh.resilience import attempt_timeout, breaker, bulkhead, cache, coalesce, fallback, hedge, retry
from mesh.resilience.contract import Make, Site

#: The outermost first. A kept answer needs no call. The places of a bulkhead are for calls with all their attempts.
#: Each attempt of a retry is counted by the breaker, and refused while it is open. A hedge is part of
#: one attempt and of its time, and the innermost: it has to know which instance the first call is at.
POLICIES: Final[tuple[Make, ...]] = (
    fallback.make,
    cache.make,
    coalesce.make,
    bulkhead.make,
    retry.make,
    breaker.make,
    attempt_timeout.make,
    hedge.make,
)


def hooks_of(policy: PolicySettings, site: Site) -> tuple[Hook, ...]:
    """The hooks of one method, the outermost first."""
    return tuple(hook for make in POLICIES if (hook := make(policy, site)) is not None)
