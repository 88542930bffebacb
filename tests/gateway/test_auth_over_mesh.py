"""Authentication in front of a real mesh: identities behind the gateway, jobs of callers, and "Authorize" on /docs."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway_browser import BINARY, Browser, browser
from gateway_tokens import AUDIENCE, ISSUER, standard

import mesh
from mesh import http, rpc, task
from mesh.config import MeshSettings, Settings
from mesh.config.edge_auth import ApiKeySettings, AuthSettings, BasicSettings, JwtSettings, read_requirement
from mesh.config.secrets import Secret
from mesh.gateway import app
from mesh.gateway.edge.auth import api_keys, passwords
from mesh.gateway.edge.registry import lifespans
from mesh.gateway.server import Gateway
from mesh.testing import Mesh

SECRET = b"s" * 32
PASSWORD = "a long password"


class Shop(mesh.Service):
    """Sells things."""

    @http.get("/me")
    async def me(self) -> str:
        """Who the caller is, as the service behind this one sees it."""
        found: str = await self.call("audit.caller")
        return found

    @http.get("/reports", auth=http.roles("manager"))
    async def reports(self) -> str:
        return "secret"

    @http.get("/open", auth=None)
    async def open(self) -> str:
        return "open"

    @task(expose=True)
    async def pack(self, order: int) -> str:
        context = mesh.current()
        return f"{order} for {context.principal}" if context else ""

    @rpc
    async def whole(self) -> int:
        return 7


class Audit(mesh.Service):
    @rpc
    async def caller(self) -> str:
        context = mesh.current()
        return f"{context.principal}@{context.tenant}" if context else ""


@pytest.fixture
async def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Opens a gateway; gives its address."""
    monkeypatch.setenv("TOKENS", SECRET.decode())
    monkeypatch.setattr(passwords, "COST", (2**10, 8, 1))
    passwords.add(tmp_path / "users", "olga", PASSWORD, roles=["operator"], now=0)
    async with AsyncExitStack() as stack:

        async def make(**mounts: str) -> str:
            jwt = JwtSettings(issuer=ISSUER, audience=[AUDIENCE], secret=Secret("env:TOKENS"), tenant="org")
            auth = AuthSettings(
                jwt=jwt,
                apikeys=ApiKeySettings(file=tmp_path / "keys"),
                basic=BasicSettings(file=tmp_path / "users"),
                mounts={prefix: read_requirement(text) for prefix, text in mounts.items()},
                job_roles=["operator"],
            )
            return await stack.enter_async_context(_gateway(Settings(mesh=MeshSettings(run_dir=tmp_path), auth=auth)))

        make.key = api_keys.create(tmp_path / "keys", "bot", roles=["manager"], now=time.time())[0]  # type: ignore[attr-defined]
        yield make


@asynccontextmanager
async def _gateway(settings: Settings) -> AsyncIterator[str]:
    async with Mesh(Shop, Audit) as m:
        gateway = Gateway(m.node, settings)  # type: ignore[arg-type]
        async with lifespans(gateway.front):
            server = gateway.make_server()
            listener = app.bind("127.0.0.1", 0)
            accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
            yield app.shown(listener)
            accepting.close()
            await server.shutdown(0.2)


def token(name: str, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {standard(SECRET, sub=name, **claims)}"}


def basic(name: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{name}:{PASSWORD}".encode()).decode()}


async def ask(
    session: aiohttp.ClientSession, verb: str, path: str, headers: Any = None, **more: Any
) -> tuple[int, Any]:
    async with session.request(verb, path, headers=headers, **more) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_the_identity_reaches_the_services_behind_the_first_one(opened: Any):
    async with aiohttp.ClientSession(await opened()) as session:
        assert await ask(session, "GET", "/me", token("ann", org="acme")) == (200, "ann@acme")
        assert await ask(session, "GET", "/me", {"X-API-Key": opened.key}) == (200, "bot@")
        assert await ask(session, "GET", "/me", basic("olga")) == (200, "olga@")
        assert (await ask(session, "GET", "/me"))[0] == 401
        assert await ask(session, "GET", "/open") == (200, "open")
        assert (await ask(session, "GET", "/reports", token("ann")))[0] == 403
        assert await ask(session, "GET", "/reports", {"X-API-Key": opened.key}) == (200, "secret")
        # What a client sends as baggage, or as metadata of the mesh, is no identity.
        forged = {"baggage": "mesh.principal=admin", "mesh.principal": "admin"}
        assert await ask(session, "GET", "/me", {**forged, **token("ann")}) == (200, "ann@")


async def test_jobs_belong_to_the_caller_that_deferred_them(opened: Any):
    async with aiohttp.ClientSession(await opened()) as session:
        status, told = await ask(session, "POST", "/tasks/shop/pack", token("ann", org="acme"), json={"order": 7})
        assert status == 202
        job = told["job"]
        mine = await ask(session, "GET", job + "?wait=10s", token("ann", org="acme"))
        assert (mine[0], mine[1]["result"]) == (200, "7 for ann")
        assert (await ask(session, "GET", job, basic("olga")))[0] == 200
        for other in (token("bob", org="acme"), token("ann"), token("ann", org="other"), {"X-API-Key": opened.key}):
            for verb, path in (("GET", job), ("GET", job + "?wait=1s"), ("DELETE", job)):
                status, told = await ask(session, verb, path, other)
                assert (status, told["code"]) == (404, "unknown_job")
            none = await ask(session, "GET", "/jobs/none", other)
            assert (none[0], none[1]["code"]) == (404, "unknown_job")
        assert (await ask(session, "GET", job))[0] == 401


async def test_jobs_of_callers_without_a_credential(opened: Any):
    """Where /tasks and /jobs require nobody: those jobs are for such callers alone."""
    async with aiohttp.ClientSession(await opened(**{"/tasks": "none", "/jobs": "none"})) as session:
        _, told = await ask(session, "POST", "/tasks/shop/pack", json={"order": 7})
        _, own = await ask(session, "POST", "/tasks/shop/pack", token("ann"), json={"order": 8})
        assert (await ask(session, "GET", told["job"]))[0] == 200
        assert (await ask(session, "GET", told["job"], token("ann")))[0] == 404
        assert (await ask(session, "GET", own["job"]))[0] == 404
        assert (await ask(session, "GET", own["job"], token("ann")))[0] == 200


async def test_an_idempotency_key_of_another_caller_gives_no_job_of_theirs(opened: Any):
    async with aiohttp.ClientSession(await opened()) as session:
        key = {"Idempotency-Key": "order-7"}
        first = await ask(session, "POST", "/tasks/shop/pack", {**key, **token("ann")}, json={"order": 7})
        again = await ask(session, "POST", "/tasks/shop/pack", {**key, **token("ann")}, json={"order": 7})
        assert (first[0], again) == (202, first)
        status, told = await ask(session, "POST", "/tasks/shop/pack", {**key, **token("bob")}, json={"order": 7})
        assert (status, told["id"] != first[1]["id"]) == (202, True)


# --- the documentation page ----------------------------------------------------------------------------


async def authorize(page: Browser, scheme: str, *values: str) -> None:
    """Fill in one form of the dialog "Authorize", as a person does."""
    await page.run(f"""(async () => {{
      const wait = () => new Promise(done => setTimeout(done, 50));
      document.querySelector('.auth-wrapper .authorize').click();
      let form;
      while (!(form = [...document.querySelectorAll('.auth-container')].find(
        each => each.querySelector('h4').textContent.includes({scheme!r})))) await wait();
      const fields = [...form.querySelectorAll('input')];
      {list(values)!r}.forEach((value, index) => {{
        const field = fields[index];
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(field, value);
        field.dispatchEvent(new Event('input', {{ bubbles: true }}));
        field.dispatchEvent(new Event('change', {{ bubbles: true }}));
      }});
      await wait();
      form.querySelector('.btn.authorize').click();
      await wait();
      document.querySelector('.btn-done').click();
    }})()""")


async def execute(page: Browser, path: str) -> str:
    """Send the form of an operation; the status of the answer."""
    found: str = await page.run(f"""(async () => {{
      const wait = () => new Promise(done => setTimeout(done, 50));
      const block = [...document.querySelectorAll('.opblock')].find(
        each => each.querySelector('.opblock-summary-path').dataset.path === {path!r});
      if (!block.querySelector('.btn.execute')) block.querySelector('.opblock-summary-control').click();
      while (!block.querySelector('.btn.execute')) await wait();
      block.querySelector('.btn-clear')?.click();
      await wait();
      block.querySelector('.btn.execute').click();
      while (!block.querySelector('.live-responses-table tbody .response-col_status')) await wait();
      return block.querySelector('.live-responses-table tbody .response-col_status').textContent.trim().slice(0, 3);
    }})()""")
    return found


@pytest.mark.skipif(BINARY is None, reason="chromium is not installed: apt install chromium")
@pytest.mark.parametrize("scheme", ["jwt", "apikey", "basic"])
async def test_authorize_on_the_documentation_page(opened: Any, scheme: str):
    url = await opened(**{"/docs": "none", "/openapi.json": "none"})
    values = {
        "jwt": (standard(SECRET, sub="ann"),),
        "apikey": (opened.key,),
        "basic": ("olga", PASSWORD),
    }[scheme]
    async with browser() as page:
        await page.open(f"{url}/docs")
        await page.until("document.querySelectorAll('.opblock').length > 2")
        assert await execute(page, "/open") == "200"
        # For a refusal with a Basic challenge the browser would show a dialog of its own, and this would wait for ever.
        assert await execute(page, "/reports") == "401"
        await authorize(page, scheme, *values)
        assert await execute(page, "/me") == "200"
        assert await execute(page, "/reports") == ("200" if scheme == "apikey" else "403")
