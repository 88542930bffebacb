"""Concerns of the edge: around every mount, in order, before the user's interceptors; and what a request is for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

import mesh
from mesh import http
from mesh.discovery.record import EdgePolicy
from mesh.errors import Forbidden
from mesh.gateway import app
from mesh.gateway.edge import registry
from mesh.gateway.edge.contract import Concern, Proceed
from mesh.gateway.entry import Entry
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.request import Request
from mesh.gateway.server import Gateway
from mesh.testing import Mesh

LOG: list[str] = []
ENTRIES: list[Entry] = []


class Shop(mesh.Service):
    @http.get("/orders/{id}", cache="no-store", limit="5/s")
    async def order(self, id: int) -> int:
        return id

    @mesh.rpc(expose=True, max_body=100)
    async def count(self) -> int:
        return 7

    @mesh.task(expose=True, auth=None)
    async def ship(self) -> None: ...


def concern(name: str) -> registry.Make:
    def make(front: Front) -> Concern:
        async def hook(request: Request, proceed: Proceed) -> Answer:
            LOG.append(name)
            request.raw.lines += b"X-%b: yes\r\n" % name.encode()
            if request.headers.get("X-Refuse") == name:
                raise Forbidden(f"refused by {name}")
            ENTRIES.append(request.entry)
            return await proceed(request)

        @asynccontextmanager
        async def lifespan(_: Any) -> AsyncIterator[None]:
            LOG.append(f"{name} started")
            yield
            LOG.append(f"{name} stopped")

        return Concern(name=name, hook=hook, lifespan=lifespan, facts={"on": True})

    return make


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[aiohttp.ClientSession]:
    LOG.clear()
    ENTRIES.clear()
    monkeypatch.setattr(registry, "CONCERNS", (concern("outer"), lambda front: None, concern("inner")))
    async with Mesh(Shop) as m:
        gateway = Gateway(m.node, m.settings)  # type: ignore[arg-type]
        server = gateway.make_server()
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        async with registry.lifespans(gateway.front), aiohttp.ClientSession(app.shown(listener)) as session:
            LOG.clear()
            yield session
            LOG.clear()
        accepting.close()
        await server.shutdown(0.2)
    assert LOG == ["inner stopped", "outer stopped"]


@pytest.mark.parametrize(
    ("path", "status"), [("/orders/1", 200), ("/livez", 200), ("/nowhere", 404), ("/rpc/shop/count", 405), ("/", 302)]
)
async def test_concerns_wrap_every_mount_in_order(client: aiohttp.ClientSession, path: str, status: int):
    async with client.get(path, allow_redirects=False) as answer:
        assert answer.status == status
        assert (answer.headers["X-outer"], answer.headers["X-inner"]) == ("yes", "yes")
    assert LOG == ["outer", "inner"]


async def test_a_refusal_has_the_lines_of_the_concerns_outside(client: aiohttp.ClientSession):
    async with client.get("/orders/1", headers={"X-Refuse": "inner"}) as answer:
        assert (answer.status, (await answer.json())["code"]) == (403, "forbidden")
        assert answer.headers["X-outer"] == "yes"
    async with client.get("/mesh") as answer:
        assert (await answer.json())["edge"] == [{"name": "outer", "on": True}, {"name": "inner", "on": True}]


@pytest.mark.parametrize(
    ("verb", "path", "entry"),
    [
        ("GET", "/orders/1", ("/", "shop.order", EdgePolicy(rates=["5/s"], cache="no-store"))),
        ("HEAD", "/orders/1", ("/", "shop.order", EdgePolicy(rates=["5/s"], cache="no-store"))),
        ("OPTIONS", "/orders/1", ("/", "shop.order", EdgePolicy(rates=["5/s"], cache="no-store"))),
        ("POST", "/orders/1", ("/", "", EdgePolicy())),
        ("GET", "/nowhere", ("/", "", EdgePolicy())),
        ("POST", "/rpc/shop/count", ("/rpc", "shop.count", EdgePolicy(max_body_bytes=100))),
        ("POST", "/rpc/shop/none", ("/rpc", "", EdgePolicy())),
        ("POST", "/tasks/shop/ship", ("/tasks", "shop.ship", EdgePolicy(auth="none"))),
        ("GET", "/metrics", ("/metrics", "", EdgePolicy())),
    ],
)
async def test_the_entry_says_what_a_request_is_for(
    client: aiohttp.ClientSession, verb: str, path: str, entry: tuple[str, str, EdgePolicy]
):
    async with client.request(verb, path) as answer:
        await answer.read()
    assert [(each.prefix, each.name, each.policy) for each in ENTRIES] == [entry, entry]


async def test_a_route_is_answered_as_without_concerns(client: aiohttp.ClientSession):
    async with client.get("/orders/12") as answer:
        assert (answer.status, await answer.json()) == (200, 12)
