"""Active health checks of upstream servers.

Owns: asking each server in turn, and how many answers decide.
Leaves to others: what an unhealthy server means for requests (upstreams).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import aiohttp

from mesh.clock import Clock
from mesh.gateway.forward_target import Target
from mesh.gateway.upstreams import Upstream, Upstreams
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")

#: Checks that must fail in a row before a server gets no more requests: a single one may meet a pause of its loop.
FAILURES: Final = 2


class HealthChecks:
    """Asks the servers of one list for a path.

    Args:
        path: what a healthy server answers with a status below 400.
        every_s: the interval; also the longest time for an answer.
        prefix: of the mount, for the log.
    """

    def __init__(self, upstreams: Upstreams, path: str, every_s: float, clock: Clock, prefix: str) -> None:
        self._upstreams = upstreams
        self._path = path
        self._every_s = every_s
        self._clock = clock
        self._prefix = prefix
        self._failed: dict[Upstream, int] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Check in the background; the first checks have ended when the block begins."""
        await self.check()
        task = asyncio.create_task(self._run(), name=f"health of {self._prefix}")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(self._every_s)
            await self.check()

    async def check(self) -> None:
        """Check every server once, all at the same time."""
        upstreams = list(self._upstreams.all)
        for gone in self._failed.keys() - set(upstreams):
            del self._failed[gone]
        reasons = await asyncio.gather(*map(self._ask, upstreams))
        for upstream, reason in zip(upstreams, reasons, strict=True):
            if not reason:
                self._failed.pop(upstream, None)
                self._upstreams.succeeded(upstream)
                if not upstream.healthy:
                    upstream.healthy = True
                    _log.info("proxy.upstream_up", mount=self._prefix, upstream=upstream.address)
                continue
            failures = self._failed[upstream] = self._failed.get(upstream, 0) + 1
            if failures >= FAILURES and upstream.healthy:
                upstream.healthy = False
                _log.warning("proxy.upstream_down", mount=self._prefix, upstream=upstream.address, reason=reason)

    async def _ask(self, upstream: Upstream) -> str:
        """Why a server is not healthy; "" when it is."""
        path, _, query = self._path.partition("?")
        url = Target(path, query, "", "").url(upstream.base)
        # Counted, so that a server that leaves the list meanwhile keeps its connections until the check has ended.
        upstream.in_flight += 1
        try:
            async with (
                asyncio.timeout(self._every_s),
                upstream.session.get(url, allow_redirects=False, headers={"User-Agent": "mesh"}) as response,
            ):
                return "" if response.status < 400 else f"status {response.status}"
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            return f"{type(exc).__name__}: {exc}"[:200]
        finally:
            await upstream.release()
