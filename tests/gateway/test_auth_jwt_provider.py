"""Keys of a provider on a real HTTP server: fetched, refreshed, found by discovery; and a provider that misbehaves."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from gateway_auth import gateway_of, open_desk
from gateway_fakes import FakeNode
from gateway_front import Front, eventually
from gateway_tokens import AUDIENCE, PROVIDER

from mesh.clock import ManualClock
from mesh.config import Settings
from mesh.config.edge_auth import AuthSettings, JwtSettings
from mesh.gateway.edge.auth.jwt import fetch, remote_keys
from mesh.gateway.edge.auth.jwt.remote_keys import DISCOVERY

P = PROVIDER


class Idp:
    """An identity provider. `keys` and `description` are what it answers, or how."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.keys: Any = P.jwks("rsa")
        self.description: Any = None
        self.url = ""

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.path)
        told = self.keys if request.path == "/keys" else self.description
        if callable(told):
            answer: web.StreamResponse = await told(request)
            return answer
        return web.Response(body=told) if told is not None else web.Response(status=404)


@pytest.fixture
async def idp() -> AsyncIterator[Idp]:
    made = Idp()
    runner = web.ServerRunner(web.Server(made.serve), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    made.description = json.dumps({"issuer": made.url, "jwks_uri": f"{made.url}/keys"}).encode()
    yield made
    await runner.cleanup()


@pytest.fixture
async def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def opened(node: FakeNode, settings: Settings, idp: Idp, clock: ManualClock) -> AsyncIterator[Any]:
    """Opens a gateway whose fetches follow a manual clock. (Fetches themselves have real timeouts.)"""
    open_desk(node)
    async with AsyncExitStack() as stack:

        async def make(discover: bool = False, **values: Any) -> Front:
            values |= {} if discover else {"jwks": f"{idp.url}/keys"}
            jwt = JwtSettings(issuer=idp.url, audience=[AUDIENCE], **values)
            made = Settings(mesh=settings.mesh, gateway=settings.gateway, auth=AuthSettings(jwt=jwt))
            node.clock = _Hybrid(clock)
            return await stack.enter_async_context(gateway_of(node, made))

        yield make


class _Hybrid:
    """The manual clock for waits and the age of keys; real time for the times in tokens."""

    def __init__(self, clock: ManualClock) -> None:
        from mesh.clock import LoopClock

        self._real = LoopClock()
        self.now, self.sleep, self.call_at, self.boot = clock.now, clock.sleep, clock.call_at, clock.boot

    def wall(self) -> float:
        return self._real.wall()


async def status(front: Front, idp: Idp, key: str = "rsa", sign: str = "RS256", **header: Any) -> tuple[int, str]:
    token = P.token(header, key=key, sign=sign, iss=idp.url)
    answer = await front.get("/user", headers={"Authorization": f"Bearer {token}"})
    return answer.status, answer.json["code"] if answer.status != 200 else ""


async def other_than(known: tuple[int, str], front: Front, idp: Idp) -> None:
    """Return once the answer is no longer the known one."""
    async with asyncio.timeout(10):
        while await status(front, idp) == known:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.01)


OK = (200, "")
REFUSED = (401, "unauthenticated")
DOWN = (503, "auth_unavailable")
EC: dict[str, Any] = {"key": "ec", "sign": "ES256"}


@pytest.mark.parametrize("discover", [False, True])
async def test_keys_are_fetched_before_the_first_request(opened: Any, idp: Idp, discover: bool):
    front = await opened(discover)
    assert idp.asked == ([DISCOVERY] if discover else []) + ["/keys"]
    assert await status(front, idp) == OK
    assert await status(front, idp, key="stranger", kid="rsa") == REFUSED


async def test_a_new_key_is_fetched_when_the_first_token_names_it(opened: Any, idp: Idp, clock: ManualClock):
    front = await opened()
    idp.keys = P.jwks("rsa", "ec")
    assert await status(front, idp, **EC) == REFUSED, "within the cool-down"
    clock.turn(remote_keys.COOLDOWN_S + 1)
    assert await status(front, idp, **EC) == OK
    assert len(idp.asked) == 2


async def test_invented_kids_cause_one_fetch_per_cool_down(opened: Any, idp: Idp, clock: ManualClock):
    front = await opened()
    for _ in range(3):
        clock.turn(remote_keys.COOLDOWN_S + 1)
        found = await asyncio.gather(*(status(front, idp, kid=f"garbage-{number}") for number in range(20)))
        assert set(found) == {REFUSED}
    assert len(idp.asked) == 1 + 3
    assert await status(front, idp) == OK


async def test_keys_are_refreshed_in_the_background_and_a_removed_key_ends_its_tokens(
    opened: Any, idp: Idp, clock: ManualClock
):
    front = await opened(refresh_s=600.0)
    assert await status(front, idp) == OK
    idp.keys = P.jwks("ec")
    await clock.advance(601)
    await eventually(lambda: len(idp.asked) == 2, "a second fetch")
    await other_than(OK, front, idp)
    assert [await status(front, idp), await status(front, idp, **EC)] == [REFUSED, OK]


async def test_keys_are_used_while_the_provider_is_down_up_to_a_limit(opened: Any, idp: Idp, clock: ManualClock):
    front = await opened(refresh_s=600.0, stale_s=3600.0)
    idp.keys = None
    await clock.advance(3000)
    assert await status(front, idp) == OK
    await clock.advance(700)
    assert await status(front, idp) == DOWN
    idp.keys = P.jwks("rsa")
    await clock.advance(61)
    await other_than(DOWN, front, idp)
    assert await status(front, idp) == OK


# --- a provider that misbehaves ------------------------------------------------------------------------


async def huge(request: web.BaseRequest) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    try:
        for _ in range(4 * fetch.MAX_BYTES // 65_536):
            await answer.write(b" " * 65_536)
    except ConnectionError:
        pass
    return answer


async def silent(request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def dripping(request: web.BaseRequest) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    try:
        while True:
            await answer.write(b" ")
            await asyncio.sleep(0.05)
    except ConnectionError:
        pass
    return answer


async def redirecting(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/elsewhere"})


async def failing(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=500, body=P.jwks("rsa"))


async def compressed(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=gzip.compress(P.jwks("rsa")), headers={"Content-Encoding": "gzip"})


async def hanging_up(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


MISBEHAVING: dict[str, Any] = {
    "huge": huge,
    "silent": silent,
    "dripping": dripping,
    "redirecting": redirecting,
    "failing": failing,
    "compressed": compressed,
    "hanging up": hanging_up,
    "gone": None,
    "empty": b"",
    "not JSON": b"<html>",
    "nested": b"[" * 100_000,
    "a list": b"[]",
    "no keys": b'{"keys": []}',
    "keys of no use": json.dumps({"keys": [P.jwk("rsa", use="enc"), {"kty": "oct", "k": "AAAA"}]}).encode(),
    "broken keys": json.dumps(
        {"keys": [{"kty": "RSA", "n": 1}, {"kty": "EC", "crv": "P-256", "x": "A", "y": "A"}]}
    ).encode(),
    "too many keys": json.dumps({"keys": [P.jwk("ed")] * 65}).encode(),
}


@pytest.mark.parametrize("name", MISBEHAVING)
async def test_a_provider_that_misbehaves(
    opened: Any, idp: Idp, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, name: str
):
    """At the start nobody gets in, and the gateway answers; later the keys that were fetched before are used."""
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.4)
    good, idp.keys = idp.keys, MISBEHAVING[name]
    front = await opened()
    assert await status(front, idp) == DOWN
    assert (await front.get("/open")).status == 200
    assert (await front.get("/user", headers={"Authorization": "Bearer garbage"})).status == 401
    assert (await front.get("/user")).status == 401
    idp.keys = good
    async with asyncio.timeout(10):
        while await status(front, idp) == DOWN:
            await clock.advance(2)
            await asyncio.sleep(0.01)
    assert await status(front, idp) == OK
    idp.keys = MISBEHAVING[name]
    clock.turn(remote_keys.COOLDOWN_S + 1)
    assert await status(front, idp, kid="unknown") == REFUSED
    assert await status(front, idp) == OK


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"jwks_uri": None},
        {"jwks_uri": 7},
        {"jwks_uri": "http://keys.example/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "https://user@keys.example/keys"},
    ],
)
async def test_a_description_that_is_not_the_issuers(opened: Any, idp: Idp, changes: dict[str, Any]):
    idp.description = json.dumps(json.loads(idp.description) | changes).encode()
    front = await opened(True)
    assert await status(front, idp) == DOWN
    assert "/keys" not in idp.asked


async def test_a_client_that_leaves_does_not_cancel_the_fetch_of_the_others(opened: Any, idp: Idp, clock: ManualClock):
    front = await opened()
    gate = asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return web.Response(body=P.jwks("rsa", "ec"))

    idp.keys = slow
    clock.turn(remote_keys.COOLDOWN_S + 1)
    leaving = asyncio.ensure_future(status(front, idp, **EC))
    await eventually(lambda: len(idp.asked) == 2, "a second fetch")
    staying = asyncio.ensure_future(status(front, idp, **EC))
    await asyncio.sleep(0.05)
    leaving.cancel()
    await asyncio.sleep(0.05)
    gate.set()
    assert await staying == OK
    assert len(idp.asked) == 2
