"""The keys of an identity provider, fetched over HTTP: from a URL, or found by OpenID Connect discovery.

Owns: when they are fetched, and how long they are used while the provider does not answer.
Leaves to others: one fetch (fetch), the form of the keys (keys).

The keys are fetched at the start, then every `refresh`, and when a token names a key that is not among them: a provider
may begin to sign with a new key at any time. That happens at most once per COOLDOWN_S, and all requests that wait
share one fetch, so that tokens with invented keys cause no storm.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aiohttp

from mesh.clock import Clock
from mesh.config.edge_auth import JwtSettings, is_safe_url
from mesh.gateway.edge.auth.contract import AuthUnavailable
from mesh.gateway.edge.auth.jwt.fetch import FetchFailed, fetch, new_session
from mesh.gateway.edge.auth.jwt.keys import BadKey, KeySet, read_jwks
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")

#: How long after a fetch an unknown key does not cause another one, in seconds.
COOLDOWN_S: Final = 30.0
#: The waits after failed fetches, in seconds; they double from the first to the last.
FIRST_RETRY_S: Final = 1.0
LAST_RETRY_S: Final = 60.0

DISCOVERY: Final = "/.well-known/openid-configuration"


class RemoteKeys:
    """The keys of one provider. Enter `lifespan` before use.

    Args:
        allowed: the algorithms to accept.
    """

    def __init__(self, settings: JwtSettings, allowed: Collection[str], clock: Clock) -> None:
        self._settings = settings
        self._allowed = allowed
        self._clock = clock
        self._keys: KeySet | None = None
        self._fetched_at = 0.0
        self._tried_at = float("-inf")
        self._pending: asyncio.Task[bool] | None = None
        self._session: aiohttp.ClientSession | None = None

    def keys(self) -> KeySet:
        """The current keys; the same object as long as they do not change.

        Raises:
            AuthUnavailable: they could not be fetched yet, or not for longer than `stale`.
        """
        if self._keys is None or self._clock.now() - self._fetched_at > self._settings.stale_s:
            raise AuthUnavailable("the keys of the identity provider cannot be fetched now")
        return self._keys

    async def refresh(self) -> None:
        """Fetch the keys again because a token names an unknown one, unless that was tried just now."""
        if self._pending is None and self._clock.now() - self._tried_at < COOLDOWN_S:
            return
        await self._update()

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Fetch the keys, and keep them fresh. Does not fail when the provider does not answer."""
        async with new_session() as self._session:
            work = asyncio.create_task(self._work(), name="auth keys")
            # The first requests need the keys; a provider that does not answer delays the start by one timeout.
            await self._update()
            try:
                yield
            finally:
                for task in (work, self._pending):
                    if task is not None:
                        task.cancel()
                        with suppress(asyncio.CancelledError):
                            await task

    async def _work(self) -> None:
        wait_s = FIRST_RETRY_S
        while True:
            if await self._update():
                wait_s = FIRST_RETRY_S
                await self._clock.sleep(self._settings.refresh_s)
            else:
                await self._clock.sleep(min(wait_s, self._settings.refresh_s))
                wait_s = min(wait_s * 2, LAST_RETRY_S)

    async def _update(self) -> bool:
        """Take part in the present fetch, or begin one; returns whether it succeeded."""
        if self._pending is None:
            self._tried_at = self._clock.now()
            self._pending = asyncio.create_task(self._fetch(), name="auth keys fetch")
            self._pending.add_done_callback(self._over)
        # A request that is cancelled must not cancel the fetch of the others.
        return await asyncio.shield(self._pending)

    def _over(self, _: asyncio.Task[bool]) -> None:
        self._pending = None

    async def _fetch(self) -> bool:
        url = self._settings.jwks
        try:
            url = url or await self._discover()
            found = read_jwks(await self._get(url), self._allowed)
        except (FetchFailed, BadKey) as exc:
            reason = str(exc)
            _log.warning(
                "auth.keys_not_fetched",
                url=url or self._settings.issuer,
                reason=reason,
                usable=self._keys is not None,
                age_s=round(self._clock.now() - self._fetched_at) if self._keys is not None else None,
            )
            return False
        except Exception:
            # A bug must not end the task that keeps the keys fresh.
            _log.exception("auth.keys_not_fetched", url=url or self._settings.issuer, reason="a bug in mesh")
            return False
        self._fetched_at = self._clock.now()
        if found != self._keys:
            self._keys = found
            _log.info("auth.keys_changed", url=url, kids=found.kids, skipped=list(found.skipped))
        return True

    async def _discover(self) -> str:
        """The URL of the keys, from the provider's own description (OpenID Connect Discovery 1.0, section 4)."""
        issuer = self._settings.issuer
        data = await self._get(issuer.rstrip("/") + DISCOVERY)
        try:
            told = json.loads(data)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise FetchFailed("the description of the provider is not a JSON object")
        if told.get("issuer") != issuer:
            raise FetchFailed(f'the provider describes itself as "{str(told.get("issuer"))[:200]}", not as {issuer}')
        url = told.get("jwks_uri")
        if not isinstance(url, str) or not is_safe_url(url):
            raise FetchFailed("the provider's jwks_uri is not an https URL")
        if issuer.startswith("https:") and not url.startswith("https:"):
            raise FetchFailed("the provider's jwks_uri is not an https URL")
        return url

    async def _get(self, url: str) -> bytes:
        assert self._session is not None, "the lifespan has not begun"
        return await fetch(self._session, url)
