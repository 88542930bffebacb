"""`retries`: further attempts, after a wait, within the retry budget of the process.

An attempt that no instance has begun is repeated by the client anyway, at another instance and at once. This is for
errors that answers have, and for attempts that take too long.
"""

from __future__ import annotations

from typing import Any, Final

from mesh.calls.interceptors import Hook, OutgoingCall, Proceed
from mesh.config.policies import PolicySettings
from mesh.errors import MeshError
from mesh.policy.backoff import Backoff
from mesh.policy.retry import Retrying
from mesh.resilience.contract import Site, failure_of

BACKOFF_S: Final = 0.025
BACKOFF_MOST_S: Final = 1.0


def make(policy: PolicySettings, site: Site) -> Hook | None:
    """See contract."""
    if not policy.retries:
        return None
    first_s = BACKOFF_S if policy.backoff_s is None else policy.backoff_s
    most_s = max(first_s, BACKOFF_MOST_S) if policy.backoff_most_s is None else max(first_s, policy.backoff_most_s)
    retrying = Retrying(policy.retries, Backoff(first_s, most_s), policy.retry_on)
    clock, random = site.clock, site.rng.random
    retried = site.counter("retries", "Further attempts of calls that failed.")
    refused = site.counter("retries_refused", "Retries that the retry budget refused.")

    async def hook(call: OutgoingCall, proceed: Proceed[OutgoingCall]) -> Any:
        attempt = 1
        while True:
            try:
                return await proceed(call.again())
            except MeshError as error:
                wait_s = retrying.delay(
                    attempt,
                    failure_of(error),
                    idempotent=site.idempotent(call),
                    left_s=call.deadline_at - clock.now(),
                    rnd=random(),
                )
                if wait_s is None:
                    raise
                if not site.client.may_retry():
                    refused.add()
                    raise
            retried.add()
            attempt += 1
            await clock.sleep(wait_s)

    return hook
