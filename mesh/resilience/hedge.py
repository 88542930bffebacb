"""`hedge`: a second call to another instance when the first one takes longer than nearly all others.

Only for idempotent calls, to services with several instances, and within the retry budget. The answer that comes first
is taken, and the other call is cancelled. Each call of the method runs in an asyncio task of its own then, 4 µs more.
"""

from __future__ import annotations

import asyncio
from typing import Any

from mesh.calls.interceptors import Hook, OutgoingCall, Proceed
from mesh.config.policies import PolicySettings, percentile_of
from mesh.config.values import read_duration
from mesh.policy.durations import Durations
from mesh.resilience.contract import Site


def make(policy: PolicySettings, site: Site) -> Hook | None:
    """See contract."""
    if policy.hedge is None:
        return None
    share = percentile_of(policy.hedge)
    fixed_s = read_duration(policy.hedge) if share is None else None
    durations = Durations(share or 0.0)
    service = site.target.rpartition(".")[0]
    client, now = site.client, site.clock.now
    sent = site.counter("hedges", "Second calls that were sent.")
    won = site.counter("hedges_won", "Second calls that were answered first.")

    async def hook(call: OutgoingCall, proceed: Proceed[OutgoingCall]) -> Any:
        after_s = durations.percentile if fixed_s is None else fixed_s
        began_at = now()
        if after_s is None or client.links(service) < 2 or not site.idempotent(call):
            answer = await proceed(call)
            durations.add(now() - began_at)
            return answer
        one = call.again()
        first = asyncio.ensure_future(proceed(one))
        second: asyncio.Future[Any] | None = None
        try:
            await asyncio.wait((first,), timeout=after_s)
            if not first.done() and client.may_retry():
                sent.add()
                other = call.again()
                other.avoid(one)
                second = asyncio.ensure_future(proceed(other))
                await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
                if first.done() and first.exception() is not None:
                    await asyncio.wait((second,))
                if second.done() and second.exception() is None and (not first.done() or first.exception() is not None):
                    won.add()
                    durations.add(now() - began_at)
                    return second.result()
            answer = await first
            durations.add(now() - began_at)
            return answer
        finally:
            for task in (first, second):
                if task is None:
                    continue
                if not task.done():
                    task.cancel()
                elif not task.cancelled():
                    task.exception()  # retrieved, so that asyncio does not report it

    return hook
