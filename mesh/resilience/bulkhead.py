"""`bulkhead`: a method that is slow cannot take more than its places of the calling process."""

from __future__ import annotations

import asyncio
from typing import Any

from mesh.calls.interceptors import Hook, OutgoingCall, Proceed
from mesh.config.policies import PolicySettings
from mesh.errors import DeadlineExceeded, Overloaded
from mesh.policy.limits import REFUSE, WAIT, Gate
from mesh.resilience.contract import Site


def make(policy: PolicySettings, site: Site) -> Hook | None:
    """See contract."""
    if policy.bulkhead is None:
        return None
    gate: Gate[asyncio.Future[None]] = Gate(policy.bulkhead, policy.bulkhead_queue or 0)
    target, clock = site.target, site.clock
    loop = asyncio.get_running_loop()
    refused = site.counter("bulkhead_refused", "Calls that found no place in a bulkhead.")
    site.recorder.gauge(
        "policy_bulkhead_running", lambda: float(gate.running), "Calls with a place in a bulkhead.", target=target
    )

    def leave() -> None:
        while (next_one := gate.release()) is not None:
            if not next_one.done():
                next_one.set_result(None)
                return

    async def wait(place: asyncio.Future[None], call: OutgoingCall) -> None:
        try:
            async with asyncio.timeout(max(0.0, call.deadline_at - clock.now())):
                await place
        except BaseException as exc:
            if not gate.withdraw(place):
                leave()  # it has got its place meanwhile
            if isinstance(exc, TimeoutError):
                raise DeadlineExceeded(f"{target}: no place in its bulkhead by the deadline") from None
            raise

    async def hook(call: OutgoingCall, proceed: Proceed[OutgoingCall]) -> Any:
        place: asyncio.Future[None] = loop.create_future()
        verdict = gate.admit(place, call.context.tenant if call.context is not None else "")
        if verdict is REFUSE:
            refused.add()
            raise Overloaded(f"{target}: {gate.concurrency} calls from this process are under way, its limit")
        if verdict is WAIT:
            await wait(place, call)
        try:
            return await proceed(call)
        finally:
            leave()

    return hook
