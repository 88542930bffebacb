"""`coalesce`: identical calls at the same time become one, and all get its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from functools import partial
from typing import Any

from mesh.calls.answers import Answer
from mesh.calls.interceptors import Hook, OutgoingCall, Proceed
from mesh.config.policies import PolicySettings
from mesh.errors import DeadlineExceeded
from mesh.resilience.contract import Site
from mesh.resilience.sharing import decoded, key_of, undecoded


class _Shared:
    """A call under way, and how many wait for it."""

    def __init__(self, task: asyncio.Future[Answer]) -> None:
        self.task = task
        self.waiting = 0


def make(policy: PolicySettings, site: Site) -> Hook | None:
    """See contract."""
    if not policy.coalesce:
        return None
    under_way: dict[Hashable, _Shared] = {}
    saved = site.counter("coalesced", "Calls that got the answer of another one.")
    now = site.clock.now

    def forget(key: Hashable, shared: _Shared, _: Any = None) -> None:
        if under_way.get(key) is shared:
            del under_way[key]

    async def hook(call: OutgoingCall, proceed: Proceed[OutgoingCall]) -> Any:
        key = key_of(call)
        shared = under_way.get(key)
        own = shared is None
        if shared is None:
            shared = under_way[key] = _Shared(asyncio.ensure_future(proceed(undecoded(call))))
            shared.task.add_done_callback(partial(forget, key, shared))
        shared.waiting += 1
        try:
            answer = await asyncio.shield(shared.task)
        except DeadlineExceeded:
            if own or now() >= call.deadline_at:
                raise
        else:
            if not own:
                saved.add()
            return decoded(call, answer)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                forget(key, shared)
                shared.task.cancel()
        # The deadline of the other call was earlier than that of this one.
        return await proceed(call)

    return hook
