"""A gateway with rate limits in front of a mesh in this process, with a manual clock, and a stand-in for auth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

import mesh
from mesh import http
from mesh.clock import ManualClock
from mesh.errors import Forbidden
from mesh.gateway import app
from mesh.gateway.edge import concurrency, rates, registry
from mesh.gateway.edge.contract import Concern, Proceed
from mesh.gateway.edge.identity import Identity
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.request import Request
from mesh.gateway.server import Gateway
from mesh.testing import Mesh


class Shop(mesh.Service):
    """Routes with every kind of limit."""

    held: asyncio.Event

    async def started(self) -> None:
        Shop.held = asyncio.Event()

    @http.get("/free")
    async def free(self) -> int:
        return 1

    @http.get("/guess", limit="3/m by address")
    async def guess(self) -> int:
        return 1

    @http.get("/orders", limit=["2/s", "5/m by principal"])
    async def orders(self) -> int:
        return 1

    @http.get("/reports", limit="2/m by tenant")
    async def reports(self) -> int:
        return 1

    @http.get("/keyed", limit="2/m by key")
    async def keyed(self) -> int:
        return 1

    @http.get("/rare", limit="3/h by route")
    @mesh.rpc(expose=True, limit="3/h by route")
    async def rare(self) -> int:
        return 1

    @http.get("/hold")
    async def hold(self) -> int:
        await Shop.held.wait()
        return 1

    @http.get("/ticks", limit="2/m by address")
    async def ticks(self) -> AsyncIterator[int]:
        yield 1


def authentication(front: Front) -> Concern:
    """Takes the caller from a header; what comes from "nobody" is refused."""

    async def hook(request: Request, proceed: Proceed) -> Answer:
        told = request.headers.get("X-Caller", "")
        if told == "nobody":
            raise Forbidden("wrong password")
        if told:
            principal, tenant, key = (*told.split("/"), "", "")[:3]
            request.identity = Identity(principal, "test", tenant=tenant, key=key)
            request.context.tenant = tenant
        return await proceed(request)

    return Concern(name="auth", hook=hook)


class Client:
    """Sends requests to the gateway."""

    def __init__(self, mesh: Mesh, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.mesh = mesh
        self.gateway = gateway
        self.session = session

    async def get(self, path: str, caller: str = "", address: str = "", **more: Any) -> aiohttp.ClientResponse:
        headers = {"X-Caller": caller} if caller else {}
        if address:
            headers["X-Forwarded-For"] = address
        async with self.session.request(more.pop("method", "GET"), path, headers=headers, **more) as answer:
            await answer.read()
            return answer

    async def statuses(self, count: int, path: str, caller: str = "", address: str = "") -> list[int]:
        return [(await self.get(path, caller, address)).status for _ in range(count)]

    def counted(self, name: str) -> dict[str, float]:
        snapshot = self.gateway.node.recorder.snapshot()
        return {each["labels"]["limit"]: each["value"] for each in snapshot["counters"] if each["name"] == name}


@asynccontextmanager
async def serving(
    monkeypatch: pytest.MonkeyPatch, service: dict[str, Any] | None = None, **limits: Any
) -> AsyncIterator[Client]:
    """A client of a gateway with these limits, behind a trusted proxy that reports the addresses of clients.

    Args:
        service: the settings of the service.
    """
    monkeypatch.setattr(registry, "CONCERNS", (rates.by_address, authentication, rates.by_caller, concurrency.make))
    settings = {"gateway": {"proxies": ["127.0.0.1"], "limits": limits}, "services": {"shop": service or {}}}
    async with Mesh(Shop, clock=ManualClock(), settings=settings) as m:
        gateway = Gateway(m.node, m.settings)  # type: ignore[arg-type]
        server = gateway.make_server()
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        async with (
            registry.lifespans(gateway.front),
            aiohttp.ClientSession(app.shown(listener), connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            yield Client(m, gateway, session)
        accepting.close()
        await server.shutdown(0.2)
