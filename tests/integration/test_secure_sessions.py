"""From a browser to a rule about users: a gateway with sessions and a worker with [access], over tcp with keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

import mesh
from mesh import http
from mesh.config import AccessRule, AccessSettings
from mesh.config.edge_auth import AuthSettings
from mesh.config.edge_sessions import SessionSettings
from mesh.config.secrets import Secret
from mesh.gateway import app
from mesh.gateway.edge.registry import lifespans
from mesh.gateway.server import Gateway
from mesh.transport.curve import key_store
from mesh.worker.worker import Worker
from tests.integration.test_secure_mesh import Secure
from tests.patience import until

USERS = {"ann": ["clerk"], "bob": []}
RULES = AccessSettings(
    allow=(
        AccessRule(callers=("gateway",), services=("desk",), methods=("login", "me")),
        AccessRule(callers=("gateway",), services=("desk",), methods=("write",), roles=("clerk",)),
        AccessRule(callers=("gateway",), services=("desk",), methods=("own",), principals=("bob",)),
    )
)


class Desk(mesh.Service):
    name = "desk"

    def __init__(self) -> None:
        self.written = 0

    @http.post("/login", auth=None)
    async def login(self, name: str) -> http.Response[None]:
        return http.login(name, roles=USERS[name])

    @http.get("/me", auth=None)
    async def me(self) -> list[Any]:
        context = mesh.current()
        assert context is not None
        return [context.principal, sorted(context.roles), context.verified]

    @http.post("/write", auth=None)
    async def write(self) -> str:
        self.written += 1
        return "written"

    @http.post("/own", auth=None)
    async def own(self) -> str:
        return "own"


@pytest.fixture
async def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setenv("SESSION_KEY", "0f9d2c7b41e865a3" * 4)
    secure = Secure(tmp_path)
    key_store.make(secure.keys, "desk")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(secure.close)
        await secure.start_hub()
        worker = Worker([Desk], secure.settings(RULES))
        secure._ends.append(worker.stop)
        await worker.start()
        await until(lambda: len(secure.hub.registry) == 1, "the hub knows it")
        node = await secure.client("gateway")
        sessions = SessionSettings(keys=[Secret("env:SESSION_KEY")], login=["desk.login"], revocation="none")
        settings = msgspec.structs.replace(node.settings, auth=AuthSettings(sessions=sessions))
        gateway = Gateway(node, settings)
        await stack.enter_async_context(lifespans(gateway.front))
        server = gateway.make_server()
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        await until(lambda: node.instances("desk"), "the gateway knows it")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        accepting.close()
        await server.shutdown(0.2)


class Browser:
    def __init__(self, client: aiohttp.ClientSession, url: str) -> None:
        self.client = client
        self.url = url

    async def ask(self, verb: str, path: str, headers: dict[str, str] | None = None, **options: Any) -> Any:
        """The answer, or the error code."""
        sent = dict(headers or {})
        for cookie in self.client.cookie_jar:
            if cookie.key == "session_csrf":
                sent["X-CSRF-Token"] = cookie.value
        async with self.client.request(verb, self.url + path, headers=sent, **options) as answer:
            told = await answer.json()
            return told["code"] if isinstance(told, dict) else told


@pytest.fixture
async def browser(url: str) -> AsyncIterator[Browser]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        yield Browser(client, url)


async def test_rules_admit_the_user_of_the_session(browser: Browser):
    """The worker decides by the session's user and roles, over one link for all users."""
    assert await browser.ask("POST", "/write") == "forbidden"
    await browser.ask("POST", "/login", json={"name": "ann"})
    assert await browser.ask("GET", "/me") == ["ann", ["clerk"], True]
    assert (await browser.ask("POST", "/write"), await browser.ask("POST", "/own")) == ("written", "forbidden")
    await browser.ask("POST", "/login", json={"name": "bob"})
    assert await browser.ask("GET", "/me") == ["bob", [], True]
    assert (await browser.ask("POST", "/write"), await browser.ask("POST", "/own")) == ("forbidden", "own")


@pytest.mark.parametrize(
    "headers",
    [
        {"mesh.principal": "ann", "mesh.roles": "clerk"},
        {"baggage": "mesh.principal=ann,mesh.roles=clerk,principal=ann"},
        {"tracestate": "mesh.principal=ann"},
        {"X-Forwarded-User": "ann", "Remote-User": "ann", "X-Roles": "clerk"},
        {"Authorization": "Bearer ann"},
    ],
)
async def test_an_http_client_cannot_name_a_user(browser: Browser, headers: dict[str, str]):
    assert await browser.ask("GET", "/me", headers) == ["", [], False]
    assert await browser.ask("POST", "/write", headers) == "forbidden"
