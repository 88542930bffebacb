"""Concurrent requests: `[gateway.limits] concurrency`, such as "50 by tenant".

Owns: counting the requests that each caller has under way in this gateway, and refusing more.
Leaves to others: what requests are counted by (rate_plans), the limits of services (policy.limits).

A stream counts until it ends. Each gateway counts on its own: with two gateways a caller may have twice as many.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.config.edge_rates import Limit, read_concurrency
from mesh.errors import RateLimited
from mesh.gateway.edge.contract import Concern, Proceed
from mesh.gateway.edge.rate_plans import caller_by
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.mounts.health import PROBED
from mesh.gateway.ports import Recorder
from mesh.gateway.request import Request

#: Retry-After of a refusal: when a request of the caller will end is not known.
RETRY_S = 1


def make(front: Front) -> Concern | None:
    """The concern; None without `gateway.limits.concurrency`."""
    limits = [read_concurrency(text) for text in dict.fromkeys(front.settings.gateway.limits.concurrency)]
    if not limits:
        return None
    concurrency = Concurrency(limits, front.node.recorder)
    return Concern(name="concurrency", hook=concurrency.hook, facts={"limits": [limit.text for limit in limits]})


class Concurrency:
    """The requests under way, by limit and caller: only callers with a request have an entry."""

    def __init__(self, limits: Sequence[Limit], recorder: Recorder) -> None:
        self._limits = limits
        self._recorder = recorder
        self._busy: dict[tuple[str, str], int] = {}

    def __len__(self) -> int:
        return len(self._busy)

    async def hook(self, request: Request, proceed: Proceed) -> Answer:
        """Answer a request within the limits; see edge.contract.

        Raises:
            RateLimited: the caller has as many requests under way as a limit allows.
        """
        if request.path in PROBED:
            return await proceed(request)
        busy = self._busy
        keys = [(limit.text, caller_by(limit.by, request)) for limit in self._limits]
        for limit, key in zip(self._limits, keys, strict=True):
            if busy.get(key, 0) >= limit.most:
                self._refuse(limit)
        for key in keys:
            busy[key] = busy.get(key, 0) + 1
        try:
            return await proceed(request)
        finally:
            for key in keys:
                left = busy[key] - 1
                if left:
                    busy[key] = left
                else:
                    del busy[key]

    def _refuse(self, limit: Limit) -> None:
        shown = f"concurrency {limit.text}"
        self._recorder.counter("http_rate_limited", "Requests that a limit refused.", limit=shown).add()
        raise RateLimited(
            f'too many requests at once: the limit is "{limit.text}"; send it again when another one has ended',
            details={"limit": shown, "retry_after_s": RETRY_S},
        )
