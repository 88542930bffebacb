"""Gateways with sessions in front of a mesh in memory, and a client that keeps cookies as a browser does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from http.cookies import SimpleCookie
from typing import Any

import aiohttp
from gateway_front import Told

import mesh
from mesh import http
from mesh.config import GatewaySettings, Settings
from mesh.config.edge_auth import AuthSettings
from mesh.config.edge_sessions import SessionSettings
from mesh.config.secrets import Secret
from mesh.gateway import app
from mesh.gateway.edge.registry import lifespans
from mesh.gateway.server import Gateway
from mesh.testing import Mesh

HOST = "shop.example"
#: The variables that hold the keys, and their values; the test sets them.
KEYS = {"SESSION_KEY": "0f9d2c7b41e865a3" * 4, "NEXT_KEY": "b71d29c6e58f403a" * 4, "OTHER_KEY": "0ddba11cafe5" * 6}
USERS = {"ann": ("clerk",), "bob": (), "root": ("admin",)}


def who() -> dict[str, Any]:
    """The caller, as a service sees it."""
    context = mesh.current()
    assert context is not None
    return {
        "principal": context.principal,
        "roles": sorted(context.roles),
        "scopes": sorted(context.scopes),
        "tenant": context.tenant,
    }


class Users(mesh.Service):
    """Checks names; its login is in auth.sessions.login."""

    name = "users"

    @http.post("/login", auth=None)
    async def login(self, name: str, max_age_s: int | None = None) -> http.Response[str]:
        if name not in USERS:
            raise mesh.Forbidden("no such user")
        return http.login(
            name, roles=USERS[name], scopes=["orders:write"], tenant="acme", body="welcome", max_age_s=max_age_s
        )

    @http.post("/logout", auth="user")
    async def logout(self, everywhere: bool = False) -> http.Response[None]:
        return http.logout(everywhere=everywhere, status=204)

    @http.post("/kick", auth=http.roles("admin"))
    async def kick(self, name: str) -> http.Response[None]:
        return http.logout(principal=name, status=204)


class Shop(mesh.Service):
    """An application; it may not log in anyone."""

    name = "shop"

    def __init__(self) -> None:
        self.placed: list[str] = []

    @http.get("/me", auth="user")
    async def me(self) -> dict[str, Any]:
        return who()

    @http.get("/public", auth=None)
    async def public(self) -> dict[str, Any]:
        return who()

    @http.post("/public", auth=None)
    async def post_public(self) -> dict[str, Any]:
        return who()

    @http.post("/orders", auth="user")
    async def place(self, item: str) -> str:
        self.placed.append(item)
        return item

    @http.put("/orders", auth="user")
    async def put(self, item: str) -> str:
        return await self.place(item)

    @http.patch("/orders", auth="user")
    async def patch(self, item: str) -> str:
        return await self.place(item)

    @http.delete("/orders", auth="user")
    async def remove(self) -> None:
        self.placed.clear()

    @http.post("/form", auth="user", forms=True)
    async def form(self, data: bytes) -> str:
        self.placed.append(data.decode())
        return "ok"

    @http.post("/evil/login", auth=None)
    async def evil_login(self) -> http.Response[None]:
        return http.login("root", roles=["admin"])

    @http.post("/evil/kick", auth=None)
    async def evil_kick(self) -> http.Response[None]:
        return http.logout(principal="ann")

    @http.post("/evil/cookie", auth=None)
    async def evil_cookie(self, line: str) -> http.Response[None]:
        response: http.Response[None] = http.Response(None)
        # As a worker of other code could send it; http.SetCookie would refuse some of these.
        response.head = response.head._replace(fields=(("sEt-cookie", line),))
        return response

    @http.post("/evil/head", auth=None)
    async def evil_head(self, session: str) -> http.Response[None]:
        response: http.Response[None] = http.Response(None)
        response.head = response.head._replace(session=session)
        return response


class Clock:
    """A clock whose wall time and monotonic time a test moves forward."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.shift_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)

    def wall(self) -> float:
        return float(self._clock.wall() + self.shift_s)

    def now(self) -> float:
        return float(self._clock.now() + self.shift_s)


class Node:
    """The node of a mesh under test, with a Clock, and with a state that a test can take away."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self.clock = Clock(node.clock)
        self.durable = Durable(node.durable)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)


class Durable:
    def __init__(self, durable: Any) -> None:
        self._durable = durable
        self.lost = False
        self.hangs = False
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._durable, name)

    def state(self, namespace: str) -> Any:
        self.reads += 1
        if self.lost:
            raise mesh.Unavailable("the store is gone")
        return _Hanging() if self.hangs else self._durable.state(namespace)


class _Hanging:
    async def get_many(self, keys: Any) -> Any:
        await asyncio.sleep(3600)


class Site:
    """One gateway."""

    def __init__(self, gateway: Gateway, node: Node, address: tuple[str, int], http_client: aiohttp.ClientSession):
        self.gateway = gateway
        self.node = node
        self.address = address
        self.http_client = http_client

    def client(self, host: str = HOST) -> Client:
        return Client(self, host)


class Client:
    """Keeps cookies by name, and sends the CSRF token of its cookie with what changes something.

    Attributes:
        lines: the Set-Cookie lines of the latest answer.
    """

    def __init__(self, site: Site, host: str) -> None:
        self.site = site
        self.host = host
        self.cookies: dict[str, str] = {}
        self.lines: list[str] = []

    @property
    def session(self) -> str:
        return self.cookies.get("__Host-session", "") or self.cookies.get("session", "")

    @property
    def csrf(self) -> str:
        return self.cookies.get("__Host-session_csrf", "") or self.cookies.get("session_csrf", "")

    async def ask(
        self, verb: str, path: str, *, headers: dict[str, str] | None = None, token: bool = True, **options: Any
    ) -> Told:
        sent = {"Host": self.host}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if token and self.csrf and verb not in ("GET", "HEAD", "OPTIONS"):
            sent["X-CSRF-Token"] = self.csrf
        sent |= headers or {}
        url = f"http://127.0.0.1:{self.site.address[1]}{path}"
        async with self.site.http_client.request(verb, url, headers=sent, allow_redirects=False, **options) as answer:
            self.lines = answer.headers.getall("Set-Cookie", [])
            for line in self.lines:
                for name, morsel in SimpleCookie(line).items():
                    if morsel["max-age"] == "0":
                        self.cookies.pop(name, None)
                    else:
                        self.cookies[name] = morsel.value
            return Told(answer.status, answer.headers, await answer.read())

    async def login(self, name: str = "ann", **more: Any) -> Told:
        told = await self.ask("POST", "/login", json={"name": name, **more})
        assert told.status == 200, told.body
        return told

    async def who(self) -> str:
        """The principal at a route that requires one; the error code without."""
        told = await self.ask("GET", "/me")
        return str(told.json["principal"] if told.status == 200 else told.json["code"])

    async def place(self, item: str = "tea", **options: Any) -> str:
        """ "ok", or the code of the refusal."""
        told = await self.ask("POST", "/orders", json={"item": item}, **options)
        return "ok" if told.status == 200 else str(told.json["code"])


def sessions(**values: Any) -> SessionSettings:
    return SessionSettings(**{"keys": [Secret("env:SESSION_KEY")], "login": ["users.*"], **values})


@asynccontextmanager
async def shop(**settings: Any) -> AsyncIterator[Mesh]:
    async with Mesh(Users, Shop, settings=settings) as m:
        yield m


@asynccontextmanager
async def site_of(m: Mesh, configured: SessionSettings | None = None, **gateway: Any) -> AsyncIterator[Site]:
    """A gateway of this mesh, on a socket of its own."""
    settings: Settings = m.settings
    made = Settings(
        mesh=settings.mesh,
        engines=settings.engines,
        gateway=GatewaySettings(**{"port": 0, "hosts": [HOST], **gateway}),
        auth=AuthSettings(sessions=configured or sessions()),
    )
    node = Node(m.node)
    made_gateway = Gateway(node, made)  # type: ignore[arg-type]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(lifespans(made_gateway.front))
        client = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
        server = made_gateway.make_server()
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        try:
            yield Site(made_gateway, node, listener.getsockname(), client)
        finally:
            accepting.close()
            await server.shutdown(0.2)
