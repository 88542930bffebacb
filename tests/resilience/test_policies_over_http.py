"""Policies for the calls of a gateway: HTTP in, a real worker behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest

import mesh
from mesh import http
from mesh.gateway import app
from mesh.gateway.server import Gateway
from mesh.testing import Mesh


class Shop(mesh.Service):
    """Fails as often as it is told."""

    failing = 0
    calls = 0

    @http.get("/price/{item}")
    async def price(self, item: str) -> dict[str, Any]:
        Shop.calls += 1
        if Shop.failing:
            Shop.failing -= 1
            raise ValueError("a bug that tells of 10.0.0.7")
        return {"item": item, "call": Shop.calls}


@asynccontextmanager
async def shop(policy: dict[str, Any]) -> AsyncIterator[aiohttp.ClientSession]:
    Shop.failing = Shop.calls = 0
    async with Mesh(Shop, settings={"policies": {"shop.price": policy}}) as m:
        settings = msgspec.structs.replace(m.settings, gateway=msgspec.structs.replace(m.settings.gateway, port=0))
        gateway = Gateway(m.node, settings)
        server = gateway.make_server()
        accepting = await asyncio.get_running_loop().create_server(server, sock=app.bind("127.0.0.1", 0))
        port = accepting.sockets[0].getsockname()[1]
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
                yield client
        finally:
            accepting.close()
            await server.shutdown(0.2)


async def test_an_open_breaker_is_a_503_that_says_when_to_come_back():
    async with shop({"breaker": 0.5, "breaker_minimum": 2, "breaker_open": "1500ms"}) as client:
        Shop.failing = 2
        for _ in range(2):
            async with client.get("/price/tea") as answer:
                assert answer.status == 500
        async with client.get("/price/tea") as answer:
            problem = await answer.json(content_type=None)
            assert (answer.status, problem["code"], answer.headers["Retry-After"]) == (503, "circuit_open", "2")
            assert "10.0.0.7" not in problem["detail"]
        assert Shop.calls == 2


@pytest.mark.parametrize("accept", ["application/json", "application/msgpack"])
async def test_a_fallback_comes_in_the_form_that_the_client_wants(accept: str):
    async with shop({"fallback": {"item": "", "call": 0}}) as client:
        Shop.failing = 1
        async with client.get("/price/tea", headers={"Accept": accept}) as answer:
            body = await answer.read()
            assert (answer.status, answer.content_type) == (200, accept)
        decode = msgspec.msgpack.decode if accept.endswith("msgpack") else msgspec.json.decode
        assert decode(body) == {"item": "", "call": 0}


async def test_a_kept_answer_is_given_to_further_requests_for_the_same():
    async with shop({"cache_for": "20s", "coalesce": True}) as client:

        async def call(item: str) -> Any:
            async with client.get(f"/price/{item}") as answer:
                return (await answer.json())["call"]

        assert await asyncio.gather(*(call("tea") for _ in range(5))) == [1] * 5
        assert [await call("tea"), await call("milk"), await call("milk")] == [1, 2, 2]


async def test_a_request_is_tried_again():
    async with shop({"retries": 2, "backoff": "1ms", "retry_on": ["handler_error"]}) as client:
        Shop.failing = 2
        async with client.get("/price/tea") as answer:
            assert (answer.status, Shop.calls) == (200, 3)
