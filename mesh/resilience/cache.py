"""`cache`: an answer is kept for a time, and given again; a stale one too, while a call asks for a new one."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from contextlib import suppress
from typing import Any, Final

from mesh.calls.answers import Answer
from mesh.calls.interceptors import Hook, OutgoingCall, Proceed
from mesh.config.policies import PolicySettings
from mesh.errors import MeshError
from mesh.policy.answer_cache import AnswerCache
from mesh.resilience.contract import Site
from mesh.resilience.sharing import decoded, key_of, undecoded

SIZE_BYTES: Final = 16 * 2**20


def make(policy: PolicySettings, site: Site) -> Hook | None:
    """See contract."""
    if policy.cache_s is None:
        return None
    cache: AnswerCache[Answer] = AnswerCache(
        policy.cache_s, policy.cache_stale_s or 0.0, policy.cache_bytes or SIZE_BYTES
    )
    now = site.clock.now
    hits = site.counter("cache_hits", "Calls that a kept answer has answered.")
    misses = site.counter("cache_misses", "Calls that no kept answer has answered.")
    site.recorder.gauge("policy_cache_bytes", lambda: float(cache.size), "Bytes of kept answers.", target=site.target)
    renewing: dict[Hashable, asyncio.Task[None]] = {}

    async def ask(key: Hashable, call: OutgoingCall, proceed: Proceed[OutgoingCall]) -> Answer:
        answer: Answer = await proceed(undecoded(call))
        if not answer.meta:  # what a handler says beside its answer is for this caller only, such as a login
            body = bytes(answer.body)
            cache.put(key, Answer(body, answer.encoding), len(body), now())
        return answer

    async def renew(key: Hashable, call: OutgoingCall, proceed: Proceed[OutgoingCall]) -> None:
        try:
            with suppress(MeshError):  # the stale answer stays until it is too old
                await ask(key, call, proceed)
        finally:
            del renewing[key]

    async def hook(call: OutgoingCall, proceed: Proceed[OutgoingCall]) -> Any:
        key = key_of(call)
        kept = cache.get(key, now())
        if kept is None:
            misses.add()
            return decoded(call, await ask(key, call, proceed))
        hits.add()
        if not kept.fresh and key not in renewing:
            renewing[key] = asyncio.ensure_future(renew(key, call, proceed))
        return decoded(call, kept.value)

    return hook
